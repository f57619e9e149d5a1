"""What is deployed: a network with its values, real data to try it on, and what its answers mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import data as datasets
from jaxlite import trees
from jaxlite.batching import AT_ONCE
from jaxlite.checkpoint import Checkpoints
from jaxlite.contract import CONST, Network, Recipe
from jaxlite.data.decoded import head, is_decoded
from jaxlite.deployment import stablehlo
from jaxlite.deployment.held import Held, read_run
from jaxlite.deployment.load import load, read_meaning
from jaxlite.deployment.metadata import about_of, meaning_of
from jaxlite.deployment.operations import Graph, listing
from jaxlite.deployment.sealed_values import own_arrays
from jaxlite.host.files import read_json
from jaxlite.tasks.task import Facts, Task
from jaxlite.version import __version__

_MOST_DECODED = 1 << 28  # bytes of them, where they lie in files
_MOST = 10_000  # examples that files are tried on
_MOST_BYTES = 1 << 28  # of their answers, several copies of which are held: those of a decoder are large


class Subject(NamedTuple):
  """What is deployed.

  Attributes:
    name: of the network.
    network: predicts from raw inputs.
    graph: its list of operations, None where there is none.
    why: why there is none.
    arrays: its own values, by the framework's names.
    inputs: raw, a tree of arrays [N, ...].
    labels: [N, ...], None where nobody gave any.
    weight: float[N] or None.
    task: what was learned, None where nobody knows.
    facts: what is known of it.
    about: what the metadata of files says.
    held: what was read of the run, where it is one.
  """

  name: str
  network: Network
  graph: Graph | None
  why: str
  arrays: Mapping[str, Any]
  inputs: Any
  labels: Any
  weight: Any
  task: Task | None
  facts: Facts
  about: dict[str, str]
  held: Held | None = None

  def named(self) -> dict[str, np.ndarray]:
    """Returns the inputs by their names in files."""
    paths, leaves, _ = trees.flatten(self.inputs)
    return {f'input/{path}' if path else 'input': leaf for path, leaf in zip(paths, leaves, strict=True)}


def of_run(
  workdir: str | os.PathLike[str],
  which: str | int = 'best',
  *,
  model: Any = None,
  recipe: Recipe | None = None,
  task: Task | None = None,
  examples: Any = None,
) -> Subject:
  """Reads a run.

  Args:
    workdir: its folder.
    which: as for `jl.load`; of a run that is not finished a step, or 'latest'.
    model, recipe, task: as for `jl.load`.
    examples: see `jaxlite.deploy`.

  Raises:
    FileNotFoundError: no run, or no checkpoint, is there.
    ValueError: the run is not finished; its data are not known here and no examples are given.
  """
  held = read_run(workdir, which)
  if which == 'best' and not (held.folder / 'result.json').exists():
    raise ValueError(
      f'a finished run is deployed, and {held.folder} is none: run its command again to finish it, or name what is '
      "there, which='latest'"
    )
  meaning = read_meaning(held.folder, held.run, task)
  network = load(workdir, held.step, model=model, recipe=recipe, task=task)
  graph, why = None, ''
  try:
    if model is not None:
      graph = listing.network_graph(network, jax.tree.unflatten(held.stored.input_tree(), held.stored.inputs()))
    else:
      graph = listing.graph_of_held(held, task=task)
  except ValueError as error:
    why = str(error)
  given = _of_data(held) if examples is None else examples
  inputs, labels, weight = _split(given, meaning.encode, meaning.task, meaning.facts)
  name = '' if meaning.task is None else meaning.task.name
  about = about_of(held.run, held.step, name, meaning.facts, encoder=meaning.encode)
  return Subject(
    held.folder.resolve().name,
    network,
    graph,
    why,
    own_arrays(held),
    _fitting(inputs, held.stored),
    labels,
    weight,
    meaning.task,
    meaning.facts,
    about,
    held,
  )


def of_network(network: Network, *, task: Task | None = None, facts: Facts | None = None, examples: Any) -> Subject:
  """Takes a network as it is; see `of_run`."""
  if examples is None:
    raise ValueError('a network is tried on real data before it is written: give examples=inputs, or (inputs, labels)')
  answer: Any = network.answer
  found = task or getattr(answer, 'task', None)
  known = facts if facts is not None else dict(getattr(answer, 'facts', {}))
  if isinstance(examples, datasets.Dataset):
    found, known = found or examples.task, known or examples.facts
  if found is not None and not known:
    known = _read_off(examples, found)
  inputs, labels, weight = _split(examples, network.encode, found, known)
  kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(inputs) if leaf.dtype.kind not in 'biufcV'}
  if kinds:
    raise ValueError(f'examples are arrays of numbers, as the network takes them; got {", ".join(sorted(kinds))}')
  inputs = jax.tree.map(lambda leaf: leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False), inputs)
  _answer_bytes(network, inputs)  # whether it takes them
  graph, why = None, ''
  try:
    if getattr(network.model.apply, 'sealed', False):
      raise ValueError('what was loaded without its model is a compiled program: deploy the folder of its run')
    graph = listing.network_graph(network, inputs)
  except ValueError as error:
    why = str(error)
  params, state = network.model.export(network.params, network.model_state)  # without what hooks added
  state = {name: value for name, value in state.items() if name == CONST or not trees.is_extra(name)}
  arrays = trees.by_path({'params': params, 'model_state': state})
  named = {name.removeprefix('model_state/').removeprefix(f'{CONST}/'): value for name, value in arrays.items()}
  about = {
    'producer': f'jaxlite {__version__}',
    'task': '' if found is None else found.name,
    **meaning_of(known),
  }
  return Subject('network', network, graph, why, named, inputs, labels, weight, found, known, about)


def few_enough(one: Subject) -> tuple[Subject, str]:
  """Leaves out examples whose answers would take much memory.

  Returns:
    The subject with the first of them, and what a person should read; '' where all are there.
  """
  count, each = len(jax.tree.leaves(one.inputs)[0]), _answer_bytes(one.network, one.inputs)
  rows = max(1, _MOST_BYTES // max(1, each))
  if rows >= count:
    return one, ''
  inputs, labels, weight = jax.tree.map(lambda leaf: leaf[:rows], (one.inputs, one.labels, one.weight))
  note = f'tried on the first {rows:,} of {count:,} examples: the answers to one take {each:,} bytes'
  return one._replace(inputs=inputs, labels=labels, weight=weight), note


def _answer_bytes(network: Network, inputs: Any) -> int:
  """What a network answers to one example takes.

  Raises:
    ValueError: it does not take such inputs.
  """
  some = min(len(jax.tree.leaves(inputs)[0]), AT_ONCE)
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((some, *leaf.shape[1:]), leaf.dtype), inputs)

  def forward(params: Any, state: Any, inputs: Any) -> Any:
    return network.model.apply(params, state, inputs, train=False, key=None)[0]

  try:
    found = jax.tree.leaves(jax.eval_shape(forward, network.params, network.model_state, shapes))
    if strange := [leaf.shape for leaf in found if leaf.shape[:1] != (some,)]:
      raise ValueError(f'of {some} it gives {list(strange[0])}, where each has an answer')
  except Exception as error:  # whatever a user's model raises
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    paths, leaves, _ = trees.flatten(inputs)
    given = ', '.join(f'{path} {list(leaf.shape)}'.strip() for path, leaf in zip(paths[:8], leaves, strict=False))
    raise ValueError(
      f'the network takes no examples of {given} ({told[:300]}): examples are inputs [N, ...], or (inputs, labels); '
      'of a network of two inputs ((one, other), labels)'
    ) from None
  return sum(leaf.size * leaf.dtype.itemsize for leaf in found) // some


def _bounded(split: datasets.Split) -> datasets.Split:
  """A split as arrays that fit into memory: of examples that lie in files the first."""
  most = [_MOST_DECODED // max(1, leaf.base.example_bytes) for leaf in jax.tree.leaves(split) if is_decoded(leaf)]
  if not most:
    return split
  return jax.tree.map(lambda leaf: head(leaf, max(1, *most)), split)


def _split(given: Any, encode: Any, task: Task | None, facts: Facts) -> tuple[Any, Any, Any]:
  """(inputs, labels or None, weight or None) of what a person gives."""
  if isinstance(given, datasets.Dataset):
    given = given.test if len(given.test.labels) else given.validation
  labels, weight = None, None
  if isinstance(given, datasets.Split):
    inputs, labels, weight = _bounded(given)
  elif isinstance(given, tuple) and len(given) in (2, 3):
    inputs, labels, weight = (*given, None)[:3]
    inputs = inputs if encode is None else encode(inputs)
    if task is not None:
      labels, weight = _labels(labels, weight, task, facts)
  else:
    inputs = given if encode is None else encode(given)
  inputs = jax.tree.map(np.asarray, inputs)
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
  if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
    raise ValueError(f'examples are inputs [N, ...], at least one; got arrays of shapes {sorted(map(str, sizes))}')
  (count,) = sizes.pop()
  for what, array in (('labels', labels), ('weights', weight)):
    if array is not None and len(array) != count:
      raise ValueError(f'examples have one of the {what} each; got {count} inputs and {len(array)} {what}')
  rows = slice(0, _MOST)
  inputs = jax.tree.map(lambda leaf: leaf[rows], inputs)
  return inputs, None if labels is None else np.asarray(labels)[rows], None if weight is None else weight[rows]


def _read_off(examples: Any, task: Task) -> Facts:
  """What is known of a task where nobody said it: what the labels of the examples show."""
  labels = examples[1] if isinstance(examples, tuple) and len(examples) in (2, 3) else None  # a Split is one
  return {} if labels is None else task.facts(np.asarray(task.check(np.asarray(labels), 'examples')), {})


def _labels(labels: Any, weight: Any, task: Task, facts: Facts) -> tuple[np.ndarray, Any]:
  """A person's labels, names of classes among them, as the task has them, and what each example counts."""
  array = np.asarray(labels)
  names = [str(name) for name in facts.get('class_names') or ()] if 'positive' not in facts else []
  if array.dtype.kind in 'USO' and names and (unknown := sorted({*map(str, array.ravel())} - {*names})):
    raise ValueError(f'labels are the names of classes, {", ".join(names[:8])}; got {unknown[0]!r}')
  if array.dtype.kind in 'USO' and names:
    array = np.array([names.index(str(one)) for one in array.ravel()], np.int32).reshape(array.shape)
  array = np.asarray(task.check(array, 'examples'))
  task.check_facts(array, facts, 'examples')
  positions = task.weight(array)
  if positions is not None:
    weight = np.asarray(positions, np.float32) * (1.0 if weight is None else np.asarray(weight, np.float32))
  return array, weight


def _fitting(inputs: Any, stored: Any) -> Any:
  """Raw inputs in the dtypes of training, as NumPy arrays."""
  return jax.tree.map(np.asarray, stablehlo.checked_inputs(stored, inputs))


def _of_data(held: Held) -> datasets.Split:
  """The data that a run was tested on, where it can be found by the name in its config."""
  fix = 'give examples=(inputs, labels), or a Dataset'
  unknown = f'files are tried on real data, and those of {held.folder} are not known here: {fix}'
  with Checkpoints(held.folder / 'checkpoints', run=held.run) as saves:
    fingerprint = (saves.loop() or {}).get('data', '')
  try:
    config = read_json(held.folder / 'config.json')['config']
    told, seed = config['data'], config['seed']
    if told.get('load') is not None:
      raise ValueError(unknown)
    source = {'directory': told['directory'], 'validation': told['validation'], 'seed': seed}
    data = datasets.load(told['source'], **source)
  except (ValueError, LookupError, TypeError, AttributeError, OSError, ImportError):
    raise ValueError(unknown) from None
  if data.fingerprint != fingerprint:
    raise ValueError(unknown)
  return data.test if len(data.test.labels) else data.validation
