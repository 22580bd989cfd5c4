"""Zero-shot evaluation: tasks, metrics, and their running."""

from powerclip.evaluate.datasets.own_shards import retrieval_from_shards
from powerclip.evaluate.light import as_metrics, light_suite
from powerclip.evaluate.run import Evaluation, evaluate_model, read_evaluation, write_evaluation
from powerclip.evaluate.score import evaluate_tasks
from powerclip.evaluate.suites import CLASSIFICATION, SUITES

__all__ = [
    "CLASSIFICATION",
    "SUITES",
    "Evaluation",
    "as_metrics",
    "evaluate_model",
    "evaluate_tasks",
    "light_suite",
    "read_evaluation",
    "retrieval_from_shards",
    "write_evaluation",
]
