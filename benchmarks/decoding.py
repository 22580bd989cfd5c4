"""From the bytes of a JPEG to the tower's pixels: Pillow, Pillow with draft mode, and torchvision's own decoder.

    python benchmarks/decoding.py

Draft mode lets the decoder scale down by 2, 4 or 8 while it decodes, as long as the image stays at least as large as
asked: it skips most of the inverse transform. It is asked for the tower's size, and for twice that, which leaves the
bicubic filter more pixels. Every way ends with the same bicubic, antialiased resize. Pictures are photograph-like
noise (1/f spectrum), quality 90; CPU time of one thread, medians; "difference" is the mean absolute difference from
Pillow's pixels, of 255.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, v2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is timed."""

    sizes: tuple[tuple[int, int], ...] = ((320, 240), (500, 375), (1024, 768), (2048, 1536))
    """Widths and heights of the pictures."""
    side: int = 224
    """Of the tower's images."""
    repetitions: int = 15


def picture(width: int, height: int) -> bytes:
    """A JPEG whose spectrum falls with the frequency, as photographs' do."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.random.default_rng(0).standard_normal((3, height, width))
    values = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    values = 128 + 50 * (values - values.mean()) / values.std()
    file = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(file, "JPEG", quality=90)
    return file.getvalue()


def ways(side: int) -> dict[str, Callable[[bytes], Tensor]]:
    resize = v2.Resize((side, side), interpolation=InterpolationMode.BICUBIC, antialias=True)

    def pillow(data: bytes, *, draft: int = 0) -> Tensor:
        image = Image.open(io.BytesIO(data))
        if draft:
            image.draft("RGB", (draft * side, draft * side))
        return v2.functional.pil_to_tensor(resize(image.convert("RGB")))

    def torchvision(data: bytes) -> Tensor:
        return resize(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB))

    drafts = {f"Pillow, draft {factor}x": partial(pillow, draft=factor) for factor in (1, 2)}
    return {"Pillow": pillow, **drafts, "torchvision": torchvision}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    table = Table(title=f"to {options.side} x {options.side}, torch {torch.__version__}")
    for name in ("picture", "way", "CPU ms", "difference"):
        table.add_column(name, justify="left" if name in ("picture", "way") else "right")
    for width, height in options.sizes:
        data, seconds = picture(width, height), {}
        found = {name: way(data).int() for name, way in ways(options.side).items()}
        for _ in range(options.repetitions):
            for name, way in ways(options.side).items():
                start = time.process_time()
                way(data)
                seconds.setdefault(name, []).append(time.process_time() - start)
        for name, times in seconds.items():
            difference = (found[name] - found["Pillow"]).abs().float().mean().item()
            table.add_row(f"{width} x {height}", name, f"{1e3 * statistics.median(times):.2f}", f"{difference:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
