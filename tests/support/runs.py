"""What a run's folder says of its training."""

import powerclip
from powerclip.runs import read_metrics


def losses(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def weights(run):
    model, _, _ = powerclip.load(str(run))
    return model.state_dict()
