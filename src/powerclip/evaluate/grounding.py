"""Phrase grounding: is what a model finds for a phrase in the object that the phrase names?

Everything is measured on the patch grid. An object's patches are those of ``objects_to_grid``, its box the smallest one
that holds them.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.tv_tensors import Mask

from powerclip.alignment import grounding
from powerclip.evaluate.datasets.images import key_of
from powerclip.evaluate.encode import Encoder, Tensors, powerclip_model
from powerclip.evaluate.metrics import Estimate
from powerclip.model import PowerCLIP, make_transforms
from powerclip.model.pooling import at_least_float32, pool_regions, pool_tokens
from powerclip.phrases import clean_caption, encode_captions, whole_caption_tree
from powerclip.regions import fixed_boxes, objects_to_grid
from powerclip.tasks import Grounding, Masks, Picture

POINTING = ("patch", "contribution", "patch_last", "contribution_last")
METRICS = (*POINTING, "region", "precision", "recall")

Item = tuple[Picture, Masks, Tensor]
"""An image, its O objects, and (O, 2, D) the vectors of their phrases and of the phrases' last tokens."""


def grounding_metrics(encoder: Encoder, task: Grounding) -> dict[str, float]:
    """Where a PowerCLIP model sees the phrases of a task, as shares of all phrases or means over them.

    ``patch``, the pointing game: the best patch, as a region of its own, is one of the object's. ``contribution``: the
    same, but the best patch is the one that adds most to a region's similarity, by its dot product with the phrase: a
    region's vector is the sum of its patches, so that longer patches count more. Where regions keep those lengths
    (``region_norm``) the two are the same; with unit vectors ``patch`` goes by the cosine. ``patch_last`` and
    ``contribution_last``: both again, for the phrase's last token in place of the phrase. In a causal text tower it has
    read the whole phrase, and of a model that was not trained on phrases it may be the better question.

    ``region``: of the boxes of all objects of the image and those of ``fixed_boxes``, the best has an IoU of at least
    0.5 with the object's. Of candidates that tie for the best, each counts its share. ``precision`` and ``recall``: of
    the area of all those boxes that the model chooses for the phrase (``powerclip.alignment.grounding``) against the
    object's patches; both are 0 if it chooses none.

    The chance of ``precision`` and ``recall`` is that of an area of the same size anywhere, the shares of the image
    that the object and the chosen area have; that of the others is a random candidate's. Phrases of one image count as
    one draw in the standard errors. An object that the image transform cuts away is left out.

    ValueError if the model has no regions and phrases, or the task's parts do not fit together.
    """
    model = powerclip_model(encoder.model, f"task {task.name}")
    if not len(task.images) == len(task.phrases) == len(task.masks):
        raise ValueError(
            f"task {task.name} has {len(task.images)} images, phrases for {len(task.phrases)} and masks for "
            f"{len(task.masks)}; give each image its phrases and their masks"
        )
    transform, fixed = make_transforms(model)[1], fixed_boxes(model.grid_size)
    ground = partial(grounding, zero=model.scoring.zero, means=model.vector_means)
    one_patch = torch.eye(fixed.shape[1]).bool()  # (N, N)

    def prepare(items: Sequence[Item]) -> Tensors:
        objects, candidates, phrases = [], [], []
        for _, open_masks, asked in items:
            masks = torch.from_numpy(open_masks()).to(torch.uint8)  # (O, h, w)
            if len(masks) != len(asked):
                raise ValueError(f"task {task.name} has an image with {len(asked)} phrases and {len(masks)} masks")
            objects_ON = objects_to_grid(transform(Mask(masks)).bool(), model.grid_size)
            objects.append(objects_ON)
            candidates.append(torch.cat([one_patch, fixed, boxes_of(objects_ON, model.grid_size)]))
            phrases.append(asked)
        padded = (pad_sequence(rows, batch_first=True) for rows in (candidates, objects, phrases))
        return *encoder.open_images([picture for picture, *_ in items]), *padded

    def embed(images: Tensor, candidates: Tensor, objects: Tensor, phrases: Tensor) -> Tensors:
        patches = at_least_float32(model.encode_patches(images))
        regions, present = pool_regions(patches, candidates, norm=model.region_norm)
        values = []
        for patches_ND, regions_MD, present_M, masks_MN, objects_ON, asked in zip(
            patches, regions, present, candidates, objects, phrases, strict=True
        ):
            N = objects_ON.shape[1]
            phrases_OD, last_OD = asked.unbind(dim=1)
            boxes = present_M.nonzero()[:, 0][N:]
            found = ground(regions_MD[boxes], phrases_OD, subsets=model.scoring.subsets)
            targets = boxes_of(objects_ON, model.grid_size)
            pointed = torch.stack(
                [s for q in (phrases_OD, last_OD) for s in (ground(regions_MD[:N], q).similarities, q @ patches_ND.T)]
            )
            values.append(measure(pointed, found.similarities, found.subsets, objects_ON, masks_MN[boxes], targets))
        return torch.stack(values), objects.any(dim=2)

    vectors = _phrase_vectors(encoder, model, [phrase for phrases in task.phrases for phrase in phrases])
    items = list(zip(task.images, task.masks, torch.split(vectors, [len(p) for p in task.phrases]), strict=True))
    keys = [
        (key_of(picture), (id(masks), tuple(p))) for (picture, masks, _), p in zip(items, task.phrases, strict=True)
    ]
    rows = encoder.once(items, keys, prepare, embed)
    image = torch.tensor([i for i, (_, present) in enumerate(rows) for _ in range(int(present.sum()))])
    if not len(image):
        raise ValueError(f"task {task.name} has no phrase of an object in view; nothing can be measured")
    values_QV = torch.cat([values[present] for values, present in rows])
    found, chances = values_QV.chunk(2, dim=1)
    return {name: Estimate.of(found[:, v], clusters=image, chance=chances[:, v]) for v, name in enumerate(METRICS)}


def measure(
    pointed: Tensor, regions: Tensor, chosen: Tensor, objects: Tensor, candidates: Tensor, boxes: Tensor
) -> Tensor:
    """(Q, 2 V) float32: the V ``METRICS`` of Q phrases of one image, and the chance of each.

    Args:
        pointed: (P, Q, N) scores of the phrases and single patches, by each of ``POINTING``.
        regions, chosen: (Q, M) similarities of the phrases and the candidate boxes, and bool, which are chosen.
        objects, boxes: (Q, N) bool, the patches and the box of the object that a phrase names.
        candidates: (M, N) bool, the patches of the candidate boxes.
    """
    shared_QM = boxes.float() @ candidates.T.float()
    together_QM = boxes.sum(dim=1)[:, None] + candidates.sum(dim=1) - shared_QM
    right_QM = 2 * shared_QM >= together_QM
    area_QN = (chosen.float() @ candidates.float()) > 0
    hit_Q, area_Q, object_Q = (x.sum(dim=1) for x in (area_QN & objects, area_QN, objects))
    found = (
        *(_share_of_best(similarities, objects) for similarities in pointed),
        _share_of_best(regions, right_QM),
        hit_Q / area_Q.clamp(min=1),
        hit_Q / object_Q.clamp(min=1),
    )
    share_Q = objects.float().mean(dim=1)
    chances = *(share_Q for _ in pointed), right_QM.float().mean(dim=1), share_Q, area_QN.float().mean(dim=1)
    return torch.stack([*found, *chances], dim=1)


def boxes_of(objects: Tensor, grid: tuple[int, int]) -> Tensor:
    """(O, N) bool: the smallest box on the grid that holds the patches of each object, (O, N) bool; none for none."""
    cells = objects.view(-1, *grid)
    rows, columns = (_between(cells.any(dim=dim)) for dim in (2, 1))
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def _between(line: Tensor) -> Tensor:
    """(O, size) bool: from the first True of each line to its last."""
    return (line.cumsum(dim=1) > 0) & (line.flip(1).cumsum(dim=1) > 0).flip(1)


def _share_of_best(scores: Tensor, right: Tensor) -> Tensor:
    """(Q,) the share of the candidates with the highest of (Q, M) scores that are right; 0 where a score is NaN."""
    best = scores == scores.amax(dim=1, keepdim=True)
    return (best & right).sum(dim=1) / best.sum(dim=1).clamp(min=1)


def _phrase_vectors(encoder: Encoder, model: PowerCLIP, phrases: list[str]) -> Tensor:
    """(Q, 2, D) the vectors of phrases, each encoded alone, and of their last tokens.

    Of a model of tokens alone, a phrase's vector is the mean of its tokens'.
    """

    def prepare(texts: Sequence[str]) -> Tensors:
        texts = [clean_caption(text) for text in texts]
        trees = [whole_caption_tree(text) for text in texts]
        return encode_captions(texts, trees, encoder.tokenizer, context_length=model.context_length)

    def embed(tokens: Tensor, leaf_of_token: Tensor, spans: Tensor) -> Tensors:
        vectors, mask = model.encode_phrases(tokens, leaf_of_token, spans)  # (B, K, D), (B, K)
        if model.phrase_unit == "token":
            whole = vectors.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        else:
            whole = vectors[:, 0]  # of "both", the phrase's tokens follow
        single, present = pool_tokens(model.encode_tokens(tokens), leaf_of_token)  # (B, T, D), (B, T)
        last_B = torch.where(present, torch.arange(present.shape[1], device=present.device), 0).amax(dim=1)
        return (torch.stack([whole, single[torch.arange(len(single)), last_B]], dim=1),)

    rows = encoder.once(phrases, [(phrase, "whole phrase") for phrase in phrases], prepare, embed)
    return torch.stack([row for (row,) in rows]) if rows else torch.zeros(0, 2, 1)
