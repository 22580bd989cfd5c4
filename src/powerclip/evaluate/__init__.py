"""Zero-shot evaluation: suites of tasks, their metrics, and running them on a model."""

from powerclip.evaluate.asked import light_suite, task_again
from powerclip.evaluate.datasets.own_shards import retrieval_from_shards
from powerclip.evaluate.metrics import Estimate
from powerclip.evaluate.results import Evaluation, Origin, read_evaluation
from powerclip.evaluate.run import as_metrics, evaluate_model
from powerclip.evaluate.score import evaluate_tasks, pairwise_scores
from powerclip.evaluate.stored import write_evaluation
from powerclip.evaluate.suites import CLASSIFICATION, SUITES

__all__ = [
    "CLASSIFICATION",
    "SUITES",
    "Estimate",
    "Evaluation",
    "Origin",
    "as_metrics",
    "evaluate_model",
    "evaluate_tasks",
    "light_suite",
    "pairwise_scores",
    "read_evaluation",
    "retrieval_from_shards",
    "task_again",
    "write_evaluation",
]
