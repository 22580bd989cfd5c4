"""One step: what the host waits for, how gradients are clipped, and how batches reach a device."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode

from powerclip.alignment.search import HardestNegatives
from powerclip.config import ModelConfig
from powerclip.errors import PowerclipError
from powerclip.model import create_model
from powerclip.train import build
from powerclip.train.optim import learning_rate, make_optimizer
from powerclip.train.prefetch import Prefetch
from powerclip.train.step import Engine
from powerclip.types import Batch
from tests.support.models import TINY, write_start
from tests.support.pretrained import TIMM
from tests.support.runs import tiny_run

B, M, K, T, N = 8, 3, 2, 16, 16


def batch(pairs=B, seed=0, regions=M):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 400, (pairs, T), generator=g)
    tokens[:, -4:] = torch.tensor([49407, 0, 0, 0])
    return Batch(
        images=torch.randn(pairs, 3, 64, 64, generator=g),
        tokens=tokens,
        leaf_of_token=torch.arange(T).expand(pairs, T),
        phrase_spans=torch.tensor([[0, 3], [4, 6]]).expand(pairs, K, 2),
        region_masks=torch.rand(pairs, regions, N, generator=g) < 0.5,
        keys=tuple(map(str, range(pairs))),
    )


def halves(whole):
    rows = slice(B // 2), slice(B // 2, B)
    return [Batch(**{name: value[half] for name, value in vars(whole).items()}) for half in rows]


def engine(folder, name="powerclip", device="cpu", **changes):
    torch.manual_seed(0)
    config = tiny_run(folder, log_every_steps=100, steps=1000, device=device, **changes).with_objective(name)
    return Engine(config, build.build_model(config), device=torch.device(device), steps=1000, output=folder)


def some_negatives(regions, phrases, **_):
    """Those of a search that waits for nothing, as the kernel's does."""
    images, captions = (torch.ones(len(x), dtype=torch.int64) for x in (regions, phrases))
    return HardestNegatives(
        caption=images,
        caption_score=images.float(),
        image=captions,
        image_score=captions.float(),
        image_sum=images.float(),
        caption_sum=captions.float(),
    )


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("name", ["clip", "powerclip"])
def test_a_step_is_queued_without_reading_a_number(name, pieces, tmp_path, monkeypatch):
    """Fake tensors have no numbers: whoever reads one, or needs to know how many are not zero, is an error."""
    monkeypatch.setattr("powerclip.loss.search.hardest_negatives", some_negatives)
    real = engine(tmp_path, name, ema_decay=0.5)
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        queued, parts = copy.deepcopy(real), [copy.deepcopy(batch(B // pieces, seed=i)) for i in range(pieces)]
    with fake:
        queued.step(parts, 0)
        with pytest.raises(DataDependentOutputException):  # so the step before is what the next one waits for
            queued.step(parts, 1)


@pytest.mark.parametrize("limit", [None, 0.01, 100.0])
def test_gradients_are_clipped_as_torch_does(limit, tmp_path):
    optim = dataclasses.replace(tiny_run(tmp_path).optim, max_gradient_norm=limit, warmup_steps=0)
    mine = engine(tmp_path, "clip", optim=optim)
    theirs = copy.deepcopy(mine.model)
    optimizer = make_optimizer(theirs, optim)
    for step in range(2):
        _, norm = mine.step([batch(seed=step)], step)
        optimizer.zero_grad()
        mine.loss(theirs(batch(seed=step))).total.backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), math.inf if limit is None else limit)
        torch.testing.assert_close(norm, expected)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=1000, config=optim)
        optimizer.step()
        for own, other in zip(mine.model.parameters(), theirs.parameters(), strict=True):
            found, wanted = mine.optimizer.state[own], optimizer.state[other]
            for name in ("exp_avg", "exp_avg_sq", "step"):  # the weights do not show the gradient's scale
                torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("freeze", ["image", "text"])
def test_a_frozen_tower_weighs_the_same_in_one_piece_and_in_several(freeze, tmp_path):
    base = tiny_run(tmp_path)
    changes = {
        "optim": dataclasses.replace(base.optim, freeze=freeze),
        "objective": dataclasses.replace(base.objective, gradient_ratio=1.0, gradient_cap=0.9),
    }
    whole, found = batch(), []
    for pieces in ([whole], halves(whole)):
        output, norm = engine(tmp_path, **changes).step(pieces, 99)  # a logged step
        found.append({**output.measures, "loss": output.total.detach(), "norm": norm})
    assert "gradient_ratio" in found[0]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_running_statistics_of_pretrained_weights_stay_and_pieces_change_nothing(tmp_path, monkeypatch):
    def normalised(*args, **options):
        model = create_model(*args, **options)
        visual = model.backbone.visual
        visual.conv1 = torch.nn.Sequential(visual.conv1, torch.nn.BatchNorm2d(16))
        return model

    monkeypatch.setattr(build, "create_model", normalised)
    with pytest.raises(PowerclipError, match=r"small.json has batch normalisation.*--model.pretrained"):
        engine(tmp_path)
    found = []
    for pieces in ([batch()], halves(batch())):
        mine = engine(tmp_path, model=ModelConfig(pretrained=write_start(tmp_path)))
        output, norm = mine.step(pieces, 0)
        found.append([output.total.detach(), norm])
        statistics = mine.model.backbone.visual.conv1[1]
        assert statistics.num_batches_tracked == 0
        assert torch.equal(statistics.running_mean, torch.zeros(16))
        assert statistics.weight.grad is not None
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_training_has_no_dropout_and_no_stochastic_depth(tmp_path):
    vision = {**TIMM, "image_size": 32, "timm_drop": 0.5, "timm_drop_path": 0.5, "timm_pool": "avg"}
    (tmp_path / "drops.json").write_text(json.dumps({**TINY, "vision_cfg": {**vision, "timm_proj": "linear"}}))
    model = build.build_model(tiny_run(tmp_path, model=ModelConfig(name=str(tmp_path / "drops.json")))).train()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), model.encode_image(images))


def test_a_bad_step_moves_neither_weights_nor_average_nor_optimiser(tmp_path):
    mine = engine(tmp_path, "clip", ema_decay=0.5)
    mine.step([batch()], 0)

    def state():
        return mine.model.state_dict(), mine.optimizer.state_dict()["state"], mine.ema.state_dict()

    kept = copy.deepcopy(state())
    poisoned = dataclasses.replace(batch(seed=1), images=batch().images * math.nan)
    mine.step([poisoned], 1)
    assert mine.counters["bad_steps"] == 0  # nobody has waited for it
    mine.settle()
    assert mine.counters["bad_steps"] == 1
    torch.testing.assert_close(state(), kept, rtol=0, atol=0)
    mine.step([batch(seed=2)], 2)
    mine.settle()
    assert mine.bad_in_a_row == 0
    assert not torch.equal(mine.model.logit_scale, kept[0]["backbone.logit_scale"])


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_a_gpu
@pytest.mark.parametrize("name", ["clip", "powerclip"])
def test_a_step_on_a_gpu_waits_for_nothing_but_the_step_before(name, tmp_path):
    mine, pinned = engine(tmp_path, name, device="cuda"), batch().pin_memory()
    mine.step([pinned], 0)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            mine.step([pinned], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mine.settle()
    assert mine.counters == {"samples_seen": 4 * B, "bad_steps": 0}


@on_a_gpu
def test_a_prefetched_batch_stays_until_the_gpu_is_done_with_it():
    prefetch = Prefetch(torch.device("cuda"))
    square = torch.randn(4096, 4096, device="cuda")
    batches = [batch(pairs=2 + number % 2, seed=number).pin_memory() for number in range(6)]
    found = []
    for one in batches:
        moved = prefetch(one)
        for _ in range(20):  # keeps the GPU busy for longer than a copy takes
            square = (square @ square).clamp(-1, 1)
        found.append((moved.images + 0.0 * square[0, 0], moved.tokens))
    for one, (images, tokens) in zip(batches, found, strict=True):
        assert torch.equal(images.cpu(), one.images)
        assert torch.equal(tokens.cpu(), one.tokens)


def test_on_a_cpu_a_batch_is_where_it_is():
    one = batch()
    assert Prefetch(torch.device("cpu"))(one).images is one.images
