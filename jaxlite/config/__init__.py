"""What an experiment is made of: dataclasses, durations, flags and their saved form. Standard library and absl only."""

from jaxlite.config.duration import Duration
from jaxlite.config.schema import (
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  LogConfig,
  MachineConfig,
  OptimConfig,
  RepairConfig,
)

__all__ = [
  'CheckpointConfig',
  'Config',
  'DataConfig',
  'Duration',
  'EvalConfig',
  'LogConfig',
  'MachineConfig',
  'OptimConfig',
  'RepairConfig',
]
