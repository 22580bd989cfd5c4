"""How fast is preparing per core? Pairs per second with one process, by what is done, and the time for CC12M.

    python benchmarks/preparing.py                             # packing, parsing, superpixels
    python benchmarks/preparing.py --sam random --images 4     # SAM ViT-B of random weights: its cost, not its masks
    python benchmarks/preparing.py --sam random-huge --device cuda --images 64 --at-once 1 8 16
    python benchmarks/preparing.py --sam sam2-small --device cuda
    python benchmarks/preparing.py --floor  # the arithmetic that SAM needs, and the least time for it on 8 GPUs

SAM is measured by itself, with different numbers of images at once: images per second, and which share of the time
the encoder alone needs, which is the floor: everything else (resizing, decoding points, choosing among masks,
encoding them) comes on top. The threshold of the predicted IoU is set so that 150 masks of an image pass, about
what SAM's own weights keep.

The images are noise with a photograph's spectrum (amplitude 1/f), about 75 kB at 384 x 288; the captions are
the gold list's. The rows are measured in one run, by the same job that `powerclip prepare` runs; what it
loads first is not counted.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from parsing import read_gold
from PIL import Image
from rich.console import Console
from rich.table import Table

from powerclip.config import PrepareConfig
from powerclip.prepare.annotate import ShardTask, make_shard, parser_of, proposer_of
from powerclip.prepare.tars import tar_items
from powerclip.regions.sam import GPU_POINTS, SAM, SAM_MODELS, MaskChoice

CC12M_PAIRS = 12_423_374
CORES, GPUS = 32, 8
GPU_FLOP_PER_S = 790e12
"""What an H200 reached in large bf16 matrix products."""
POINTS = 32 * 32
"""Points that SAM's mask generation prompts per image; a call of the decoder takes ``GPU_POINTS`` of them."""
PASSING = 150
"""Masks of an image above the threshold."""
SIDE = 1024
"""Pixels of a side of what SAM sees."""


def write_source(path: Path, images: int) -> None:
    """A tar of pairs as img2dataset writes them."""
    rng = np.random.default_rng(0)
    captions = [caption for caption, _, heading in read_gold() if not heading.startswith("Three hundred")]
    with tarfile.open(path, "w") as tar:
        for i in range(images):
            buffer = io.BytesIO()
            picture(rng).save(buffer, "JPEG", quality=90)
            for extension, data in (("jpg", buffer.getvalue()), ("txt", captions[i % len(captions)].encode())):
                info = tarfile.TarInfo(f"{i:09d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def picture(rng: np.random.Generator, width: int = 384, height: int = 288) -> Image.Image:
    """Noise whose amplitude falls with 1/f, as that of photographs does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency
    pixels = np.fft.irfft2(spectrum, s=(height, width))
    pixels = 128 + 50 * pixels / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


HUGE = {
    "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
    "global_attn_indexes": [7, 15, 23, 31],
}  # fmt: skip
"""SAM ViT-H."""


def random_sam(kind: str, folder: Path) -> str:
    """SAM ViT-B ("random"), ViT-H ("random-huge") or SAM 2 tiny ("random-sam2"): real classes, random weights."""
    from transformers import Sam2Config, Sam2ImageProcessorFast, Sam2Model, SamConfig, SamImageProcessor, SamModel

    if kind == "random-sam2":
        model, processor = Sam2Model(Sam2Config()), Sam2ImageProcessorFast()
    else:
        model = SamModel(SamConfig(vision_config=HUGE if kind == "random-huge" else {}))
        processor = SamImageProcessor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def sam_speed(model: str, device: str, images: int, at_once: list[int]) -> Table:
    """Images per second of the encoder alone and of everything, by how many images there are at once."""
    import torch

    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(images)]
    sam = SAM(model, device=device)
    with torch.inference_mode():
        embeddings, seen = sam.encode(pictures[:1])
        points = (torch.rand(1, POINTS, 1, 2) * seen[:, None, None].flip(-1)).to(sam.device)
        parts = points.split(sam.points_per_batch, dim=1)
        scores = [sam.loaded[0](image_embeddings=embeddings, input_points=part)["iou_scores"] for part in parts]
        threshold = torch.cat(scores, dim=1).float().flatten().topk(PASSING + 1).values[-1].item()
    choice = MaskChoice(min_score=threshold, min_stability=-1.0, max_box_iou=1.0)
    table = Table(title=f"{model} on {torch.cuda.get_device_name() if device == 'cuda' else device}, {sam.dtype}")
    for heading in ("images at once", "encoder alone, images/s", "all, images/s", "share", "masks", "CC12M on 8"):
        table.add_column(heading, justify="right")
    for size in at_once:
        sam = SAM(model, device=device, batch_size=size, choice=choice)
        groups = [pictures[i : i + size] for i in range(0, images, size)]
        pixels = torch.zeros(size, 3, SIDE, SIDE, device=sam.device, dtype=sam.dtype)
        encoder = size / seconds_of(lambda: sam.loaded[0].get_image_embeddings(pixels), device)  # noqa: B023
        found: list[int] = []
        time_s = seconds_of(lambda: found.extend(len(r.rles) for g in groups for r in sam.propose(g)), device)  # noqa: B023
        rate = images / time_s
        hours = CC12M_PAIRS / rate / GPUS / 3600
        share, masks = f"{rate / encoder:.0%}", f"{np.mean(found):.0f}"
        table.add_row(str(size), f"{encoder:.2f}", f"{rate:.2f}", share, masks, f"{hours:.1f} h")
    return table


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """Seconds that something takes when it runs for the second time."""
    import torch

    with torch.inference_mode():
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - start


def floor(console: Console) -> None:
    """Floating-point operations per image, counted on models without weights;
    the rest of the pipeline is not included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import SamConfig, SamModel

    sizes = {"SAM ViT-B": {}, "SAM ViT-H": HUGE}
    table = Table(title=f"{POINTS} points per image; all {GPUS} GPUs at {GPU_FLOP_PER_S / 1e12:.0f} TFLOP/s")
    for heading in ("model", "encoder", "decoder", f"CC12M on {GPUS} GPUs, at least"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, vision in sizes.items():
        with torch.device("meta"):
            model = SamModel(SamConfig(vision_config=vision, attn_implementation="eager"))
            with FlopCounterMode(display=False) as encoder:
                embeddings = model.get_image_embeddings(torch.empty(1, 3, 1024, 1024))
            with FlopCounterMode(display=False) as decoder:
                model(image_embeddings=embeddings, input_points=torch.empty(1, GPU_POINTS, 1, 2))
        flop = encoder.get_total_flops(), decoder.get_total_flops() * POINTS // GPU_POINTS
        hours = CC12M_PAIRS * sum(flop) / (GPUS * GPU_FLOP_PER_S) / 3600
        table.add_row(name, *(f"{part / 1e12:.2f} TFLOP" for part in flop), f"{hours:.1f} h")
    console.print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=600)
    arguments.add_argument(
        "--sam", help="measure this model alone: hub name, folder, random, random-huge or random-sam2"
    )
    arguments.add_argument("--at-once", type=int, nargs="+", default=[1], help="images that SAM takes at once")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--floor", action="store_true", help="count SAM's arithmetic, run nothing")
    options = arguments.parse_args()
    console = Console(width=110, highlight=False)
    if options.floor:
        floor(console)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.sam:
            model = options.sam
            if model.startswith("random"):
                model = random_sam(model, folder / model)
            console.print(sam_speed(SAM_MODELS.get(model, model), options.device, options.images, options.at_once))
            return
        write_source(folder / "source.tar", options.images)
        size = (folder / "source.tar").stat().st_size / options.images / 1000
        jobs = [
            ("decode, check and pack", "none", "boxes"),
            ("... and parse", "spacy", "boxes"),
            ("... and superpixels", "spacy", "superpixels"),
        ]
        table = Table(title=f"{options.images} pairs of {size:.0f} kB")
        for heading in ("work", "pairs/s", "ms per pair", f"CC12M on {CORES} cores"):
            table.add_column(heading, justify="left" if heading == "work" else "right")
        for work, parser, regions in jobs:
            loaded = parser_of(parser)
            if loaded is not None:
                list(loaded.parse(["a dog on a chair"] * 8))
            proposer = proposer_of(regions, shape="masks", device="cpu")
            if proposer is not None:
                proposer.propose([Image.new("RGB", (384, 288))])
            task = ShardTask(
                chunk=partial(tar_items, folder / "source.tar", "txt"), path=folder / "out.tar",
                config=PrepareConfig(parser=parser, regions=regions, device="cpu"),
            )  # fmt: skip
            start = time.perf_counter()
            made = make_shard(task)
            seconds = time.perf_counter() - start
            assert made.samples == options.images
            rate = options.images / seconds
            hours = CC12M_PAIRS / rate / CORES / 3600
            table.add_row(work, f"{rate:.2f}" if rate < 10 else f"{rate:.0f}", f"{1000 / rate:.1f}", f"{hours:.1f} h")
        console.print(table)


if __name__ == "__main__":
    main()
