"""From a function to a list of operations: traced at two batch sizes, calls opened, constants computed, batch open.

Whatever the two traces agree on is fixed; a size that grows by the same number for each example is a `Batch`; what
does neither is refused. What depends on constants alone is computed here, once, by JAX.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxlite import trees
from jaxlite.deployment.operations import UNKNOWN, Batch, Graph, Operation, equations, pruned
from jaxlite.deployment.operations.atoms import Const, Ref, Unknown, computed, constant, dtype_of, made_of, never_seen
from jaxlite.deployment.operations.open_batch import SIZES, Trace, joined
from jaxlite.graph import walk

KNOWN = 'known/'  # before the path of a param whose values come later
_LONGEST_SCAN = 256  # iterations that are written out one by one


def lower(fn: Callable[..., Any], params: Any, inputs: Any) -> Graph:
  """Writes `fn(params, inputs)` as a list of operations with an open batch.

  Args:
    fn: a pure function of jax.numpy, as for `jax.jit`; calls and short loops of fixed length are written out.
    params: its constants, any pytree of arrays.
    inputs: an example of the inputs: arrays or shapes [B, ...], any pytree. Their batch size does not matter.

  Returns:
    The Graph. Inputs are named 'input', or 'input/<path>' in a tree, likewise 'output'; constants by their path.

  Raises:
    ValueError: an operation has no rule, a loop of unknown length, or a shape that does not grow evenly with the batch.

  >>> import jax.numpy as jnp
  >>> print(lower(lambda p, x: jnp.maximum(x @ p['w'], 0.0), {'w': jnp.ones((3, 2))}, jnp.ones((1, 3))))
  (input: float32[B,3]) -> v1: float32[B,2]
    v0 = dot_general(input, w; dimension_numbers=(((1),(0)),((),())))  # float32[B,2]
    v1 = max(v0, c1)  # float32[B,2]
  """
  graph = pruned(joined(*(_trace(fn, params, inputs, size) for size in SIZES)))
  check_answers(graph)
  return graph


def lower_open(fn: Callable[..., Any], params: Any, inputs: Any) -> tuple[Graph, dict[str, str]]:
  """Writes `fn(params, inputs)` without the values of its params, which `folding.folded` puts in.

  What depends on params alone is written out too, every way of a choice among it that they make. What cannot be written
  is an operation of the kind `UNKNOWN`: an error only where the result of the values that are put in needs it.

  Args:
    fn: as for `lower`.
    params: any pytree of arrays or shapes.
    inputs: as for `lower`.

  Returns:
    The Graph, in which params are values that nothing makes; and their paths by their names in it.

  Raises:
    ValueError: a program of another form at another batch size.

  >>> import jax.numpy as jnp
  >>> graph, known = lower_open(lambda p, x: x * jnp.sqrt(p), jnp.ones(3), jnp.ones((1, 3)))
  >>> [one.kind for one in graph.operations], known
  (['sqrt', 'broadcast_in_dim', 'mul'], {'known/params': 'params'})
  """
  one, other = (_trace(fn, params, inputs, size, later=True) for size in SIZES)
  graph = pruned(joined(one, other, lenient=True))
  return graph, {name: name.removeprefix(KNOWN) for name in graph.values if name in one.known}


def check_answers(graph: Graph) -> None:
  """Raises ValueError where a result is not [B, ...]."""
  for name in graph.outputs:
    first, *rest = graph.values[name].shape or (0,)
    if first != Batch() or any(isinstance(size, Batch) for size in rest):
      raise ValueError(f'a network gives one answer for each example, [B, ...]; {name} is {graph.values[name]}')


def _trace(fn: Callable[..., Any], params: Any, inputs: Any, size: int, *, later: bool = False) -> Trace:
  known, names = trees.flatten(params)[1], [path or 'params' for path in trees.paths(params)]
  paths, leaves, treedef = trees.flatten(inputs)
  shapes = [jax.ShapeDtypeStruct((size, *jnp.shape(leaf)[1:]), jnp.result_type(leaf)) for leaf in leaves]
  structure = jax.tree.structure(params)

  def flat(known: Sequence[Any], given: Sequence[Any]) -> Any:
    return fn(jax.tree.unflatten(structure, known), jax.tree.unflatten(treedef, given))

  closed = _needed(jax.make_jaxpr(flat)(known, shapes))
  writer = _Writer({}, {}, [], [], [], {}, {}, set() if later else None)
  each = zip(known, names, strict=True)
  held: list[Any] = [
    writer.known(leaf, name) if later else Const(jnp.asarray(leaf), jnp.shape(leaf), name) for leaf, name in each
  ]
  refs = []
  for path, shape in zip(paths, shapes, strict=True):
    name = f'input/{path}' if path else 'input'
    refs.append(writer.value(name, shape.shape, shape.dtype))
    writer.inputs.append(name)
  results = writer.body(closed, [*held, *refs])
  writer.outputs.extend(map(writer.named, results))
  return writer.needed()


class _Writer(NamedTuple):
  """One trace, growing: values by name, constants by name, operations."""

  values: dict[str, Ref]
  constants: dict[str, Const]
  operations: list[Operation]
  inputs: list[str]
  outputs: list[str]
  held: dict[Any, str]  # constants by what is in them
  seen: dict[Any, tuple[str, Any]]  # and by which array they are, kept alive: a loop reads one again and again
  later: set[str] | None  # values that depend on params alone, where those are not known yet

  def value(self, name: str, shape: Sequence[int], dtype: Any) -> Ref:
    self.values[name] = Ref(name, tuple(shape), np.dtype(dtype))
    return self.values[name]

  def known(self, leaf: Any, path: str) -> Ref:
    """A param whose values come later."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
      return self.emit(UNKNOWN, [], leaf, {'why': f'{path} is a random key, and what leaves jaxlite draws nothing'})
    assert self.later is not None
    self.later.add(KNOWN + path)
    return self.value(KNOWN + path, leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))

  def of_params(self, kind: str, operands: Sequence[Any]) -> frozenset[str]:
    """What is written beside what every runtime knows, where it depends on params alone."""
    alone = self.later is not None and all(isinstance(one, Const) or one.name in self.later for one in operands)
    return equations.OF_PARAMS if alone else frozenset()

  def unknown(self, eqn: Any, why: str) -> list[Any]:
    if self.later is None:
      return [Unknown(why)] * len(eqn.outvars)
    return [self.emit(UNKNOWN, [], out.aval, {'why': why}) for out in eqn.outvars]

  def named(self, atom: Any) -> str:
    """The name of an operand; a constant gets one when it is first read."""
    if isinstance(atom, Unknown):
      raise ValueError(atom.why)
    if isinstance(atom, Ref):
      return atom.name
    which = (id(atom.array), atom.shape)
    if which not in self.seen:
      self.seen[which] = (self.by_contents(atom), atom.array)
    return self.seen[which][0]

  def by_contents(self, atom: Const) -> str:
    array = np.asarray(atom.array)
    key = (atom.shape, array.shape, array.dtype.str, hashlib.sha256(array.tobytes()).digest())
    if key in self.held:
      return self.held[key]
    name = atom.name if atom.name and atom.name not in self.constants else f'c{len(self.constants)}'
    while name in self.constants or name in self.values:
      name += '_'
    self.constants[name], self.held[key] = atom, name
    return name

  def emit(self, kind: str, operands: Sequence[Any], aval: Any, attributes: Mapping[str, Any]) -> Ref:
    extended = jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)  # random keys
    result = self.value(f'v{len(self.operations)}', aval.shape, np.uint32 if extended else aval.dtype)
    self.operations.append(Operation(kind, tuple(map(self.named, operands)), (result.name,), dict(attributes)))
    if self.later is not None and all(isinstance(one, Const) or one.name in self.later for one in operands):
      self.later.add(result.name)
    return result

  def needed(self) -> Trace:
    """Without what no result needs."""
    names, kept = set(self.outputs), []
    for one in reversed(self.operations):
      if names.intersection(one.outputs):
        kept.append(one)
        names.update(one.inputs)
    constants = {name: value for name, value in self.constants.items() if name in names}
    known = {name for name in self.later or () if name.startswith(KNOWN)}
    return Trace(self.values, constants, kept[::-1], self.inputs, self.outputs, known)

  def body(self, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
    bare, consts = walk.opened(jaxpr)
    known = [constant(value) for value in consts]
    env: dict[Any, Any] = dict(zip([*bare.constvars, *bare.invars], [*known, *args], strict=True))

    def read(atom: Any) -> Any:
      return constant(atom.val) if hasattr(atom, 'val') else env[atom]

    for eqn in bare.eqns:
      env.update(zip(eqn.outvars, self.equation(eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in bare.outvars]

  def equation(self, eqn: Any, operands: list[Any]) -> list[Any]:
    kind, params = eqn.primitive.name, eqn.params
    if not eqn.outvars:  # nothing comes of it
      return []
    if kind in walk.CALLS and kind != 'shard_map':
      if params.get('name') in equations.AT_ONCE and all(isinstance(one, Const) for one in operands):
        return [one._replace(name=made_of(operands, one.shape)) for one in computed(eqn, operands)]
      return self.body(params[walk.CALLS[kind]], operands)
    if kind in equations.NOTHING:
      return operands
    if not eqn.primitive.multiple_results and equations.is_empty(eqn.outvars[0].aval):
      return [constant(jnp.zeros(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype))]
    if kind == 'concatenate':  # what is empty adds nothing: jnp.pad repeats an edge no times along the examples
      operands = [one for one in operands if isinstance(one, Unknown) or 0 not in one.shape]
      if len(operands) == 1:
        return operands
    if kind == 'reduce_precision' and operands[0].shape == eqn.outvars[0].aval.shape and equations.keeps(eqn):
      return operands
    if kind == 'scan' and not all(isinstance(one, Const) for one in operands):
      return self.scan(eqn, operands)
    if kind == 'while' and not all(isinstance(one, Const) for one in operands):
      return self.loop(eqn, operands)
    known, unknown = ([isinstance(one, what) for one in operands] for what in (Const, Unknown))
    if kind in ('split', 'unstack', 'stack') and not all(known) and not any(unknown):
      return self.parts(eqn, operands)
    if kind == 'cond':
      return self.branch(eqn, operands)
    if kind == 'platform_index':  # which platform this will run on: the first is what every one can do
      return [constant(np.int32(len(params.get('platforms', ())) - 1))]
    if kind == 'select_n' and known[0] and len(ways := np.unique(operands[0].array)) == 1:
      chosen = operands[1 + int(ways[0])]
      if isinstance(chosen, Unknown):
        return [never_seen(operands[1:]) or chosen]
      if chosen.shape == eqn.outvars[0].aval.shape:
        return [chosen]
    if any(unknown):
      return [operands[unknown.index(True)]] * len(eqn.outvars)
    if all(known):
      return computed(eqn, operands)
    if (said := equations.by_others(eqn)) is not None:
      return self.body(said, operands)
    if kind not in equations.UNARY | equations.BINARY | equations.OTHERS | self.of_params(kind, operands):
      why = f'{kind} at {equations.where(eqn)} is none: compute it before or after the network, or write it by others'
      return self.unknown(eqn, f'a network that leaves jaxlite is made of operations that its list knows; {why}')
    left_out = equations.left_out(eqn)
    if left_out:
      return self.unknown(eqn, f'{left_out} ({equations.where(eqn)}) is not written: write it by other operations')
    if kind == 'broadcast_in_dim' and not params['shape']:
      return operands[:1]
    if kind == 'reshape' and params.get('dimensions') is not None:
      turned = jax.ShapeDtypeStruct([operands[0].shape[axis] for axis in params['dimensions']], operands[0].dtype)
      operands = [self.emit('transpose', operands, turned, {'permutation': tuple(params['dimensions'])})]
      params = {**params, 'dimensions': None}
    attributes = {
      name: equations.plain(value, name)
      for name, value in params.items()
      if name not in equations.IDLE and value is not None
    }
    if kind == 'add_any':
      kind = 'add'
    if kind == 'gather':
      attributes['mode'] = str(params['mode']).rpartition('.')[2].lower()
    return [self.emit(kind, operands, out.aval, attributes) for out in eqn.outvars]

  def parts(self, eqn: Any, operands: list[Any]) -> list[Any]:
    """Cuts along an axis, or puts together along a new one."""
    axis = eqn.params['axis']
    if eqn.primitive.name == 'stack':
      return [self.stacked(operands, axis)]
    (whole,) = operands
    if eqn.primitive.name == 'unstack':
      return [self.taken(whole, index, axis) for index in range(whole.shape[axis])]
    found, start = [], 0
    for out, size in zip(eqn.outvars, eqn.params['sizes'], strict=True):
      found.append(self.cut(whole, axis, start, start + size, out.aval.shape))
      start += size
    return found

  def cut(self, whole: Ref, axis: int, start: int, stop: int, shape: Sequence[int]) -> Ref:
    start, stop = int(start), int(stop)  # sizes of a split may be NumPy's
    starts = tuple(start if index == axis else 0 for index in range(len(shape)))
    limits = tuple(stop if index == axis else size for index, size in enumerate(whole.shape))
    aval = jax.ShapeDtypeStruct(tuple(shape), whole.dtype)
    return self.emit('slice', [whole], aval, {'start_indices': starts, 'limit_indices': limits})

  def scan(self, eqn: Any, operands: list[Any]) -> list[Any]:
    """Writes the iterations one after the other."""
    length, reverse = eqn.params['length'], eqn.params['reverse']
    if length > _LONGEST_SCAN:
      why = f'a loop is written out up to {_LONGEST_SCAN} iterations; one of {length} at {equations.where(eqn)} is not'
      return self.unknown(eqn, why)
    fixed, carried = walk.scan_layout(eqn)
    if length == 0:
      empty = [constant(jnp.zeros(out.aval.shape, out.aval.dtype)) for out in eqn.outvars[carried:]]
      return [*operands[fixed : fixed + carried], *empty]
    consts, carry, xs = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]
    slices: list[list[Any]] = [[] for _ in eqn.outvars[carried:]]
    for index in reversed(range(length)) if reverse else range(length):
      results = self.body(eqn.params['jaxpr'], [*consts, *carry, *(self.taken(one, index) for one in xs)])
      carry = results[:carried]
      for one, result in zip(slices, results[carried:], strict=True):
        one.append(result)
    outs = [self.stacked(list(reversed(one)) if reverse else one) for one in slices]
    return [*carry, *outs]

  def loop(self, eqn: Any, operands: list[Any]) -> list[Any]:
    """Writes the rounds of a loop one after the other, where constants alone say how many there are."""
    told, at = eqn.params, equations.where(eqn)
    first, second = told['cond_nconsts'], told['cond_nconsts'] + told['body_nconsts']
    asked, fixed, carry = operands[:first], operands[first:second], operands[second:]
    for _ in range(_LONGEST_SCAN + 1):
      (more,) = self.body(told['cond_jaxpr'], [*asked, *carry])
      if not isinstance(more, Const):
        return self.unknown(eqn, f'a loop is written out whose length is known; {at} goes on as its input says')
      if not bool(more.array.reshape(-1)[0]):
        return carry
      carry = self.body(told['body_jaxpr'], [*fixed, *carry])
    why = f'a loop is written out up to {_LONGEST_SCAN} iterations; one of more at {at} is not'
    return self.unknown(eqn, why)

  def taken(self, whole: Any, index: int, axis: int = 0) -> Any:
    """One entry along an axis."""
    left = (*whole.shape[:axis], *whole.shape[axis + 1 :])
    if isinstance(whole, Const):
      row = jnp.take(whole.array, 0 if whole.array.shape[axis] == 1 else index, axis)
      return Const(row, left, f'{whole.name}/{index}' if whole.name else '')
    row = self.cut(whole, axis, index, index + 1, (*whole.shape[:axis], 1, *whole.shape[axis + 1 :]))
    return self.emit('reshape', [row], jax.ShapeDtypeStruct(left, whole.dtype), {'new_sizes': left})

  def stacked(self, rows: list[Any], axis: int = 0) -> Any:
    if all(isinstance(row, Const) for row in rows):
      return constant(jnp.stack([row.whole for row in rows], axis))
    each = []
    for row in rows:
      shape = (*row.shape[:axis], 1, *row.shape[axis:])
      if isinstance(row, Const):
        each.append(Const(jnp.expand_dims(row.array, axis), shape))
      else:
        aval = jax.ShapeDtypeStruct(shape, row.dtype)
        each.append(self.emit('reshape', [row], aval, {'new_sizes': shape}))
    shape = (*rows[0].shape[:axis], len(rows), *rows[0].shape[axis:])
    return self.emit('concatenate', each, jax.ShapeDtypeStruct(shape, dtype_of(rows[0])), {'dimension': axis})

  def branch(self, eqn: Any, operands: list[Any]) -> list[Any]:
    (index, *rest), branches = operands, eqn.params['branches']
    if isinstance(index, Const):
      return self.body(branches[int(np.clip(int(index.array), 0, len(branches) - 1))], rest)
    if self.later is None or index.name not in self.later:
      why = f'a network that leaves jaxlite takes the same way for every input; {equations.where(eqn)} chooses by its'
      return self.unknown(eqn, f'{why} input: use jnp.where')
    cases = zip(*(self.body(one, rest) for one in branches), strict=True)
    return [self.emit('select_n', [index, *case], out.aval, {}) for case, out in zip(cases, eqn.outvars, strict=True)]


def _needed(closed: Any) -> Any:
  """The program without what no result needs: nothing is computed for it then."""
  used = [True] * len(closed.jaxpr.outvars)
  return closed.replace(jaxpr=partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)[0])
