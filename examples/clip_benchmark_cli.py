"""clip_benchmark's command line with one more model type, powerclip.

    python examples/clip_benchmark_cli.py eval --model_type powerclip --model runs/NAME --pretrained none \
        --dataset wds/cifar10 --dataset_root FOLDER --output "{dataset}.json"

--model is whatever powerclip.load takes: a run or model folder, a folder in open_clip's form, or a hub id.
"""

import torch
from clip_benchmark import cli, models
from clip_benchmark.metrics import zeroshot_classification

from powerclip.model import load_for_clip_benchmark


def accuracy(scores: torch.Tensor, labels: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """The share of (I, C) scores whose (I,) label is among the k highest, for each k.

    It replaces the function of clip-benchmark 1.6.2, which calls float() on an array of one element: NumPy 2.4 raises a
    TypeError there. Without this, NumPy below 2.4 is needed for classification.
    """
    right = scores.topk(max(topk), dim=1).indices == labels.view(-1, 1)
    return [right[:, :k].any(dim=1).float().mean().item() for k in topk]


models.TYPE2FUNC["powerclip"] = load_for_clip_benchmark
zeroshot_classification.accuracy = accuracy
models.MODEL_TYPES.append("powerclip")

if __name__ == "__main__":
    cli.main()
