"""The forward pass of a run as a portable program, so that a result is used without the code that made it.

A run writes its evaluation-time forward (preprocessing, averages and all) as StableHLO, with a batch size left
open and the weights left out: they stay in the checkpoints. `jaxlite.load` puts the two together again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxlite import errors, trees
from jaxlite.contract import Model, Network, Params, Side, State, join_const, split_const
from jaxlite.deployment import calls, linalg
from jaxlite.host.files import read_file, write_bytes
from jaxlite.host.sealed import Damaged, read_sealed, write_sealed

_PROGRAM, _ABOUT = 'program.bin', 'program.json'  # in a run's folder
_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def save_program(workdir: Path, model: Model, recipe: Any, values: Network, inputs: Any, *, run: str = '') -> str:
  """Writes program.bin and program.json, where the model can be written.

  Args:
    workdir: where.
    model: the Model wrapped in its hooks.
    recipe: its Recipe; what only serves training (a teacher) is left out.
    values: params and model_state, constants among it; shapes are enough.
    inputs: one batch of raw inputs, [B, ...].
    run: the id of the run that writes it.

  Returns:
    Why the model cannot be written (it calls back into Python, say), in one line; '' where it was.
  """
  names, leaves, treedef = trees.flatten(_served(values, recipe))

  def forward(leaves: list[Any], inputs: Any) -> Any:
    served = jax.tree.unflatten(treedef, leaves)
    return model.apply(served['params'], served['model_state'], inputs, train=False, key=None)[0]

  shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
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
    'batch': batch,
    'inputs': [{'shape': list(leaf.shape[1:]), 'dtype': str(leaf.dtype)} for leaf in flat_inputs],
  }
  write_bytes(workdir / _PROGRAM, data)
  write_sealed(workdir / _ABOUT, about)
  return ''


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
    ValueError: it is damaged.
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
  names, linear = about['arrays'], linalg.MARK in text
  held = trees.by_path({'params': params, 'model_state': model_state})
  takes = [(*aval.shape[1:], aval.dtype) for aval in program.in_avals[len(names) :]]
  if takes != [(*one['shape'], jnp.dtype(str(one['dtype']))) for one in about['inputs']]:
    raise ValueError(f'{path} takes other inputs than its {_ABOUT} says: train the run again to write them anew')
  if lost := [name for name in names if name not in held]:
    raise ValueError(f'{path} reads {errors.arrays(lost)}, which the checkpoint does not hold: they are of two runs')

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    del key, step
    if train:
      raise ValueError('a loaded run predicts; to train on, build its model and give params= to init')
    flat = trees.by_path({'params': params, 'model_state': state})
    return _run(path, program, about, [flat[name] for name in names], inputs, linear), state

  apply.input_shapes = [tuple(one['shape']) for one in about['inputs']]  # type: ignore[attr-defined]  # fixed, for generate

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del key, inputs
    return params, model_state

  return Network(Model(init, apply), params, model_state)


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
    _check_about(about)
    data = read_file(path)
    if 'program' in about and about['program'] != hashlib.sha256(data).hexdigest():
      raise Damaged(f'{_PROGRAM} has another hash than was written')
  except (Damaged, OSError) as error:
    why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    raise ValueError(
      f'{path} or its {_ABOUT} is damaged ({why}): train the run again to write it anew (a finished one is not trained)'
    ) from None
  return data, about


def _check_about(about: dict[str, Any]) -> None:
  """Raises Damaged where what is said of a program has another shape than was ever written."""
  arrays, inputs, batch = about.get('arrays'), about.get('inputs'), about.get('batch')
  if not isinstance(arrays, list) or not all(isinstance(name, str) for name in arrays):
    raise Damaged('it does not name its arrays')
  if 'batch' not in about or not (batch is None or (type(batch) is int and batch > 0)):
    raise Damaged('its batch size is none')
  try:
    sizes = [size for one in inputs or () for size in one['shape']]
    known = [jnp.dtype(str(one['dtype'])) for one in inputs or ()]
  except (TypeError, KeyError, AttributeError):
    raise Damaged('it does not name its inputs') from None
  if not known or not all(type(size) is int and size >= 0 for size in sizes):
    raise Damaged('it does not name its inputs')


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


def _run(path: Path, program: Any, about: dict[str, Any], leaves: list[Any], inputs: Any, linear: bool) -> Any:
  flat, treedef = jax.tree.flatten(inputs)
  wanted = about['inputs']
  if len(flat) != len(wanted):
    raise ValueError(f'this model takes {len(wanted)} input arrays; got {len(flat)}')
  flat = [_check_input(leaf, want) for leaf, want in zip(flat, wanted, strict=True)]
  fixed = about['batch']
  size = flat[0].shape[0]

  def call(rows: list[Any]) -> Any:
    try:
      if linear:  # sizes are known once it is compiled for them
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (leaves, rows))
        linalg.check_sizes(jax.jit(lambda leaves, rows: program.call(leaves, treedef.unflatten(rows))).lower(*shapes))
      return program.call(leaves, jax.tree.unflatten(treedef, rows))
    except Exception as error:  # what it takes or says of itself is not so; JAX has no common class for that
      told = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise ValueError(f'{path} cannot be run on these arrays ({told[:200]})') from None

  if fixed is None and size > 0:
    return call(flat)
  chunk = fixed or 1  # an empty batch has no program of its own: run one example and keep none of it
  parts = []
  for start in range(0, max(size, 1), chunk):
    rows = [leaf[start : start + chunk] for leaf in flat]
    padded = [jnp.pad(row, [(0, chunk - row.shape[0])] + [(0, 0)] * (row.ndim - 1)) for row in rows]
    parts.append(call(padded))
  return jax.tree.map(lambda *outputs: jnp.concatenate(outputs)[:size], *parts)


def _check_input(leaf: Any, want: dict[str, Any]) -> jax.Array:
  shape, dtype = tuple(want['shape']), jnp.dtype(want['dtype'])
  got = jnp.shape(leaf)
  if got[1:] != shape or not got:
    raise ValueError(f'this model takes {dtype}[B, {", ".join(map(str, shape))}]; got an array of shape {list(got)}')
  kind = np.asarray(leaf).dtype if not isinstance(leaf, jax.Array) else leaf.dtype
  if jnp.issubdtype(dtype, np.integer) and not jnp.issubdtype(kind, np.integer):
    raise ValueError(f'this model takes raw {dtype} inputs, as in training, and scales them itself; got {kind}')
  return jnp.asarray(leaf, dtype)
