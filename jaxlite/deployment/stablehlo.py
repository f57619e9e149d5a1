"""The forward pass of a run as a portable program, so that a result is used without the code that made it.

A run writes its evaluation-time forward (preprocessing, averages and all) as StableHLO, with a batch size left
open and the weights left out: they stay in the checkpoints. `jaxlite.load` puts the two together again.

Beside it stands how the values of a checkpoint become those of the bare network (`Model.export`: averages taken,
masks merged, what hooks added left out): most are leaves of the checkpoint by another name, and what is computed is
a second result of the same program. So a network is opened (`opening.py`) without the recipe that trained it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxlite import trees
from jaxlite.contract import CONST, Model, Network, Params, Side, State, join_const, split_const
from jaxlite.graph import walk
from jaxlite.host.files import write_bytes
from jaxlite.host.sealed import Damaged, read_sealed, write_sealed

_PROGRAM, _ABOUT = 'program.bin', 'program.json'  # in a run's folder
_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def save_program(
  workdir: Path, model: Model, recipe: Any, values: Network, inputs: Any, made: Mapping[str, Any] | None = None
) -> str:
  """Writes program.bin and program.json, where the model can be written.

  Args:
    workdir: where.
    model: the Model wrapped in its hooks.
    recipe: its Recipe; what only serves training (a teacher) is left out.
    values: params and model_state, constants among it; shapes are enough.
    inputs: one batch of raw inputs, [B, ...].
    made: what else is known of how the model is made, JSON values, for whoever opens it.

  Returns:
    Why the model cannot be written (it calls back into Python, say), in one line; '' where it was.
  """
  served = _served(values, recipe)
  names, leaves, treedef = trees.flatten(served)
  shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
  own = _own(model, jax.tree.unflatten(treedef, shapes))

  def forward(leaves: list[Any], inputs: Any) -> Any:
    served = jax.tree.unflatten(treedef, leaves)
    outputs = model.apply(served['params'], served['model_state'], inputs, train=False, key=None)[0]
    return outputs, own.merged(served)

  try:
    program, batch = _export(forward, shapes, inputs)
  except Exception as error:  # a model that trains must not fail for this
    reason = str(error).strip().splitlines()
    return f'{type(error).__name__}: {reason[0] if reason else "no message"}'
  flat_inputs, _ = jax.tree.flatten(inputs)
  data = bytes(program.serialize())
  about = {
    'program': hashlib.sha256(data).hexdigest(),
    'arrays': names,
    'own': own.sources,
    'batch': batch,
    'inputs': [{'shape': list(leaf.shape[1:]), 'dtype': str(leaf.dtype)} for leaf in flat_inputs],
    'made': dict(made or {}),
  }
  write_bytes(workdir / _PROGRAM, data)
  write_sealed(workdir / _ABOUT, about)
  return ''


class _Own(NamedTuple):
  """How the bare network's own values come of those that are served.

  Attributes:
    sources: of each own value, by path, the served one that it is, or its place among `merged`; None where
      `Model.export` cannot be read.
    merged: served values -> those that are computed.
  """

  sources: dict[str, str | int] | None
  merged: Callable[[dict[str, Any]], list[Any]]


def _own(model: Model, served: dict[str, Any]) -> _Own:
  def exported(served: dict[str, Any]) -> dict[str, Any]:
    params, state = model.export(served['params'], served['model_state'])
    state = {name: value for name, value in state.items() if name == CONST or not trees.is_extra(name)}
    return {'params': params, 'model_state': state}

  try:
    jaxpr, shapes = jax.make_jaxpr(exported, return_shape=True)(served)
  except Exception:  # a hook of one's own, which computes with NumPy, say
    return _Own(None, lambda served: [])
  given = dict(zip(jaxpr.jaxpr.invars, trees.paths(served), strict=True))
  names = trees.paths(shapes)
  computed = [
    name for name, var in zip(names, jaxpr.jaxpr.outvars, strict=True) if hasattr(var, 'val') or var not in given
  ]

  def merged(served: dict[str, Any]) -> list[Any]:
    if not computed:
      return []
    found = trees.by_path(exported(served))
    return [found[name] for name in computed]

  sources: dict[str, str | int] = {
    name: computed.index(name) if name in computed else given[var]
    for name, var in zip(names, jaxpr.jaxpr.outvars, strict=True)
  }
  return _Own(sources, merged)


class Stored(NamedTuple):
  """A forward as a run wrote it.

  Attributes:
    program: (leaves, inputs) -> (outputs, merged values), as `jax.export` gives it back.
    about: what program.json says of it.
  """

  program: Any
  about: dict[str, Any]

  def run(self, served: Mapping[str, Any], inputs: Any) -> Any:
    """Returns the outputs for raw inputs [B, ...], of arrays by path."""
    return _run(self, [served[name] for name in self.about['arrays']], inputs)

  def own(self, served: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the bare network's own values by path, of arrays by path; None where the run could not tell."""
    sources = self.about.get('own')
    if sources is None:
      return None
    known = set(served)
    if not isinstance(sources, dict) or not all(isinstance(one, int) or one in known for one in sources.values()):
      raise ValueError(f'{_ABOUT} is damaged (it names arrays that are not there): train the run again')
    merged: list[Any] = []
    if any(isinstance(one, int) for one in sources.values()):
      inputs = [jnp.zeros((self.about['batch'] or 1, *one.shape[1:]), one.dtype) for one in self.inputs()]
      inputs = jax.tree.unflatten(self.input_tree(), inputs)
      leaves = [served[name] for name in self.about['arrays']]
      merged = jax.jit(lambda leaves, inputs: self.program.call(leaves, inputs)[1])(leaves, inputs)
    return {name: merged[one] if isinstance(one, int) else served[one] for name, one in sources.items()}

  @property
  def made(self) -> dict[str, Any]:
    """What is known of how the model was made; empty where the run is of an older version."""
    made = self.about.get('made')
    around = made.get('around') if isinstance(made, dict) else None
    return made if isinstance(around, list) and all(isinstance(one, str) for one in around) else {}

  def inputs(self) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of one example of raw inputs, [1, ...], flat."""
    return [jax.ShapeDtypeStruct((1, *one['shape']), jnp.dtype(one['dtype'])) for one in self.about['inputs']]

  def input_tree(self) -> Any:
    """Returns the structure of the raw inputs."""
    args, _ = jax.tree.unflatten(self.program.in_tree, range(self.program.in_tree.num_leaves))
    return jax.tree.structure(args[1])


def load_program(workdir: Path, params: Params, model_state: State) -> Network:
  """Returns the saved forward with these values, as a Network.

  Args:
    workdir: a run's folder.
    params: from one of its checkpoints.
    model_state: likewise, constants under 'jl.const'.

  Returns:
    A Network whose `predict` takes raw inputs.

  Raises:
    FileNotFoundError: the run wrote no program.
    ValueError: it is damaged.
  """
  return sealed_network(read_program(workdir), params, model_state)


def sealed_network(stored: Stored, params: Params, model_state: State) -> Network:
  """Returns a saved forward with these values, as a Network that predicts and whose inside nobody sees."""

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    del key, step
    if train:
      raise ValueError(f'a network that was loaded without its model only predicts: {walk.GIVE_MODEL}')
    return stored.run(trees.by_path({'params': params, 'model_state': state}), inputs), state

  apply.input_shapes = shapes_of(stored)  # type: ignore[attr-defined]  # fixed, for generate
  apply.around = ()  # type: ignore[attr-defined]  # its inputs are raw

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del key, inputs
    return params, model_state

  return Network(Model(init, apply), params, model_state)


def shapes_of(stored: Stored) -> list[tuple[int, ...]]:
  """Returns the shapes of one example of each input array."""
  return [tuple(one['shape']) for one in stored.about['inputs']]


def read_program(workdir: Path) -> Stored:
  """Reads a saved forward.

  Raises:
    FileNotFoundError: the run wrote no program.
    ValueError: it is damaged.
  """
  path = workdir / _PROGRAM
  if not path.exists() and not (workdir / _ABOUT).exists():
    raise FileNotFoundError(
      f'{workdir} holds no {_PROGRAM}: its model could not be written (the run said why), or it was deleted; '
      'train the run again to write it (a finished one is not trained), or build the model and restore a checkpoint'
    )
  data, about = _read_program(workdir)
  try:
    program = export.deserialize(bytearray(data))
  except Exception as error:  # whatever flatbuffers make of another version's bytes
    raise ValueError(
      f'{path} is from another jax ({type(error).__name__}): the checkpoints are what counts; build the model again '
      'and restore one into it'
    ) from None
  return Stored(program, about)


def served_arrays(workdir: Path) -> frozenset[str]:
  """Returns the paths of the arrays that a saved forward reads; none where it is missing or damaged."""
  try:
    return frozenset(map(str, _read_program(workdir)[1]['arrays']))
  except ValueError:
    return frozenset()


def program_damage(workdir: Path) -> str:
  """Returns what is wrong with the files of a saved forward, in a few words; '' where they are as they were written."""
  try:
    _read_program(workdir)
  except ValueError as error:
    return str(error)
  return ''


def _read_program(workdir: Path) -> tuple[bytes, dict[str, Any]]:
  """The bytes of the program, which nothing has touched yet, and what is said of it."""
  path = workdir / _PROGRAM
  try:
    about = read_sealed(workdir / _ABOUT)
    if not isinstance(about.get('arrays'), list) or not isinstance(about.get('inputs'), list):
      raise Damaged('it does not name its arrays and inputs')
    data = path.read_bytes()
    if 'program' in about and about['program'] != hashlib.sha256(data).hexdigest():
      raise Damaged(f'{_PROGRAM} has another hash than was written')
  except (Damaged, OSError) as error:
    why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    raise ValueError(
      f'{path} or its {_ABOUT} is damaged ({why}): train the run again to write it anew (a finished one is not trained)'
    ) from None
  return data, about


def _served(values: Network, recipe: Any) -> dict[str, Any]:
  """The arrays that prediction needs: those of every hook but the side networks."""
  sides = {part.name for part in recipe.parts if isinstance(part, Side)}
  live, const = split_const(values.model_state)
  const = {owner: value for owner, value in (const or {}).items() if owner not in sides}
  return {'params': values.params, 'model_state': join_const(live, const)}


def _export(forward: Any, shapes: list[Any], inputs: Any) -> tuple[Any, int | None]:
  """Exports with an open batch size where the model allows one, else for the batch size at hand."""

  def at(size: Any) -> Any:
    sized = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), inputs)
    return export.export(jax.jit(forward), platforms=_PLATFORMS)(shapes, sized)

  size = int(jax.tree.leaves(inputs)[0].shape[0])
  try:
    return at(export.symbolic_shape('batch')[0]), None
  except Exception:  # a model that computes with its batch size; what JAX raises then has no common class
    return at(size), size


def _run(stored: Stored, leaves: list[Any], inputs: Any) -> Any:
  inputs = checked_inputs(stored, inputs)
  flat, treedef = jax.tree.flatten(inputs)
  fixed, size = stored.about['batch'], flat[0].shape[0]

  def outputs(flat: list[Any]) -> Any:
    found = stored.program.call(leaves, jax.tree.unflatten(treedef, flat))
    return found[0] if 'own' in stored.about else found  # older versions wrote outputs alone

  if fixed is None and size > 0:
    return outputs(flat)
  chunk = fixed or 1  # an empty batch has no program of its own: run one example and keep none of it
  parts = []
  for start in range(0, max(size, 1), chunk):
    rows = [leaf[start : start + chunk] for leaf in flat]
    parts.append(outputs([jnp.pad(row, [(0, chunk - row.shape[0])] + [(0, 0)] * (row.ndim - 1)) for row in rows]))
  return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:size], *parts)


def checked_inputs(stored: Stored, inputs: Any) -> Any:
  """Returns raw inputs as arrays of the dtypes of training.

  Raises:
    ValueError: they are others than those of training.
  """
  flat, treedef = jax.tree.flatten(inputs)
  wanted = stored.about['inputs']
  if len(flat) != len(wanted):
    raise ValueError(f'this model takes {len(wanted)} input arrays; got {len(flat)}')
  return treedef.unflatten([_check_input(leaf, want) for leaf, want in zip(flat, wanted, strict=True)])


def _check_input(leaf: Any, want: dict[str, Any]) -> jax.Array:
  shape, dtype = tuple(want['shape']), jnp.dtype(want['dtype'])
  got = jnp.shape(leaf)
  if got[1:] != shape or not got:
    raise ValueError(f'this model takes {dtype}[B, {", ".join(map(str, shape))}]; got an array of shape {list(got)}')
  kind = np.asarray(leaf).dtype if not isinstance(leaf, jax.Array) else leaf.dtype
  if jnp.issubdtype(dtype, np.integer) and not jnp.issubdtype(kind, np.integer):
    raise ValueError(f'this model takes raw {dtype} inputs, as in training, and scales them itself; got {kind}')
  return jnp.asarray(leaf, dtype)
