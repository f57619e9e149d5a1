"""The forward pass of a run as a portable program, so that a result is used without the code that made it.

A run writes its evaluation-time forward (preprocessing, averages and all) as StableHLO, with a batch size left
open and the weights left out: they stay in the checkpoints. `jaxlite.load` puts the two together again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from jaxlite import errors, trees
from jaxlite.contract import Model, Network, Params, Side, State, join_const, split_const
from jaxlite.deployment import calls, linalg
from jaxlite.deployment.about import check_about, check_results, own_of
from jaxlite.deployment.operations.given import check_kind
from jaxlite.graph import walk
from jaxlite.host.files import read_file, write_bytes
from jaxlite.host.sealed import Damaged, read_sealed, write_sealed

_PROGRAM, _ABOUT = 'program.bin', 'program.json'  # in a run's folder
_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def save_program(
  workdir: Path,
  model: Model,
  recipe: Any,
  values: Network,
  inputs: Any,
  made: Mapping[str, Any] | None = None,
  *,
  run: str = '',
) -> str:
  """Writes program.bin and program.json, where the model can be written.

  Args:
    workdir: where.
    model: the Model wrapped in its hooks.
    recipe: its Recipe; what only serves training (a teacher) is left out.
    values: params and model_state, constants among it; shapes are enough.
    inputs: one batch of raw inputs, [B, ...].
    made: what else is known of how the model is made, JSON values, for whoever opens it.
    run: the id of the run that writes it.

  Returns:
    Why the model cannot be written (it calls back into Python, say), in one line; '' where it was.
  """
  served = served_values(values, recipe)
  names, leaves, treedef = trees.flatten(served)
  shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
  own = own_of(model, jax.tree.unflatten(treedef, shapes))

  def forward(leaves: list[Any], inputs: Any) -> Any:
    served = jax.tree.unflatten(treedef, leaves)
    outputs = model.apply(served['params'], served['model_state'], inputs, train=False, key=None)[0]
    return outputs, own.merged(served)

  try:
    program, batch = _export(forward, shapes, inputs)
  except Exception as error:  # a model that trains must not fail for this
    reason = str(error).strip().splitlines()
    return f'{type(error).__name__}: {reason[0] if reason else "no message"}'
  if unlisted := calls.refused(program.mlir_module()):
    return f'it asks for {unlisted}, which no portable program may'
  flat_inputs, _ = jax.tree.flatten(inputs)
  data = bytes(program.serialize())
  about = {
    'run': run,
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


class Stored(NamedTuple):
  """A forward as a run wrote it.

  Attributes:
    path: of its file.
    program: (leaves, inputs) -> (outputs, merged values), as `jax.export` gives it back; of older versions -> outputs.
    about: what program.json says of it.
    linear: whether it calls LAPACK, which trusts the sizes that it is told.
  """

  path: Path
  program: Any
  about: dict[str, Any]
  linear: bool

  def run(self, served: Mapping[str, Any], inputs: Any) -> Any:
    """Returns the outputs for raw inputs [B, ...], of arrays by path."""
    return _run(self, [served[name] for name in self.about['arrays']], inputs)

  def own(self, served: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the bare network's own values by path, of arrays by path; None where the run could not tell."""
    sources = self.about.get('own')
    if sources is None:
      return None
    merged: list[Any] = []
    if any(isinstance(one, int) for one in sources.values()):
      inputs = [jnp.zeros((self.about['batch'] or 1, *one.shape[1:]), one.dtype) for one in self.inputs()]
      inputs = jax.tree.unflatten(self.input_tree(), inputs)
      leaves = [served[name] for name in self.about['arrays']]
      merged = jax.jit(lambda leaves, inputs: _called(self, leaves, inputs)[1])(leaves, inputs)
    return {name: merged[one] if isinstance(one, int) else served[one] for name, one in sources.items()}

  @property
  def made(self) -> dict[str, Any]:
    """What is known of how the model was made; empty where the run is of an older version."""
    made = self.about.get('made', {})
    return made if 'around' in made else {}

  def inputs(self) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of one example of raw inputs, [1, ...], flat."""
    return [jax.ShapeDtypeStruct((1, *one['shape']), jnp.dtype(one['dtype'])) for one in self.about['inputs']]

  def input_tree(self) -> Any:
    """Returns the structure of the raw inputs."""
    args, _ = jax.tree.unflatten(self.program.in_tree, range(self.program.in_tree.num_leaves))
    return jax.tree.structure(args[1])


def load_program(workdir: Path, params: Params, model_state: State, *, run: str | None = None) -> Network:
  """Returns the saved forward with these values, as a Network.

  Args:
    workdir: a run's folder.
    params: from one of its checkpoints.
    model_state: likewise, constants under 'jl.const'.
    run: the id of the run that it must be of; None: of any.

  Returns:
    A Network whose `predict` takes raw inputs.

  Raises:
    FileNotFoundError: the run wrote no program.
    ValueError: it is damaged, or reads arrays that are not there.
  """
  stored = read_program(workdir, run=run)
  check_held(stored, trees.by_path({'params': params, 'model_state': model_state}))
  return sealed_network(stored, params, model_state)


def sealed_network(stored: Stored, params: Params, model_state: State) -> Network:
  """Returns a saved forward with these values, as a Network that predicts and whose inside nobody sees."""

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    del key, step
    if train:
      raise ValueError(f'a network that was loaded without its model only predicts: {walk.GIVE_MODEL}')
    return stored.run(trees.by_path({'params': params, 'model_state': state}), inputs), state

  apply.input_shapes = shapes_of(stored)  # type: ignore[attr-defined]  # fixed, for generate
  apply.sealed = True  # type: ignore[attr-defined]
  apply.around = ()  # type: ignore[attr-defined]  # its inputs are raw

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del key, inputs
    return params, model_state

  return Network(Model(init, apply), params, model_state)


def shapes_of(stored: Stored) -> list[tuple[int, ...]]:
  """Returns the shapes of one example of each input array."""
  return [tuple(one['shape']) for one in stored.about['inputs']]


def check_held(stored: Stored, held: Mapping[str, Any]) -> None:
  """Raises ValueError where a saved forward reads arrays that are not held, by path."""
  if lost := [name for name in stored.about['arrays'] if name not in held]:
    raise ValueError(
      f'{stored.path} reads {errors.arrays(lost)}, which the checkpoint does not hold: they are of two runs'
    )


def read_program(workdir: Path, *, run: str | None = None) -> Stored:
  """Reads a saved forward, and looks at it: nothing of it is run.

  Args:
    workdir: a run's folder.
    run: the id of the run that it must be of; None: of any.

  Raises:
    FileNotFoundError: the run wrote no program.
    ValueError: it is damaged, or none that a run writes.
  """
  path = workdir / _PROGRAM
  if not path.exists() and not (workdir / _ABOUT).exists():
    raise FileNotFoundError(
      f'{workdir} holds no {_PROGRAM}: its model could not be written (the run said why), or it was deleted; '
      'train the run again to write it (a finished one is not trained), or build the model and restore a checkpoint'
    )
  data, about = _read_program(workdir, run)
  try:
    program = export.deserialize(bytearray(data))
    text = program.mlir_module()
    unlisted = calls.refused(text)
  except Exception as error:  # whatever flatbuffers and MLIR make of another version's bytes
    raise ValueError(
      f'{path} is from another jax ({type(error).__name__}): the checkpoints are what counts; build the model again '
      'and restore one into it'
    ) from None
  if unlisted:
    raise ValueError(f'{path} is not run: it asks for {unlisted}, which no run writes, so a stranger made it')
  takes = [(*aval.shape[1:], aval.dtype) for aval in program.in_avals[len(about['arrays']) :]]
  if takes != [(*one['shape'], jnp.dtype(str(one['dtype']))) for one in about['inputs']]:
    raise ValueError(f'{path} takes other inputs than its {_ABOUT} says: train the run again to write them anew')
  if not check_results(about, program.out_tree):
    raise ValueError(f'{path} gives other results than its {_ABOUT} says: train the run again to write them anew')
  return Stored(path, program, about, linalg.MARK in text)


def served_arrays(workdir: Path, run: str) -> frozenset[str]:
  """Returns the paths of the arrays that a run's saved forward reads; none where it is missing or damaged."""
  try:
    return frozenset(_read_program(workdir, run)[1]['arrays'])
  except ValueError:
    return frozenset()


def program_damage(workdir: Path, run: str) -> str:
  """Returns what is wrong with the files of a run's saved forward, in a few words; '' where they are as written."""
  try:
    _read_program(workdir, run)
  except ValueError as error:
    return str(error)
  return ''


def _read_program(workdir: Path, run: str | None = None) -> tuple[bytes, dict[str, Any]]:
  """The bytes of the program, which nothing has touched yet, and what is said of it."""
  path = workdir / _PROGRAM
  try:
    about = read_sealed(workdir / _ABOUT, run)
    check_about(about)
    data = read_file(path)
    if 'program' in about and about['program'] != hashlib.sha256(data).hexdigest():
      raise Damaged(f'{_PROGRAM} has another hash than was written')
  except (Damaged, OSError) as error:
    why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    raise ValueError(
      f'{path} or its {_ABOUT} is damaged ({why}): train the run again to write it anew (a finished one is not trained)'
    ) from None
  return data, about


def served_values(values: Network, recipe: Any) -> dict[str, Any]:
  """Returns the arrays that prediction needs: those of every hook but the side networks."""
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
    found = _called(stored, leaves, treedef.unflatten(flat))
    return found[0] if 'own' in stored.about else found  # older versions wrote outputs alone

  if fixed is None and size > 0:
    return outputs(flat)
  chunk = fixed or 1  # an empty batch has no program of its own: run one example and keep none of it
  parts = []
  for start in range(0, max(size, 1), chunk):
    rows = [leaf[start : start + chunk] for leaf in flat]
    parts.append(outputs([jnp.pad(row, [(0, chunk - row.shape[0])] + [(0, 0)] * (row.ndim - 1)) for row in rows]))
  return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:size], *parts)


def _called(stored: Stored, leaves: list[Any], inputs: Any) -> Any:
  """All that a program gives of arrays; one line where it is not what it says of itself."""
  try:
    if stored.linear:  # sizes are known once it is compiled for them
      shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (leaves, inputs))
      linalg.check_sizes(jax.jit(lambda *given: stored.program.call(*given)).lower(*shapes))
    return _sealed(stored.program.call, leaves, inputs)
  except Exception as error:  # what it takes or says of itself is not so; JAX has no common class for that
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(f'{stored.path} cannot be run on these arrays ({told[:200]})') from None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sealed(call: Any, leaves: list[Any], inputs: Any) -> Any:
  return call(leaves, inputs)


def _no_gradient(call: Any, kept: None, cotangents: Any) -> Any:
  del call, kept, cotangents
  raise ValueError(f'a network that was loaded without its model has no gradient: {walk.GIVE_MODEL}')


_sealed.defvjp(lambda call, leaves, inputs: (call(leaves, inputs), None), _no_gradient)


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
    fix = ': one example is a batch of one, inputs[None]' if got == shape else ''
    raise ValueError(
      f'this model takes {dtype}[{", ".join(["B", *map(str, shape)])}]; got an array of shape {list(got)}{fix}'
    )
  check_kind('this model', leaf, dtype)
  return jnp.asarray(leaf, dtype)
