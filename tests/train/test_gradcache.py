"""The gradient in pieces against that of the complete batch."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from powerclip.loss import (
    CLIPLoss,
    FILIPLoss,
    PowerCLIPLoss,
    PowersetAlignmentLoss,
    SigLIPLoss,
    SPARCLoss,
    SuperCLIPLoss,
)
from powerclip.train.gradcache import backward, join
from powerclip.types import Batch, Features

B, M, K, T, N, D = 7, 3, 2, 4, 4, 6


class Towers(nn.Module):
    """Linear towers with dropout: Batch to Features, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(12, N * D, dtype=torch.float64)
        self.text = nn.Linear(T, T * D, dtype=torch.float64)
        self.dropout = nn.Dropout(0.3)
        self.logit_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def forward(self, batch):
        patches = self.dropout(self.image(batch.images.flatten(1))).view(-1, N, D)
        tokens = self.dropout(self.text(batch.tokens.double())).view(-1, T, D)
        wide = K - len(batch) % 2  # as of phrases read alone, whose tokens are as many as a piece needs
        return Features(
            image=nn.functional.normalize(patches.mean(1), dim=-1),
            text=nn.functional.normalize(tokens.mean(1), dim=-1),
            regions=nn.functional.normalize(patches[:, :M], dim=-1),
            region_mask=batch.region_masks.any(-1),
            phrases=nn.functional.normalize(tokens[:, :wide], dim=-1),
            phrase_mask=batch.phrase_spans[:, :wide, 0] >= 0,
            logit_scale=self.logit_scale.exp(),
            logit_bias=self.logit_bias,
            patches=patches,
            tokens=tokens,
            token_mask=batch.tokens > 0,
            token_ids=batch.tokens,
        )


def batch(n=1):
    """B images with n captions each."""
    g = torch.Generator().manual_seed(1)
    spans = torch.zeros(B * n, K, 2, dtype=torch.int64)
    spans[3, 1] = -1
    return Batch(
        images=torch.randn(B, 3, 2, 2, generator=g, dtype=torch.float64),
        tokens=torch.randint(1, 9, (B * n, T), generator=g),
        leaf_of_token=torch.zeros(B * n, T, dtype=torch.int64),
        phrase_spans=spans,
        region_masks=torch.rand(B, M, N, generator=g) < 0.6,
        keys=tuple("abcdefg"),
    )


def trained_head(loss):
    """SuperCLIP's loss as if its head had been trained: at 0 it gives the towers no gradient."""
    nn.init.normal_(loss.head.weight, generator=torch.Generator().manual_seed(2))
    return loss


LOSSES = {
    "powerclip": lambda: PowerCLIPLoss(powerset=PowersetAlignmentLoss(tau=0.1), base=CLIPLoss()),
    "powerclip, sparc": lambda: PowerCLIPLoss(powerset=PowersetAlignmentLoss(tau=0.1), base=SPARCLoss()),
    "powerclip, siglip": lambda: PowerCLIPLoss(powerset=PowersetAlignmentLoss(tau=0.1)),
    "powerclip by its gradient": lambda: PowerCLIPLoss(
        gradient_ratio=0.5,
        gradient_cap=0.4,
        warmup_steps=2,
        powerset=PowersetAlignmentLoss(tau=0.1),
        base=CLIPLoss(),
    ),
    "siglip": SigLIPLoss,
    "filip": FILIPLoss,
    "sparc": SPARCLoss,
    "superclip": lambda: trained_head(SuperCLIPLoss(dimension=D, vocabulary=9).double()),
}


def part_of(whole, first, end):
    """Some of the images, with their captions."""
    each = {name: len(value) // B for name, value in vars(whole).items()}
    return Batch(**{name: value[first * each[name] : end * each[name]] for name, value in vars(whole).items()})


@pytest.mark.parametrize(("pieces", "n"), [(1, 1), (2, 1), (3, 1), (7, 1), (3, 2)])
@pytest.mark.parametrize("name", LOSSES)
def test_pieces_give_the_gradient_of_the_whole_with_dropout_replayed(name, pieces, n):
    bounds = [round(piece * B / pieces) for piece in range(pieces + 1)]
    parts = [part_of(batch(n), first, end) for first, end in pairwise(bounds)]
    results = []
    for way in ("whole", "pieces"):
        model, loss = Towers(), LOSSES[name]()
        if way == "whole":
            features = []
            for number, part in enumerate(parts):
                torch.manual_seed(number)
                features.append(model(part))
            output = loss(join(features))
            output.total.backward()
        else:
            options = {"measure": True} if isinstance(loss, PowerCLIPLoss) else {}  # as in a logged step
            output = backward(model, loss, parts, forward=lambda m, b: m(b), seed=torch.manual_seed, **options)
            assert bool(output.measures) == bool(options)
        results.append((output.total.detach(), *(p.grad for p in model.parameters())))
    for whole, mine in zip(*results, strict=True):
        if whole is None:
            assert mine is None or (mine == 0).all()
        else:
            torch.testing.assert_close(mine, whole, rtol=1e-10, atol=1e-12)
