"""How fast is preparing per core? Pairs per second with one process, by what is done, and the time for CC12M.

    python benchmarks/preparing.py                             # packing, parsing, superpixels
    python benchmarks/preparing.py --sam random --images 4     # SAM ViT-B of random weights: its cost, not its masks
    python benchmarks/preparing.py --sam facebook/sam2-hiera-small --device cuda
    python benchmarks/preparing.py --floor             # the arithmetic that SAM needs, and the least time for it on 8 GPUs

The images are noise with a photograph's spectrum (amplitude 1/f), about 75 kB at 384 x 288; the captions are the gold list's.
The rows are measured in one run, by the same job that `powerclip prepare` runs; what it loads first is not counted.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from parsing import read_gold
from PIL import Image
from rich.console import Console
from rich.table import Table

from powerclip.config import PrepareConfig
from powerclip.prepare.annotate import ShardTask, make_shard, parser_of, proposer_of
from powerclip.prepare.tars import tar_items
from powerclip.regions.sam import GPU_POINTS

CC12M_PAIRS = 12_423_374
CORES, GPUS = 32, 8
GPU_FLOP_PER_S = 790e12
"""What an H200 reached in large bf16 matrix products."""
POINTS = 32 * 32
"""Points that SAM's mask generation prompts per image; a call of the decoder takes ``GPU_POINTS`` of them."""


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


def random_sam(folder: Path) -> str:
    """SAM ViT-B with the real classes and random weights."""
    from transformers import SamConfig, SamImageProcessor, SamModel

    SamModel(SamConfig()).save_pretrained(folder)
    SamImageProcessor().save_pretrained(folder)
    return str(folder)


def floor(console: Console) -> None:
    """Floating-point operations per image, counted on models without weights; the rest of the pipeline is not included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import SamConfig, SamModel

    huge = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120}
    sizes = {"SAM ViT-B": {}, "SAM ViT-H": {**huge, "global_attn_indexes": [7, 15, 23, 31]}}
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
    arguments.add_argument("--sam", help="measure this model alone: hub name, folder, or random")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--floor", action="store_true", help="count SAM's arithmetic, run nothing")
    options = arguments.parse_args()
    console = Console(width=110, highlight=False)
    if options.floor:
        floor(console)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "source.tar", options.images)
        size = (folder / "source.tar").stat().st_size / options.images / 1000
        jobs = [
            ("decode, check and pack", "none", "boxes"),
            ("... and parse", "spacy", "boxes"),
            ("... and superpixels", "spacy", "superpixels"),
        ]
        if options.sam:
            model = random_sam(folder / "sam") if options.sam == "random" else options.sam
            jobs = [(f"SAM ({options.sam}) on {options.device}", "none", f"sam:{model}")]
        unit, count = ("GPUs", GPUS) if options.device != "cpu" else ("cores", CORES)
        table = Table(title=f"{options.images} pairs of {size:.0f} kB")
        for heading in ("work", "pairs/s", "ms per pair", f"CC12M on {count} {unit}"):
            table.add_column(heading, justify="left" if heading == "work" else "right")
        for work, parser, regions in jobs:
            loaded = parser_of(parser)
            if loaded is not None:
                list(loaded.parse(["a dog on a chair"] * 8))
            proposer = proposer_of(regions, device=options.device)
            if proposer is not None:
                proposer.propose(Image.new("RGB", (384, 288)))
            task = ShardTask(
                chunk=partial(tar_items, folder / "source.tar", "txt"), path=folder / "out.tar",
                config=PrepareConfig(parser=parser, regions=regions, device=options.device),
            )  # fmt: skip
            start = time.perf_counter()
            made = make_shard(task)
            seconds = time.perf_counter() - start
            assert made.samples == options.images
            rate = options.images / seconds
            hours = CC12M_PAIRS / rate / count / 3600
            table.add_row(work, f"{rate:.2f}" if rate < 10 else f"{rate:.0f}", f"{1000 / rate:.1f}", f"{hours:.1f} h")
        console.print(table)


if __name__ == "__main__":
    main()
