"""The sparse loss against the dense triplet loss of the whole similarity matrix."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import normalize
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from powerclip.alignment import similarity
from powerclip.loss import PowersetAlignmentLoss, triplet_loss
from tests.support.processes import run_on_processes

MARGIN = 0.2


def batch(C=13, M=5, K=4, D=6, seed=0, dtype=torch.float64):
    """Regions, phrases and masks with an image without regions and a caption without phrases (C > 4)."""
    g = torch.Generator().manual_seed(seed)
    regions = normalize(torch.randn(C, M, D, generator=g, dtype=dtype), dim=-1)
    phrases = normalize(torch.randn(C, K, D, generator=g, dtype=dtype), dim=-1)
    region_mask = torch.rand(C, M, generator=g) < 0.7
    phrase_mask = torch.rand(C, K, generator=g) < 0.7
    region_mask[:, 0] = phrase_mask[:, 0] = True
    if C > 4:
        region_mask[2], phrase_mask[4] = False, False
    return regions, phrases, region_mask, phrase_mask


def dense(regions, phrases, region_mask, phrase_mask, *, direction="both", normalise=False, ids=None, **options):
    found = similarity(regions, phrases, region_mask, phrase_mask, **options)
    scores = {"both": found.total, "t2r": found.t2r, "r2t": found.r2t}[direction]
    if normalise and options.get("subsets") != "single":  # whose scores are means already
        scores = scores / region_mask.sum(dim=1).clamp(min=1)[:, None]
    valid = region_mask.any(dim=1) & phrase_mask.any(dim=1)
    if ids is not None:
        equal = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
        scores = scores.masked_fill(equal, -1e30)
    return triplet_loss(scores, margin=MARGIN, rows=valid) + triplet_loss(scores.T, margin=MARGIN, rows=valid)


def value_and_gradients(function, regions, phrases, *rest, **options):
    r, p = regions.clone().requires_grad_(), phrases.clone().requires_grad_()
    loss = function(r, p, *rest, **options)
    loss.backward()
    return loss.detach(), r.grad, p.grad


def assert_equal(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tile_bytes", [1024, None])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.1},
        {"tau": 1e-3, "zeta": 0.2},
        {"tau": 0.0},
        {"method": "exact"},
        {"subsets": "single"},
        {"tau": 0.1, "t1_activation": "silu", "t2_activation": "arctan"},
    ],
    ids=str,
)
def test_the_sparse_loss_is_the_dense_one_forward_and_gradient(options, normalise, tile_bytes):
    inputs = batch()
    module = PowersetAlignmentLoss(margin=MARGIN, normalise_by_regions=normalise, tile_bytes=tile_bytes, **options)
    found = value_and_gradients(module, *inputs)
    assert found[0] > 0
    assert_equal(found, value_and_gradients(dense, *inputs, normalise=normalise, **options))


@pytest.mark.parametrize("direction", ["t2r", "r2t"])
def test_one_direction_alone(direction):
    inputs = batch()
    module = PowersetAlignmentLoss(margin=MARGIN, tau=0.1, direction=direction)
    assert_equal(
        value_and_gradients(module, *inputs), value_and_gradients(dense, *inputs, direction=direction, tau=0.1)
    )


def test_ties_between_copies_of_a_pair():
    regions, phrases, region_mask, phrase_mask = (x.repeat(3, *[1] * (x.ndim - 1)) for x in batch(C=4))
    module = PowersetAlignmentLoss(margin=MARGIN, tau=0.1)
    found = value_and_gradients(module, regions, phrases, region_mask, phrase_mask)
    expected = value_and_gradients(dense, regions, phrases, region_mask, phrase_mask, tau=0.1)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    # Rounding decides among equal negatives, so single gradients may differ; their sums over the copies may not.
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        copies = (3, 4, *mine.shape[1:])
        torch.testing.assert_close(mine.view(copies).sum(0), theirs.view(copies).sum(0), rtol=1e-11, atol=1e-12)


def test_equal_captions_can_be_no_negatives():
    regions, phrases, region_mask, phrase_mask = batch(C=6)
    for x in (phrases, phrase_mask):
        x[1] = x[0]
    ids = torch.tensor([0, 0, 2, 3, 4, 5])
    module = PowersetAlignmentLoss(margin=MARGIN, tau=0.1)
    found = value_and_gradients(module, regions, phrases, region_mask, phrase_mask, caption_ids=ids)
    assert_equal(found, value_and_gradients(dense, regions, phrases, region_mask, phrase_mask, ids=ids, tau=0.1))
    assert found[0] < module(regions, phrases, region_mask, phrase_mask)
    everything_equal = value_and_gradients(
        module, regions, phrases, region_mask, phrase_mask, caption_ids=torch.zeros(6, dtype=torch.int64)
    )
    assert all((x == 0).all() for x in everything_equal)
    with pytest.raises(ValueError, match=r"caption_ids has shape \(2,\).*expected \(6,\) integers"):
        module(regions, phrases, caption_ids=ids[:2])


@pytest.mark.parametrize("C", [0, 1])
def test_no_negative_is_no_loss(C):
    inputs = batch(C=C)
    found = value_and_gradients(PowersetAlignmentLoss(), *inputs)
    assert all((x == 0).all() for x in found)


def test_nothing_that_can_be_scored_is_no_loss():
    regions, phrases, region_mask, phrase_mask = batch()
    found = value_and_gradients(PowersetAlignmentLoss(), regions, phrases, torch.zeros_like(region_mask), phrase_mask)
    assert all((x == 0).all() for x in found)


@pytest.mark.parametrize("method", ["nla", "exact", "sampled"])
@pytest.mark.parametrize("options", [{}, {"subsets": "single"}, {"zeta": "calibrated"}], ids=str)
@pytest.mark.parametrize(("M", "K"), [(0, 3), (3, 0), (0, 0)])
def test_a_batch_without_any_region_or_phrase_is_no_loss(M, K, options, method):
    regions, phrases = torch.ones(4, M, 5, requires_grad=True), torch.ones(4, K, 5, requires_grad=True)
    loss = PowersetAlignmentLoss(method=method, **options)(regions, phrases)
    loss.backward()
    assert loss == 0
    assert not regions.grad.any()
    assert not phrases.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_scored_in_float32(dtype):
    regions, phrases, *masks = batch(dtype=torch.float32)
    module = PowersetAlignmentLoss(margin=MARGIN)
    halves = regions.to(dtype).requires_grad_(), phrases.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(*halves, *masks)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, module(*(x.float() for x in halves), *masks))
    loss.backward()
    assert halves[0].grad.dtype == dtype


@pytest.mark.parametrize("options", [{}, {"zeta": "calibrated"}, {"method": "sampled"}, {"subsets": "single"}], ids=str)
@pytest.mark.parametrize("absent", [float("nan"), float("inf")])
def test_what_is_absent_has_no_influence_whatever_it_holds(absent, options):
    regions, phrases, region_mask, phrase_mask = batch()
    found = [
        value_and_gradients(
            PowersetAlignmentLoss(margin=MARGIN, **options),
            regions.masked_fill(~region_mask[..., None], fill),
            phrases.masked_fill(~phrase_mask[..., None], fill),
            region_mask,
            phrase_mask,
        )
        for fill in (0.0, absent)
    ]
    for expected, value in zip(*found, strict=True):
        assert torch.isfinite(value).all()
        assert torch.equal(value, expected)


def test_sampled_subsets_are_the_same_in_search_and_gradient_and_new_at_every_step():
    inputs = batch(M=9)
    module = PowersetAlignmentLoss(margin=MARGIN, method="sampled", samples=16)
    first, second = module(*inputs), module(*inputs)
    assert first != second
    again = PowersetAlignmentLoss(margin=MARGIN, method="sampled", samples=16)
    assert again(*inputs) == first
    again.eval()
    assert again(*inputs) == again(*inputs) == second
    many = PowersetAlignmentLoss(margin=MARGIN, method="sampled", samples=2**14)(*inputs)
    exact = PowersetAlignmentLoss(margin=MARGIN, method="exact")(*inputs)
    torch.testing.assert_close(many, exact, rtol=0.02, atol=0)


def test_a_calibrated_zeta_is_smoothed_saved_and_kept_in_evaluation():
    module = PowersetAlignmentLoss(margin=MARGIN, zeta="calibrated")
    losses = [module(*batch(seed=seed)) for seed in range(3)]
    assert 0 < module.zeta_estimate < 1
    assert module.steps == 3
    resumed = PowersetAlignmentLoss(margin=MARGIN, zeta="calibrated")
    module_state = {name: value.clone() for name, value in module.state_dict().items()}
    resumed.load_state_dict(module_state)
    assert resumed(*batch(seed=9)) == module(*batch(seed=9))
    assert torch.equal(resumed.zeta_estimate, module.zeta_estimate)
    resumed.eval()
    before = resumed.zeta_estimate.clone()
    fixed = PowersetAlignmentLoss(margin=MARGIN, zeta=float(before.double()))
    inputs = batch(seed=4)
    torch.testing.assert_close(resumed(*inputs), fixed(*inputs), rtol=1e-12, atol=1e-12)
    assert torch.equal(resumed.zeta_estimate, before)
    assert all(torch.isfinite(loss) for loss in losses)


def test_the_count_of_steps_is_the_buffer_s_whoever_writes_to_it():
    module = PowersetAlignmentLoss()
    for _ in range(2):
        module(*batch())
    assert [copy.deepcopy(module).step, pickle.loads(pickle.dumps(module)).step] == [2, 2]
    assert module.to("meta").steps.is_meta  # nothing is read before it is needed
    module = module.to_empty(device="cpu")
    module.state_dict()["steps"].copy_(torch.tensor(7))  # so do distributed checkpoints
    assert module.step == 7
    averaged = AveragedModel(PowersetAlignmentLoss(), use_buffers=True)
    assert averaged.module.step == 0
    averaged.update_parameters(module)
    assert averaged.module.step == 7
    module.load_state_dict({**module.state_dict(), "steps": torch.tensor(9)}, assign=True)
    module(*batch())
    assert module.step == module.steps == 10
    for count in (3, 4):  # a tensor may come to lie where another was
        module.load_state_dict({**module.state_dict(), "steps": torch.tensor(count)}, assign=True)
    assert module.step == 4
    with torch.inference_mode():
        made = PowersetAlignmentLoss()
        made.steps.fill_(3)
        assert made.step == 3


class Reads(TorchDispatchMode):
    """Counts the times that a device is waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"zeta": "calibrated"}])
def test_counting_reads_the_buffer_once_where_another_has_written_to_it(options):
    module = PowersetAlignmentLoss(backend="torch", **options)

    def reads_of_a_step():
        with Reads() as reads:
            module(*batch())
        return reads.count

    usual = reads_of_a_step()
    module.steps.fill_(7)
    assert [reads_of_a_step() - usual for _ in range(2)] == [1 if options else 0, 0]
    assert module.step == 9


def test_steps_of_a_compiled_trainer_do_not_compile_the_loss_again():
    module, compiled = PowersetAlignmentLoss(margin=MARGIN), []
    trained = torch.compile(lambda r, p: module(r, p) * 2, backend=lambda graph, _: compiled.append(graph) or graph)
    regions, phrases, *_ = batch()
    first = trained(regions, phrases)
    count = len(compiled)
    assert trained(regions, phrases) == trained(regions, phrases) == first
    assert len(compiled) == count <= 1
    assert module.step == 3


@pytest.mark.parametrize("options", [{"subsets": "single"}, {"method": "exact"}], ids=str)
def test_nothing_is_calibrated_where_no_zeta_is_used(options):
    module = PowersetAlignmentLoss(margin=MARGIN, zeta="calibrated", **options)
    fixed = PowersetAlignmentLoss(margin=MARGIN, **options)
    assert_equal(value_and_gradients(module, *batch()), value_and_gradients(fixed, *batch()))
    assert module.zeta_estimate.isnan()
    assert module.fitted == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "softmax"}, r"there is no argument 'form'; give contrast=ContrastConfig\(form=\.\.\.\)"),
        ({"directon": "t2r"}, "there is no argument 'directon'; did you mean direction"),
        ({"margn": 0.1}, "there is no argument 'margn'; did you mean margin"),
        ({"wobble": 1}, "there is no argument 'wobble'; settings: tau, zeta, method"),
    ],
)
def test_an_unknown_argument_is_named_with_its_place(options, message):
    with pytest.raises(TypeError, match=message):
        PowersetAlignmentLoss(**options)


def test_a_calibrated_zeta_follows_its_momentum():
    inputs = batch()
    module = PowersetAlignmentLoss(zeta="calibrated", zeta_momentum=0.9)
    module(*inputs)
    first = float(module.zeta_estimate)
    other = batch(seed=1, C=30)
    fresh = PowersetAlignmentLoss(zeta="calibrated")
    later = {**fresh.state_dict(), "steps": torch.tensor(1)}  # so that it fits the same pairs as the second step
    fresh.load_state_dict(later)
    fresh(*other)
    module(*other)
    assert float(module.zeta_estimate) == pytest.approx(0.9 * first + 0.1 * float(fresh.zeta_estimate), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "direction is 'up'; it must be one of both, t2r, r2t"),
        ({"zeta": "guessed"}, "zeta is 'guessed'; it must be a finite number or 'calibrated'"),
        ({"zeta": float("nan")}, "zeta is nan; it must be a finite number or 'calibrated'"),
        ({"zero": float("nan")}, "zero is nan; it must be a finite number or 'none'"),
        ({"tau": float("inf")}, "tau is inf; it must be a finite number"),
        ({"tau": "0.1"}, "tau is '0.1'; it must be a finite number"),
        ({"tile_bytes": 2.5e6}, "tile_bytes is 2500000.0; it must be a whole number below 2.40 or None"),
        ({"margin": float("inf")}, "margin is inf; it must be 0 or more, or 'adaptive'"),
        ({"contrast": "softmax"}, "contrast is 'softmax'; it must be a powerclip.config.ContrastConfig"),
        ({"t1_activation": "sine"}, "t1_activation is 'sine'; it must be one of softplus"),
        ({"subsets": "some"}, "subsets is 'some'; it must be one of all, single"),
        ({"backend": "abacus"}, "backend is 'abacus'; it must be one of auto, torch"),
        ({"zeta_momentum": 1.0}, "zeta_momentum is 1.0"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PowersetAlignmentLoss(**options)


def test_tiles_too_small_for_anything_are_refused():
    with pytest.raises(ValueError, match="tile_bytes is 3; it must be at least 1024"):
        PowersetAlignmentLoss(tile_bytes=3)(*batch())


# Many processes. Each holds its own number of pairs and its own number of phrase slots.

ROWS = {2: (9, 4), 3: (6, 1, 6)}
OPTIONS = {
    "nla": {"tau": 0.1},
    "calibrated": {"tau": 0.1, "zeta": "calibrated"},
    "sampled": {"method": "sampled", "samples": 32},
    "normalised": {"tau": 0.1, "normalise_by_regions": True},
}


def own_rows(process, size, tensors):
    start = sum(ROWS[size][:process])
    return tuple(x[start : start + ROWS[size][process]].clone() for x in tensors)


def shares(process, size):
    found = {}
    ids = torch.arange(13) // 2
    for name, options in OPTIONS.items():
        module = PowersetAlignmentLoss(margin=MARGIN, **options)
        regions, phrases, region_mask, phrase_mask, own_ids = own_rows(process, size, (*batch(), ids))
        width = max(1, int(phrase_mask.sum(dim=1).max()))
        order = phrase_mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        phrases = phrases.gather(1, order[..., None].expand(-1, -1, phrases.shape[2])).requires_grad_()
        phrase_mask = phrase_mask.gather(1, order)
        regions.requires_grad_()
        loss = module(regions, phrases, region_mask, phrase_mask, caption_ids=own_ids)
        loss.backward()
        back = torch.zeros_like(own_rows(process, size, batch()[1:2])[0])
        back.scatter_(1, order[..., None].expand(-1, -1, back.shape[2]), phrases.grad * phrase_mask[..., None])
        found[name] = (loss.detach(), regions.grad, back)
    alone = PowersetAlignmentLoss(margin=MARGIN, distributed=False)(*own_rows(process, size, batch()))
    found["alone"] = (alone,)
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_many_processes_are_one_with_the_whole_batch(size, tmp_path):
    results = run_on_processes(size, shares, tmp_path)
    ids = torch.arange(13) // 2
    for name, options in OPTIONS.items():
        module = PowersetAlignmentLoss(margin=MARGIN, **options)
        whole = value_and_gradients(module, *batch(), caption_ids=ids)
        assert whole[0] > 0
        for result in results:
            torch.testing.assert_close(result[name][0], whole[0], rtol=1e-9, atol=1e-9)
        for position in (1, 2):
            gathered = torch.cat([result[name][position] for result in results])
            torch.testing.assert_close(gathered, whole[position], rtol=1e-7, atol=1e-9)
    for process, result in enumerate(results):
        alone = PowersetAlignmentLoss(margin=MARGIN)(*own_rows(process, size, batch()))
        assert result["alone"][0] == alone


class Largest(TorchDispatchMode):
    """Notes the most numbers that one tensor of floats holds."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        self.numbers = max(self.numbers, *sizes, 0)
        return found


def largest_of_a_step(process, size):
    g = torch.Generator().manual_seed(process)
    regions = torch.randn(B, 2, 64, generator=g).requires_grad_()
    phrases = torch.randn(B, 12, 64, generator=g).requires_grad_()
    if process == 0:  # one image that is the hardest of all captions: all want it from the same process
        with torch.no_grad():
            regions[0] *= 100
    with Largest() as largest:
        PowersetAlignmentLoss(tau=0.1)(regions, phrases).backward()
    assert regions.grad is not None
    return largest.numbers


B = 16


@pytest.mark.parametrize("size", [2, 3])
def test_no_process_holds_the_phrases_of_all(size, tmp_path):
    share = B * 12 * 64
    for largest in run_on_processes(size, largest_of_a_step, tmp_path):
        assert share <= largest < share * size


def test_a_dtensor_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        regions, phrases, *_ = batch()
        sharded = distribute_tensor(regions, init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(ValueError, match=r"regions is a DTensor; pass this process's own rows.*to_local"):
            PowersetAlignmentLoss()(sharded, phrases)
    finally:
        dist.destroy_process_group()
