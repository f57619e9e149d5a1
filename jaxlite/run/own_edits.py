"""Changes to a run through the fields that its experiment has added: a smaller model, frozen layers, kept logits.

What a field does is not believed by its name. A field that makes the model smaller is one that the model is built from,
and whose half gives a model that answers in the same shape with fewer parameters. One that freezes is a rule on paths
that leaves less to train. What no field reaches is not offered.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxlite.adapters import adapt
from jaxlite.config.fields import fields
from jaxlite.config.reads import Reads, watched
from jaxlite.config.schema import Config
from jaxlite.graph.init_numpy import on_host
from jaxlite.planning.cost import cost, step_tags
from jaxlite.planning.edits import OTHER, Edit, edited
from jaxlite.planning.job import Job
from jaxlite.run.setup import Setup, prepare

_OURS = ('name', 'seed', 'data', 'optim', 'train', 'eval', 'log', 'checkpoint', 'machine', 'teacher', 'runs')
_MOST = 4  # fields of one kind that are looked at: each builds a model


def own_edits(setup: Setup, job: Job) -> list[Edit]:
  """Returns the single changes that the fields of an experiment's own allow.

  Args:
    setup: of the run.
    job: the same run.
  """
  found = [*_smaller(setup), *_switched(setup, job)]
  return list({edit.name: edit for edit in found}.values())


def _smaller(setup: Setup) -> Iterator[Edit]:
  """Halves of the numbers that the model is built from."""
  config, make = setup.config, setup.config.model
  if make is None:
    return
  reads = Reads()
  with contextlib.suppress(Exception):  # whatever a model of a user's own does
    make(watched(config, reads))
  shape = _formed(make, config, setup)
  if shape is None:
    return
  numbers = [(path, _half(value)) for path, value in _own(config, reads) if _half(value) is not None]
  for path, half in numbers[:_MOST]:
    less = _formed(make, edited(config, {path: half}), setup)
    if less is not None and less[1] == shape[1] and less[0] < shape[0]:
      yield Edit(f'{path} halved: {less[0] / shape[0]:.0%} of the parameters', {path: half}, OTHER)


def _own(config: Config, reads: Reads) -> Iterator[tuple[str, Any]]:
  """The experiment's own fields that were read, with their values."""
  for path, _, _, value in fields(config):
    if path in reads.paths and path.split('.')[0] not in _OURS:
      yield path, value


def _half(value: Any) -> Any:
  """Half of a number, or of each of several; None of what is none, or cannot be halved."""
  if isinstance(value, int) and not isinstance(value, bool):
    return value // 2 if value >= 2 else None
  if isinstance(value, tuple | list) and value and all(isinstance(one, int) and one >= 2 for one in value):
    return type(value)(one // 2 for one in value)
  return None


def _formed(make: Callable[[Any], Any], config: Config, setup: Setup) -> tuple[int, Any] | None:
  """How many parameters the model of a config has, and the shapes of what it answers; None where it cannot be."""
  try:
    model = adapt(make(config))
    inputs = setup.first_batch['inputs']
    key = on_host(lambda: jax.random.key(0))()
    params, state = jax.eval_shape(model.init, key, inputs)
    answer = lambda p, s, x: model.apply(p, s, x, train=False, key=None)[0]  # noqa: E731
    outputs = jax.eval_shape(answer, params, state, inputs)
  except Exception:  # whatever a model of a user's own does with numbers that it did not expect
    return None
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  return count, jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), outputs)


def _switched(setup: Setup, job: Job) -> Iterator[Edit]:
  """Fields that stand for freezing or for kept logits, and that are off."""
  for path, _, _, value in fields(setup.config):
    name = path.split('.')[-1].lower()
    if path.split('.')[0] in _OURS or path not in setup.reads.paths:
      continue
    freezes, keeps = 'freez' in name or 'frozen' in name, 'cache' in name and 'logit' in name
    if value is False and (freezes or keeps):
      edit = Edit('frozen layers' if freezes else "the teacher's logits are kept", {path: True}, OTHER)
    elif freezes and value == '' and (rule := _but_the_last(job)):
      edit = Edit('all but the last layer frozen', {path: rule}, OTHER)
    else:
      continue
    changed = _trained(setup, edit)
    if keeps or (changed is not None and changed < _count(setup.abstract.params)):
      yield edit


def _trained(setup: Setup, edit: Edit) -> int | None:
  """How many values a changed run trains; None where it cannot be built."""
  try:
    changed = prepare(edited(setup.config, edit.fields), Path(), None, setup.data)
  except Exception:
    return None
  return _count(changed.abstract.params)


def _count(params: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _but_the_last(job: Job) -> str:
  """A rule for all layers but the one that a forward comes to last; '' where they cannot be told apart."""
  forward = job.train.programs.jaxpr(job.abstract, job.batch)[1]
  state = job.abstract
  read = [*step_tags(state, job.batch)[1 : 1 + len(jax.tree.leaves(state.params))]]
  tags = [*read, *[step_tags(state, job.batch)[-1]] * (len(forward.in_avals) - len(read))]
  layers = [one.layer for one in cost(forward, tags).operations if one.layer]
  if len(set(layers)) < 2:
    return ''
  last = layers[-1].rpartition('/')[0] or layers[-1]
  return f'^(?!{re.escape(last)}(/|$))'
