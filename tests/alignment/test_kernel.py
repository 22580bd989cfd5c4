import sys

import pytest
import torch

from powerclip.alignment import kernel, similarity
from powerclip.loss import PowersetAlignmentLoss
from tests.support.problems import problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def without_triton(monkeypatch):
    kernel.find_kernel.cache_clear()
    monkeypatch.delitem(sys.modules, "powerclip.alignment.fused", raising=False)
    monkeypatch.delattr("powerclip.alignment.fused", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)  # the import fails
    yield
    kernel.find_kernel.cache_clear()


def inputs_of(*shape, seed=0):
    """Vectors that float16 holds exactly, some absent and then NaN,
    an image without regions, a caption without phrases."""
    regions, phrases, region_mask, phrase_mask = problem(*shape, D=20, seed=seed)
    region_mask[2], phrase_mask[1] = False, False
    regions, phrases = ((x * 64).round().div(64).float() for x in (regions, phrases))
    regions[~region_mask], phrases[~phrase_mask] = torch.nan, torch.nan
    return tuple(x.to(DEVICE) for x in (regions, phrases, region_mask, phrase_mask))


def test_the_kernel_gives_the_similarities_of_pytorch():
    pytest.importorskip("triton")
    inputs = inputs_of(5, 6, 3, 5)
    for zeta in (0.3, "calibrated"):
        torch_, triton = (similarity(*inputs, tau=0.01, zeta=zeta, backend=backend) for backend in ("torch", "triton"))
        # both round each of the M D products of a score, and M sums of up to 2 M
        limit = 2 * (3 * 20 * 2 + 4 * 3 * 3) * 2**-23
        for name in ("t2r", "r2t"):
            expected, found = getattr(torch_, name), getattr(triton, name)
            torch.testing.assert_close(found, expected, rtol=0, atol=limit)
            assert not found[2].any()
            assert not found[:, 1].any()


@pytest.mark.parametrize("options", [{"tau": 0.01}, {"zeta": "calibrated", "normalise_by_regions": True}], ids=str)
def test_the_loss_and_its_gradient_are_those_of_pytorch(options):
    """The kernel only chooses the negatives: where it chooses the same ones, all bits are the same."""
    pytest.importorskip("triton")
    regions, phrases, *masks = inputs_of(9, 9, 3, 5)
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0], device=DEVICE)
    found = []
    for backend in ("torch", "triton"):
        r, p = regions.clone().requires_grad_(), phrases.clone().requires_grad_()
        loss = PowersetAlignmentLoss(backend=backend, **options)(r, p, *masks, caption_ids=ids)
        loss.backward()
        found.append((loss.detach(), r.grad, p.grad))
    assert found[0][0] > 0
    for expected, mine in zip(*found, strict=True):
        assert torch.isfinite(mine).all()
        assert torch.equal(mine, expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "exact"}, "it has only method 'nla'"),
        ({"t1_activation": "gelu"}, "with the activations softplus and tanh"),
        ({"subsets": "single"}, "over all subsets"),
    ],
    ids=str,
)
def test_what_the_kernel_cannot_do_is_refused_and_otherwise_pytorchs(options, reason):
    pytest.importorskip("triton")
    inputs = inputs_of(3, 3, 2, 2)
    with pytest.raises(ValueError, match=f"backend 'triton' cannot be used: .*{reason}.*; use 'auto' or 'torch'"):
        similarity(*inputs, backend="triton", **options)
    expected = similarity(*inputs, backend="torch", **options).total
    assert torch.equal(similarity(*inputs, **options).total, expected)


def test_float64_is_refused():
    pytest.importorskip("triton")
    regions, phrases, *masks = inputs_of(3, 3, 2, 2)
    with pytest.raises(ValueError, match="it has no torch.float64; use 'auto'"):
        similarity(regions.double(), phrases.double(), *masks, backend="triton")


def test_a_cpu_is_refused_unless_triton_is_interpreted(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr("powerclip.alignment.fused.INTERPRETED", False)
    with pytest.raises(ValueError, match="it needs a GPU, and the vectors are on cpu; use 'auto' or 'torch'"):
        similarity(*(x.cpu() for x in inputs_of(3, 3, 2, 2)), backend="triton")


@pytest.mark.usefixtures("without_triton")
def test_without_triton_auto_is_pytorch_and_triton_says_what_is_missing():
    inputs = inputs_of(3, 3, 2, 2)
    assert torch.equal(similarity(*inputs).total, similarity(*inputs, backend="torch").total)
    for ask in (lambda: similarity(*inputs, backend="triton"), lambda: PowersetAlignmentLoss(backend="triton")):
        with pytest.raises(ValueError, match="cannot be used: the package triton is not installed .*; use 'auto'"):
            ask()
