"""clip_benchmark's command line with one more model type, powerclip.

    python examples/clip_benchmark_cli.py eval --model_type powerclip --model runs/NAME --pretrained none \
        --dataset wds/cifar10 --dataset_root FOLDER --output "{dataset}.json"

--model is whatever powerclip.load takes: a run or model folder, a folder in open_clip's form, or a hub id.
"""

from clip_benchmark import cli, models

from powerclip.model import load_for_clip_benchmark

models.TYPE2FUNC["powerclip"] = load_for_clip_benchmark
models.MODEL_TYPES.append("powerclip")

if __name__ == "__main__":
    cli.main()
