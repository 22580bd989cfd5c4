"""Draws the pictures of the method next to this file: what is matched, on a generated scene, and how it is computed.

With a run or model folder, docs/dense.png instead: the same scene, and where the model sees each of three texts.

Run: python docs/figures.py [RUN]
"""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import powerclip
from powerclip.alignment import similarity
from powerclip.loss import triplet_loss
from powerclip.phrases import Phrase, load_parser
from powerclip.scenes.render import object_mask, render
from powerclip.scenes.world import Object

SIDE = 240
RED, BLUE, YELLOW, GREEN = "#d62728", "#1f58d6", "#c9a800", "#2ca02c"
CAPTION = "a red umbrella above a blue cat"


def scene() -> tuple[Object, ...]:
    """A red umbrella above a blue cat, and a yellow star that the caption does not mention."""
    return (
        Object(shape="umbrella", colour="red", size="big", x=0.3, y=0.26),
        Object(shape="cat", colour="blue", size="big", x=0.36, y=0.72),
        Object(shape="star", colour="yellow", size="small", x=0.8, y=0.4),
    )


def show_regions(axes: Axes, shown: tuple[int, ...], *, dim: bool) -> None:
    """The scene with the outlines and numbers of some regions, the rest of it pale if ``dim``."""
    image = np.asarray(render(scene(), image_size=SIDE, random=np.random.default_rng(3)))
    masks = [object_mask(thing, image_size=SIDE) for thing in scene()]
    chosen = np.any([masks[m] for m in shown] or [np.zeros((SIDE, SIDE), bool)], axis=0)[..., None]
    axes.imshow(np.where(chosen, image, 235 + image // 18) if dim else image)
    for number, (mask, colour) in enumerate(zip(masks, (RED, BLUE, YELLOW), strict=True)):
        if number in shown:
            axes.contour(mask, levels=[0.5], colors=[colour if not dim else "black"], linewidths=1.6)
            rows, columns = np.nonzero(mask)
            axes.text(columns.max() + 4, rows.min() + 4, str(number + 1), fontsize=11, fontweight="bold", va="top")
    axes.set_axis_off()


def draw_method() -> Figure:
    """method.png: what training aims for."""
    panels = [
        ("image with M = 3 regions\n(2^M = 8 sets of regions)", (0, 1, 2), False),
        ('"a red umbrella"\n{1}', (0,), True),
        ('"a blue cat"\n{2}', (1,), True),
        ('"above a blue cat"\n{2}', (1,), True),
        (f'"{CAPTION}"\n{{1, 2}}', (0, 1), True),
    ]
    figure = Figure(figsize=(13, 3.2), dpi=120, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    figure.suptitle(
        "Every phrase of the caption is matched with its best set of regions, "
        "and every set of regions with its best phrase",
        fontsize=12,
    )
    for axes, (title, shown, dim) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        show_regions(axes, shown, dim=dim)
        axes.set_title(title, fontsize=11)
    return figure


def draw_powerset() -> Figure:
    """method-powerset.png: the scores of all sets of regions for one phrase, from made-up similarities."""
    s = (0.6, 0.5, -0.3)
    subsets = [A for size in range(4) for A in combinations(range(3), size)]
    scores = [sum(s[m] for m in A) for A in subsets]
    figure = Figure(figsize=(13, 2.5), dpi=120, layout="constrained")
    figure.suptitle(
        f'All 2^3 sets of regions, scored against "{CAPTION}" with s = {s[0]}, {s[1]}, {s[2]}: '
        "the best holds the regions with s > 0",
        fontsize=12,
    )
    for axes, A, score in zip(figure.subplots(1, len(subsets)), subsets, scores, strict=True):
        show_regions(axes, A, dim=True)
        best = score == max(scores)
        name = "{" + ", ".join(str(m + 1) for m in A) + "}"
        axes.set_title(f"{name}\nQ = {score:.1f}", fontsize=11, color=GREEN if best else "black")
        if best:
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=GREEN, linewidth=4)
    return figure


def draw_tree() -> Figure:
    """method-tree.png: the phrases that the parser finds in the caption, over its words."""
    (tree,) = load_parser().parse([CAPTION])
    looks = {(True, False): (RED, "{1}"), (False, True): (BLUE, "{2}"), (True, True): ("#7a3fa8", "{1, 2}")}

    def height(node: Phrase) -> int:
        inside = (p for p in tree.phrases if p != node and node.first <= p.first and p.last <= node.last)
        return 1 + max(map(height, inside), default=0)

    figure = Figure(figsize=(9, 2.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, (start, end) in enumerate(tree.leaves):
        axes.text(i + 0.5, 0.45, CAPTION[start:end], fontsize=13, ha="center", va="center")
    for phrase in tree.phrases:
        text = CAPTION[tree.leaves[phrase.first][0] : tree.leaves[phrase.last][1]]
        colour, regions = looks["umbrella" in text, "cat" in text]
        left, bottom, width = phrase.first + 0.06, height(phrase), phrase.last - phrase.first + 0.88
        axes.add_patch(Rectangle((left, bottom), width, 0.8, facecolor=colour, alpha=0.2, edgecolor=colour))
        axes.text(left + width / 2, bottom + 0.4, f"{phrase.label}  {regions}", fontsize=11, ha="center", va="center")
    axes.set(xlim=(0, len(tree.leaves)), ylim=(0, 4))
    axes.set_axis_off()
    axes.set_title(
        f"The {len(tree.phrases)} phrases of a caption are the nodes of its tree; "
        "in brackets the regions that each is about",
        fontsize=12,
    )
    return figure


def unit_vectors(*shape: int, seed: int, towards: torch.Tensor | None = None) -> torch.Tensor:
    """Random unit vectors, or ones that lean towards others."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.nn.functional.normalize(x, dim=-1)
    return x if towards is None else torch.nn.functional.normalize(x + towards, dim=-1)


def draw_aggregators() -> Figure:
    """method-aggregators.png: the two formulas, and their values beside enumeration over random unit vectors."""
    regions, phrases = unit_vectors(32, 10, 64, seed=0), unit_vectors(32, 8, 64, seed=1)
    exact = similarity(regions, phrases, method="exact")
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    figure = Figure(figsize=(13, 3.6), dpi=120, layout="constrained")
    first, second, third, fourth = figure.subplots(1, 4)
    for tau in (1.0, 0.3, 0.1):
        first.plot(x, tau * torch.nn.functional.softplus(x / tau), label=f"tau = {tau}")
    first.plot(x, x.relu(), "k--", label="max(s, 0)")
    first.set(title="T1 adds tau softplus(s / tau)", xlabel="s")
    for number, tau in enumerate((0.1, 0.03, 0.001)):
        t1 = similarity(regions, phrases, tau=tau).t2r
        second.plot(exact.t2r.flatten(), t1.flatten(), ".", markersize=3, color=f"C{number}", label=f"tau = {tau}")
    second.set(title="T1 beside the exact value", xlabel="T2R, enumerated")
    for number, zeta in enumerate((0.0, 0.75, 1.0)):
        third.plot(x, x + zeta * torch.cosh(x).log(), color=f"C{number}", label=f"zeta = {zeta}")
        t2 = similarity(regions, phrases, zeta=zeta).r2t
        fourth.plot(exact.r2t.flatten(), t2.flatten(), ".", markersize=3, color=f"C{number}", label=f"zeta = {zeta}")
    t2 = similarity(regions, phrases, zeta="calibrated").r2t
    fourth.plot(exact.r2t.flatten(), t2.flatten(), ".", markersize=3, color="C3", label="calibrated")
    third.set(title="T2 adds x + zeta log cosh x", xlabel="x = s / (2 tau)")
    fourth.set(title="T2 beside the exact value", xlabel="R2T, enumerated")
    for axes, values in ((second, exact.t2r), (fourth, exact.r2t)):
        ends = [values.min(), values.max()]
        axes.plot(ends, ends, "k--", linewidth=1)
    for axes in (first, second, third, fourth):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, markerscale=3)
    return figure


def draw_sparse() -> Figure:
    """method-sparse.png: which scores of a batch the triplet loss has a gradient for."""
    C = 16
    images = unit_vectors(C, 1, 32, seed=2)
    regions = unit_vectors(C, 6, 32, seed=3, towards=0.5 * images)
    phrases = unit_vectors(C, 5, 32, seed=4, towards=0.5 * images)
    scores = similarity(regions, phrases).total.requires_grad_()
    loss = triplet_loss(scores, margin=1.0) + triplet_loss(scores.T, margin=1.0)
    (gradient,) = torch.autograd.grad(loss, scores)
    figure = Figure(figsize=(9, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.colorbar(left.imshow(scores.detach().numpy(), cmap="viridis"), ax=left, shrink=0.85)
    left.set_title(f"the scores S of {C} images and captions", fontsize=11)
    limit = gradient.abs().max()
    figure.colorbar(right.imshow(gradient.numpy(), cmap="bwr", vmin=-limit, vmax=limit), ax=right, shrink=0.85)
    count = int((gradient != 0).sum())
    right.set_title(f"the loss's gradient: {count} of {C * C} are not 0\n(at most 3C = {3 * C})", fontsize=11)
    for axes in (left, right):
        axes.set(xlabel="caption", ylabel="image", xticks=[], yticks=[])
    return figure


def draw_dense(run: str) -> Figure:
    """dense.png: the cosine of every patch with texts on one scale, and less their mean."""
    texts = ["a red umbrella", "a blue cat", "a green anchor"]
    model, preprocess, tokenizer = powerclip.load(run)
    image = render(scene(), image_size=SIDE, random=np.random.default_rng(3))
    with torch.inference_mode():
        text = model.encode_text(tokenizer(texts), normalize=True)
        patches = torch.nn.functional.normalize(model.encode_patches(preprocess(image)[None])[0], dim=-1)
    maps = (text @ patches.T).unflatten(1, model.grid_size)  # (3, rows, columns)
    figure = Figure(figsize=(11, 5.6), dpi=120, layout="constrained")
    axes = figure.subplots(2, 1 + len(texts))
    for row, (values, label) in enumerate(((maps, "cosine"), (maps - maps.mean(dim=0), "less the mean of the texts"))):
        for name, panel, value in zip(texts, axes[row, 1:], values, strict=True):
            size = {"extent": (0, SIDE, SIDE, 0), "vmin": values.min(), "vmax": values.max()}
            shown = panel.imshow(value.numpy(), **size)
            for thing in scene():
                mask = object_mask(thing, image_size=SIDE)
                panel.contour(mask, levels=[0.5], colors=["white"], linewidths=1.2)
            panel.set_title(f'"{name}"' if row == 0 else "", fontsize=11)
        figure.colorbar(shown, ax=list(axes[row, 1:]), shrink=0.9, label=label)
    axes[0, 0].imshow(image)
    for panel in axes.flat:
        panel.set_axis_off()
    return figure


FIGURES = {
    "method": draw_method,
    "method-powerset": draw_powerset,
    "method-tree": draw_tree,
    "method-aggregators": draw_aggregators,
    "method-sparse": draw_sparse,
}

if __name__ == "__main__":
    drawn = {"dense": draw_dense(sys.argv[1])} if sys.argv[1:] else {name: draw() for name, draw in FIGURES.items()}
    for name, figure in drawn.items():
        figure.savefig(Path(__file__).with_name(f"{name}.png"))
