"""Gives back what a run made: a network that predicts without the code that trained it, and with it is opened again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite import errors, tasks
from jaxlite.contract import Network, Recipe
from jaxlite.deployment import opening, stablehlo
from jaxlite.deployment.held import Held, read_run
from jaxlite.host.sealed import Damaged, read_sealed
from jaxlite.tasks.task import Facts, Task


def load(
  workdir: str | os.PathLike[str],
  which: str | int = 'best',
  *,
  model: Any = None,
  recipe: Recipe | None = None,
  task: Task | None = None,
) -> Network:
  """Gives back what a run made, ready to predict, without the code that trained it; with its model, ready for more.

  Without `model` a network predicts, teaches (`jl.distill`) and no more: what a run wrote is a compiled program. With
  it the values stand in the model again, preprocessing around them, and the network can be quantized (`jl.ptq`,
  `jl.quantize`, `jl.coverage`), pruned (`jl.pruning.gather_statistics`, `sparsegpt`), hinted from, trained on
  (`jl.train(model=network)`) and given back to its framework (`jl.give_back`). One that was made of a reference
  network (`jl.models`, or no model at all) is so without being told. Parameters are the network's own: averages are
  taken, masks merged, and what else hooks added is left out.

  Args:
    workdir: the run's folder.
    which: 'best' by validation, 'latest', or a step that is kept.
    model: what was trained, as `jl.train` took it; its own values do not matter. A network of another function is
      refused: on the same inputs it has to give what the run gives.
    recipe: beside the model, of a run that trained in few bits: its recipe, which computes them. `jl.chain()`, a recipe
      of nothing, takes the weights as floats.
    task: the run's own task, where it is none of jaxlite's: it says what outputs mean.

  Returns:
    A Network: `.predict(inputs)` takes raw inputs as in training, arrays [B, ...] or what the data set was made of
    (a table's rows, texts), and holds the preprocessing; `.predict_labels` and `.predict_proba` answer in the task's
    terms.

  Raises:
    FileNotFoundError: no run, or no checkpoint, is there.
    ImportError: Orbax or flatbuffers is not installed.
    ValueError: a file is damaged; the model or the recipe is not the one that was trained.
  """
  errors.need('jaxlite.load', 'orbax.checkpoint', 'flatbuffers')
  held = read_run(workdir, which)
  stored, values = held.stored, held.values
  meaning = read_meaning(held.folder, held.run, task)
  if recipe is not None and model is None:
    model = opening.reference(stored)
    if model is None:
      raise ValueError('recipe= says what stands around a model, and this run was made of one of your own: give model=')
  if model is not None:
    network = opening.opened(stored, values, model, recipe, meaning.task, meaning.facts)
  else:
    network = opening.reopened(stored, values, meaning.task, meaning.facts) or _sealed(held)
  path = held.folder / 'task.json' if task is None else None
  answer = None if meaning.task is None else Answer(meaning.task, meaning.facts, path)
  return network._replace(encode=meaning.encode, answer=answer)


def _sealed(held: Held) -> Network:
  from jaxlite.deployment.list_model import faster  # what is opened with its model needs no lists

  return faster(held, stablehlo.sealed_network(held.stored, held.params, held.model_state))


class Answer(NamedTuple):
  """What a network's outputs mean.

  Attributes:
    task: what was learned.
    facts: what is known of it.
    path: of the file that says so, which is not believed where it does not fit; None where the user did.
  """

  task: Task
  facts: Facts
  path: Path | None = None

  def __call__(self, outputs: Any) -> dict[str, Any]:
    """Returns what a user wants of outputs, by name."""
    if self.path is None:
      return self.task.answer(outputs, self.facts)
    try:
      return self.task.answer(outputs, self.facts)
    except (LookupError, TypeError, AttributeError) as error:
      raise ValueError(f'{self.path} does not fit what the model gives ({type(error).__name__}: {error})') from None


class Meaning(NamedTuple):
  """What a run learned, and what its raw inputs are."""

  task: Task | None = None
  facts: Facts = {}  # noqa: RUF012
  encode: Any = None


def read_meaning(folder: Path, run: str, given: Task | None = None) -> Meaning:
  """Returns how raw inputs become arrays and outputs answers, as the run says; what is missing is told, and None."""
  path = folder / 'task.json'
  again = 'train the run again to write it anew (a finished one is not trained)'
  if not os.path.lexists(path):
    print(f'{path} is missing, so inputs are arrays and outputs are the raw ones: {again}')
    return Meaning()
  encode, task = None, given
  try:
    saved = read_sealed(path, run)
    name, facts, encoder = saved['task'], saved['facts'], saved['encoder']
    if given is None and saved.get('built_in'):
      task = tasks.named(name, facts)
    _check_facts(facts)
    if given is None and task is not None:
      task.hook(facts)  # what stands around a model that is opened
    if encoder is not None:
      from jaxlite.data.encoders import load_encoder

      encode = load_encoder(encoder)
  except (Damaged, LookupError, TypeError, ValueError, AttributeError) as error:  # whatever a stranger wrote there
    why = f'{error} is missing' if isinstance(error, KeyError) else str(error).partition('\n')[0]
    raise ValueError(f'{path} is damaged ({why}): {again}, or delete it to predict raw outputs without it') from None
  if given is not None and given.name != name:
    raise ValueError(f'this run learned the task {name}; got task={given.name}: leave it out, or give the run its own')
  return Meaning(task, facts, encode)


def _check_facts(facts: Any) -> None:
  """Raises Damaged where facts are none that `agreement` compares."""
  if not isinstance(facts, dict):
    raise Damaged(f'its facts are a {type(facts).__name__} where a table of names belongs')
  for name in ('class_names', 'names'):
    if not isinstance(facts.get(name, []), list | None):
      raise Damaged(f'its {name} are no list')
