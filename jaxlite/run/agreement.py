"""What a network that was trained before and the data of a run must agree in: how inputs are read, what outputs mean.

A network to train on and a teacher bring what they know of their own data. Ids of another vocabulary, columns in
another order and classes in another order have the right shapes, so nothing else would notice.
"""

from __future__ import annotations

from typing import Any

from jaxlite.contract import Hook, Network, Recipe
from jaxlite.data import Dataset

_NOTE = 'inputs are read and standardized as the given network does it, not by the statistics of these data'


def started(network: Network, data: Dataset) -> Dataset:
  """Returns the data of a run that trains a network on, with what the network knows of its inputs.

  Raises:
    ValueError: the two do not agree.
  """
  check(network, data, 'the network to train on', 'give arrays that it made, network.encode(rows)')
  encoder = network.encode if data.encoder is None and _reads(network, data) else data.encoder
  return data._replace(encoder=encoder, notes=(*data.notes, _NOTE))


def check_teachers(recipe: Recipe, data: Dataset) -> None:
  """Raises ValueError where a teacher of a recipe and the data do not agree."""
  fix = 'let it answer first, teacher.predict(rows), and jaxlite.data.attach(data, logits=...)'
  for part in recipe.parts:
    if isinstance(part, Hook):
      for network in getattr(part.model, 'networks', ()):
        check(network, data, f'the teacher of {part.name}', fix)


def check(network: Network, data: Dataset, who: str, fix: str) -> None:
  """Raises ValueError where a network reads inputs or answers otherwise than the data have it."""
  known = network.encode
  if known is not None and data.encoder is not None and not _same(known, data.encoder):
    raise ValueError(f'{who} reads {_told(known)}, these data were made by {_told(data.encoder)}: {fix}')
  task, facts = (getattr(network.answer, name, None) for name in ('task', 'facts'))
  if task is None or facts is None or task.name != data.task.name:
    return
  for name in ('class_names', 'names'):
    before, now = (list(map(str, one.get(name) or ())) for one in (facts, data.facts))
    if before and now and before != now and not (len(before) == len(now) and (_numbered(before) or _numbered(now))):
      raise ValueError(
        f'{who} answers {_listed(before)}, the labels of these data are {_listed(now)}: number the labels as it does, '
        f'and say so, class_names={before[:8]}'
      )
  for name in ('positive', 'vocabulary', 'targets'):
    if name in facts and facts[name] != data.facts.get(name, facts[name]):
      raise ValueError(f'{who} was trained with {name} = {facts[name]}, these data have {data.facts[name]}')


def _same(one: Any, other: Any) -> bool:
  """Whether two encoders make the same arrays of the same rows; columns that are not read do not matter."""
  if type(one) is not type(other):
    return False
  return one.columns == other.columns if hasattr(one, 'columns') else one == other


def _told(encoder: Any) -> str:
  if hasattr(encoder, 'columns'):
    columns = [f'{name} ({len(values)} names)' if values else name for name, _, values in encoder.columns]
    return f'the columns {_listed(columns)}'
  if not hasattr(encoder, 'tokenizer'):
    return str(encoder)
  return f'{type(encoder.tokenizer).__name__} of {encoder.tokenizer.vocabulary} tokens, {encoder.length} a text'


def _reads(network: Network, data: Dataset) -> bool:
  """Whether the inputs of a data set without an encoder are such as the network's makes."""
  if network.encode is None or not hasattr(data.test, 'inputs'):
    return False
  try:
    network.encode(data.test.inputs)
  except (ValueError, TypeError):
    return False
  return True


def _numbered(names: list[str]) -> bool:
  return names == list(map(str, range(len(names))))


def _listed(names: list[str]) -> str:
  return ', '.join(names[:6]) + (f' and {len(names) - 6} more' if len(names) > 6 else '')
