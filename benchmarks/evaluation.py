"""How much memory the retrieval metrics take, compared with the matrix of all scores, which they avoid.

    python benchmarks/evaluation.py             # COCO's test split in size: 5000 images, 25000 captions, 512 dimensions
    python benchmarks/evaluation.py --images 1000

Prints one table from one run: the peak of the process above its features, and the size of the full matrix.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch

from powerclip.evaluate.metrics import recall_metrics


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions-per-image", type=int, default=5)
    parser.add_argument("--dimensions", type=int, default=512)
    options = parser.parse_args()
    texts = options.images * options.captions_per_image
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(rows, options.dimensions, generator=generator) for rows in (options.images, texts)]
    for rows in features:  # in place: the memory of a freed copy would hide what the metrics take
        rows /= rows.norm(dim=-1, keepdim=True)
    owner = torch.arange(options.images).repeat_interleave(options.captions_per_image)
    before, start = peak_bytes(), time.perf_counter()
    i, t = features
    recall_metrics(lambda rows: i[rows] @ t.T, lambda rows: t[rows] @ i.T, owner, images=len(i))
    elapsed_s, extra = time.perf_counter() - start, peak_bytes() - before
    full = options.images * texts * 4
    print(f"| {options.images} images, {texts} captions, D = {options.dimensions} | MiB |")
    print("| --- | ---: |")
    print(f"| features | {sum(f.numel() * 4 for f in features) / 2**20:.0f} |")
    print(f"| peak above the features | {extra / 2**20:.0f} |")
    print(f"| matrix of all scores, avoided | {full / 2**20:.0f} |")
    print(f"\nBoth directions: {elapsed_s:.1f} s on {torch.get_num_threads()} thread(s).")


if __name__ == "__main__":
    main()
