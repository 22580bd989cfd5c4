"""Does it matter where in a caption a phrase stands?
Pointing at objects by phrases alone, first and second in a caption.

    python experiments/context.py RUN RUN ...    # of the study scenes-conv, say

Scenes of two different objects, and the caption "a red cube above a blue ball", whether or not that relation holds.
Printed for each run: how often the best patch of a phrase is one of its object's, for "a red cube" and "a blue ball"
as captions of their own, for the first phrase of the caption and for the second; and how often the second one's is
one of the first object's.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.tv_tensors import Mask

import powerclip
from powerclip.evaluate.asked import SCENES_SEED
from powerclip.model import PowerCLIP, make_transforms
from powerclip.phrases import encode_caption
from powerclip.regions import objects_to_grid
from powerclip.report.tables import Cell, Table
from powerclip.scenes.captions import Node, write
from powerclip.scenes.render import object_mask, render
from powerclip.scenes.world import Object, generator, random_scene

SIDE, SCENES = 64, 600


def main(runs: list[str]) -> int:
    """Print a table with a row per run."""
    rows = tuple((Path(run).name, *pointing(powerclip.load(run)[0].eval())) for run in runs)
    columns = ("run", "alone", "first", "second", "second at the first's", "random patch")
    print(Table(columns=columns, rows=rows).markdown())
    return 0


@torch.inference_mode()
def pointing(model: PowerCLIP) -> tuple[Cell, ...]:
    """The shares, as in the columns of the table."""
    hits: dict[str, list[float]] = {name: [] for name in ("alone", "first", "second", "mixed up", "random")}
    transform = make_transforms(model)[1]
    for index in range(SCENES):
        random = generator(SCENES_SEED, "test", index, stream=9)
        scene = random_scene(random, "test", objects=2)
        if len({(thing.colour, thing.shape) for thing in scene}) < 2:
            continue
        image = render(scene, image_size=SIDE, random=random)
        masks = torch.stack([torch.from_numpy(object_mask(thing, image_size=SIDE)) for thing in scene])
        objects = objects_to_grid(transform(Mask(masks.to(torch.uint8))).bool(), model.grid_size).float()  # (2, N)
        one_patch = torch.eye(objects.shape[1], dtype=torch.bool)[None]
        patches, _ = model.encode_regions(transform(image)[None], one_patch)  # (1, N, D)

        def share(phrase: Tensor, thing: int, patches: Tensor = patches, objects: Tensor = objects) -> float:
            return float(objects[thing, (patches[0] @ phrase).argmax()])

        for thing, node in enumerate(map(named, scene)):
            hits["alone"].append(share(phrases(model, Node("NP", (node,)))[0], thing))
            hits["random"].append(float(objects[thing].mean()))
        first, second = phrases(model, Node("S", (named(scene[0]), "above", named(scene[1]))))[:2]
        hits["first"].append(share(first, 0))
        hits["second"].append(share(second, 1))
        hits["mixed up"].append(share(second, 0))
    return tuple(sum(values) / len(values) for values in hits.values())


def named(thing: Object) -> Node:
    """The noun phrase of an object."""
    return Node("NP", ("an" if thing.colour[0] in "aeiou" else "a", thing.colour, thing.shape))


def phrases(model: PowerCLIP, tree: Node) -> Tensor:
    """(K, D) vectors of the noun phrases of a caption of noun phrases, in their order."""
    text, gold = write(tree)
    encoded = encode_caption(text, gold, powerclip.model.make_tokenizer(model), context_length=model.context_length)
    vectors, _ = model.encode_phrases(
        encoded.tokens[None], encoded.leaf_of_token[None], encoded.phrase_spans[None]
    )  # (1, K, D)
    spans = encoded.phrase_spans.tolist()
    short = [k for k, (first, last) in enumerate(spans) if last - first == 2]  # "a red cube" has three words
    return vectors[0, sorted(short, key=lambda k: spans[k])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    sys.exit(main(parser.parse_args().runs))
