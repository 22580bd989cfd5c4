"""Zero-shot evaluation: tasks, metrics, and their running."""

from powerclip.evaluate.run import evaluate_model, write_evaluation
from powerclip.evaluate.shards import retrieval_from_shards
from powerclip.evaluate.suite import evaluate_tasks

__all__ = ["evaluate_model", "evaluate_tasks", "retrieval_from_shards", "write_evaluation"]
