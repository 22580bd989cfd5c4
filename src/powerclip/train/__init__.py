"""The training loop, its optimiser, checkpoints and logs."""

from powerclip.train.loop import TrainResult, train

__all__ = ["TrainResult", "train"]
