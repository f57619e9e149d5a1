"""A config with every kind of field, and what an error and a variation look like, for the tests of configs."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxlite.config.duration import Duration
from jaxlite.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Frozen:
  depth: int = 2


@dataclasses.dataclass(kw_only=True)
class Mine(Config):
  """What an experiment adds: every kind of field."""

  sparsity: float = 0.9
  width: int | None = None
  widths: tuple[int, ...] = (300, 100)
  pair: tuple[int, float] = (1, 0.5)
  tags: list[str] = dataclasses.field(default_factory=list)
  flip: bool | None = None
  either: int | str = 0
  norm: Literal['batch', 'layer', 1] = 'batch'
  frozen: Frozen = dataclasses.field(default_factory=Frozen)
  begin: Duration | None = None
  act: Callable[[Any], Any] = abs
  anything: Any = None
  recipe: Callable[[Config, int], Any] | None = max


def one_line(error) -> str:
  text = str(error.value)
  assert '\n' not in text
  assert text
  return text


def as_teacher(config):
  return dataclasses.replace(config, train=Duration(epochs=60), sparsity=0.0)
