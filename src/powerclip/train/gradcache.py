"""The gradient of one large batch in pieces that fit into memory (GradCache: Gao et al., RepL4NLP 2021).

A contrastive loss compares all pairs of a batch, so the gradients of small batches do not add up to that of the large
one. But the loss only needs the features: they are computed piece by piece without a graph, the loss of all of them
gives every feature's gradient, and each piece is run again, from the same random state, to carry its part into the
weights. The result is the large batch's gradient, up to rounding, at the price of a second forward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from powerclip.distributed import no_sync_unless_last, world_size
from powerclip.types import Batch, Features, LossOutput

SHARED = ("logit_scale", "logit_bias")
"""Features of the model rather than of the batch's rows."""

IMAGE = ("image", "regions", "patches")
"""Features of the image tower; all but these and the shared ones are the text tower's."""


def backward(
    model: nn.Module,
    loss: Callable[..., LossOutput],
    pieces: Sequence[Batch],
    *,
    forward: Callable[[nn.Module, Batch], Features],
    seed: Callable[[int], None],
    trained: Callable[[str], bool] = lambda feature: True,
    **options: Any,
) -> LossOutput:
    """Put the gradient of the loss of all pieces, a batch cut along its rows, into the parameters; return the loss.

    ``forward`` runs the model on a piece, under autocast if the run uses it. ``seed`` sets the random state of a piece
    before each of its two passes. ``trained`` says which features, by name, depend on a trained parameter: in several
    pieces, too, the loss gets only these with ``requires_grad``. ``loss`` is called once, with ``options``; what it
    returns has no graph if there are several pieces. If it has a true ``needs_dense``, it is given the vectors of
    patches and tokens.
    Under a process group the loss is that of all processes' pieces, and what a parallel model averages is multiplied by
    their number, as ``powerclip.distributed.gather`` requires.
    """
    if len(pieces) == 1:
        seed(0)
        output = loss(forward(model, pieces[0]), **options)
        (output.total * world_size()).backward()  # type: ignore[no-untyped-call]
        return output
    keep_dense = bool(getattr(loss, "needs_dense", False))  # they would fill the memory of a large batch
    dropped: dict[str, Any] = {} if keep_dense else dict.fromkeys(("patches", "tokens", "token_mask", "token_ids"))
    found = []
    with torch.no_grad():
        for number, piece in enumerate(pieces):
            seed(number)
            found.append(replace(forward(model, piece), **dropped))
    features = join(found)
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in _tensors(features).items()
        if x.is_floating_point() and trained(name)
    }
    output = loss(replace(features, **leaves), **options)
    (output.total * world_size()).backward()  # type: ignore[no-untyped-call]
    gradients = {name: value.grad for name, value in leaves.items() if value.grad is not None}
    start, images = 0, sum(map(len, pieces))
    for number, piece in enumerate(pieces):
        rows = slice(start, start + len(piece))
        start = rows.stop
        with no_sync_unless_last(model, last=number == len(pieces) - 1):
            seed(number)
            parts = _tensors(forward(model, piece))
            own = {
                name: g / len(pieces) if name in SHARED else _rows(g, rows, of=images, like=parts[name])
                for name, g in gradients.items()
            }
            surrogate = torch.stack([(parts[name] * gradient).sum() for name, gradient in own.items()]).sum()
            surrogate.backward()  # type: ignore[no-untyped-call]
    terms = {name: term.detach() for name, term in output.terms.items()}
    return replace(output, total=output.total.detach(), terms=terms)


def _rows(x: Tensor, images: slice, *, of: int, like: Tensor) -> Tensor:
    """The rows of some of the images, of a tensor with one row or several for each, as wide as another tensor."""
    each = len(x) // of
    return x[images.start * each : images.stop * each, : like.shape[1]]


def join(parts: Sequence[Features]) -> Features:
    """The features of all pieces as one batch's."""
    first, values = _tensors(parts[0]), [_tensors(part) for part in parts]
    joined = {name: _joined([value[name] for value in values]) for name in first if name not in SHARED}
    return replace(parts[0], **joined, **{name: first[name].clone() for name in SHARED if name in first})


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all, as wide as the widest; of phrases read alone, each piece has a number of tokens of its own."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, 0) * (part.ndim - 2) + (0, width - part.shape[1])) for part in parts])


def _tensors(features: Features) -> dict[str, Tensor]:
    return {field.name: value for field in fields(features) if (value := getattr(features, field.name)) is not None}
