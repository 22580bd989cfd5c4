"""Every settings dataclass, frozen and validated when it is made, and its way to YAML and back."""

from powerclip.config.evaluation import EvaluateConfig
from powerclip.config.exploration import ExploreConfig
from powerclip.config.files import MAX_YAML_BYTES, from_dict, load_config, read_yaml, to_yaml
from powerclip.config.model import AggregationConfig, ModelConfig, PoolingConfig, ScoringConfig
from powerclip.config.objective import ContrastConfig, ObjectiveConfig
from powerclip.config.preparation import EmbedConfig, PrepareConfig, SourceConfig
from powerclip.config.training import DataConfig, OptimConfig, ParallelConfig, PeriodicEvaluationConfig, TrainConfig

__all__ = [
    "MAX_YAML_BYTES",
    "AggregationConfig",
    "ContrastConfig",
    "DataConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExploreConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ParallelConfig",
    "PeriodicEvaluationConfig",
    "PoolingConfig",
    "PrepareConfig",
    "ScoringConfig",
    "SourceConfig",
    "TrainConfig",
    "from_dict",
    "load_config",
    "read_yaml",
    "to_yaml",
]
