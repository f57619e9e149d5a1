"""Programs of values that are cut: the interpreter, control flow, and derivatives that somebody wrote.

A program runs again equation by equation with smaller arrays. What touches nothing cut is bound as it is. Loops and
branches are emitted anew. A custom derivative stays one: its rule is traced at whole shapes and cut as its function is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.graph import walk
from jaxlite.graph.cut import (
  ELEMENTWISE,
  CannotCutError,
  Same,
  Value,
  bind,
  cannot,
  elementwise,
  fitted,
  forgetting,
  gone_array,
  joined,
  number,
  take,
)
from jaxlite.graph.cut_products import PRODUCTS
from jaxlite.graph.cut_shapes import SHAPES

_PLAIN = {'broadcast_in_dim', 'reshape', 'transpose', 'squeeze', 'slice', 'copy', 'copy_p'}  # they keep what is alike


def run(jaxpr: Any, given: Sequence[Value]) -> list[Value]:
  """Runs a program on values of which some are cut.

  Args:
    jaxpr: closed.
    given: its inputs.

  Returns:
    Its results, cut as they come.

  Raises:
    CannotCutError: an equation needs what is gone, or is not understood.
  """
  bare, consts = walk.opened(jaxpr)
  env: dict[Any, Value] = dict(zip(bare.constvars, map(whole, consts), strict=True))
  env.update(zip(bare.invars, given, strict=True))

  def value(atom: Any) -> Value:
    return whole(np.asarray(atom.val, atom.aval.dtype)) if hasattr(atom, 'val') else env[atom]

  for eqn in bare.eqns:
    values = [value(atom) for atom in eqn.invars]
    scope = str(eqn.source_info.name_stack)
    with eqn.ctx.manager, jax.named_scope(scope) if scope else contextlib.nullcontext():
      results = _equation(eqn, values)
    env.update(zip(eqn.outvars, results, strict=True))
  return [value(atom) for atom in bare.outvars]


def whole(array: Any) -> Value:
  """Returns a value of which nothing is gone."""
  return Value(array, {}, frozenset(), number(array))


def _equation(eqn: Any, values: list[Value]) -> list[Value]:
  name = eqn.primitive.name
  is_cut = any(value.cuts for value in values)
  if name in ELEMENTWISE and len(eqn.outvars) == 1:
    return elementwise(eqn, values)
  if name in SHAPES and (is_cut or name in _PLAIN):
    return SHAPES[name](eqn, values)
  if not is_cut:
    return [Value(array) for array in bind(eqn, [value.array for value in values])]
  if name in PRODUCTS:
    return PRODUCTS[name](eqn, values)
  if name in _FLOW:
    return _FLOW[name](eqn, values)
  if name == 'bitcast_convert_type' and eqn.invars[0].aval.dtype.itemsize == eqn.outvars[0].aval.dtype.itemsize:
    return elementwise(eqn, values)
  if name == 'sharding_constraint':
    return values
  raise cannot(eqn, 'how it goes on without a part of its operands is not known')


def _call(eqn: Any, values: list[Value]) -> list[Value]:
  return run(eqn.params[walk.CALLS[eqn.primitive.name]], values)


def _remat(eqn: Any, values: list[Value]) -> list[Value]:
  again = jax.checkpoint(
    lambda values: run(eqn.params['jaxpr'], values), policy=eqn.params['policy'], prevent_cse=eqn.params['prevent_cse']
  )
  return again([_alive(value) for value in values])


# --- derivatives that somebody wrote -------------------------------------------------------------------------------


def _floats(atoms: Sequence[Any]) -> list[int]:
  return [index for index, atom in enumerate(atoms) if jnp.issubdtype(atom.aval.dtype, jnp.inexact)]


def _shapes(atoms: Sequence[Any], places: Sequence[int]) -> list[Any]:
  return [jax.ShapeDtypeStruct(atoms[index].aval.shape, atoms[index].aval.dtype) for index in places]


def _of_floats(eqn: Any, primals: Sequence[Any]) -> Any:
  """An equation as a function of its operands that are floats, giving its results that are."""
  places, results = _floats(eqn.invars), _floats(eqn.outvars)

  def fn(*given: Any) -> list[Any]:
    every = list(primals)
    for index, one in zip(places, given, strict=True):
      every[index] = one
    out = bind(eqn, every)
    return [out[index] for index in results]

  return fn


def _no_change(value: Value) -> Value:
  """The tangent of integers."""
  return jax.tree.map(lambda leaf: np.zeros(jnp.shape(leaf), jax.dtypes.float0), value)


def _unchanged(gone: Any) -> Any:
  """Of a tangent: what is one number does not change."""
  return Same(np.zeros_like(gone.value)[()]) if isinstance(gone, Same) else gone


def _as_tangent(change: Value, out: Value, eqn: Any) -> Value:
  """A tangent in the structure of its value."""
  for axis, cut in out.cuts.items():
    change = take(change, axis, cut, eqn)
  if set(change.cuts) != set(out.cuts):
    raise cannot(eqn, 'its derivative is cut along other axes')
  cuts = {}
  for axis, cut in out.cuts.items():
    gone = cut.gone
    if gone is not None and not isinstance(gone, Same):
      gone = gone_array(change, axis)
      if gone is None:
        raise cannot(eqn, 'of its derivative it is not known what is gone')
    cuts[axis] = cut._replace(gone=gone)
  return Value(change.array, cuts, out.alike, out.level)


@contextlib.contextmanager
def _of_a_rule(eqn: Any) -> Iterator[None]:
  """Says of what cannot be cut that only the derivative cannot."""
  try:
    yield
  except CannotCutError as error:
    raise cannot(
      eqn,
      f'its own rule for derivatives cannot do without what is gone ({error}): the smaller network predicts and does '
      'not train; leave this group whole (rule=), or write the rule so that each entry depends on its own alone',
    ) from None


def _custom_jvp(eqn: Any, values: list[Value]) -> list[Value]:
  places, results = _floats(eqn.invars), _floats(eqn.outvars)

  @jax.custom_jvp
  def again(values: list[Value]) -> list[Value]:
    return run(eqn.params['call_jaxpr'], values)

  @again.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    ((values,), (given,)) = primals, tangents

    def rule(primals: list[Any], tangents: list[Any]) -> list[Any]:
      return jax.jvp(_of_floats(eqn, primals), [primals[index] for index in places], tangents)[1]

    of = jax.make_jaxpr(rule)(_shapes(eqn.invars, range(len(values))), _shapes(eqn.invars, places))
    moving = [
      Value(one.array, {axis: cut._replace(gone=_unchanged(cut.gone)) for axis, cut in one.cuts.items()})
      for one in (given[index] for index in places)
    ]
    with _of_a_rule(eqn):
      changes = dict(zip(results, run(of, [*values, *moving]), strict=True))
    outs = run(eqn.params['call_jaxpr'], values)
    return outs, [
      _as_tangent(changes[index], out, eqn) if index in changes else _no_change(out) for index, out in enumerate(outs)
    ]

  return again([_alive(value) for value in values])


def _alive(value: Value) -> Value:
  """A value whose arrays may be traced."""
  return jax.tree.map(jnp.asarray, value)


def _custom_vjp(eqn: Any, values: list[Value]) -> list[Value]:
  places, results = _floats(eqn.invars), _floats(eqn.outvars)

  def forward(values: list[Value]) -> list[Value]:
    return [forgetting(value) for value in run(eqn.params['call_jaxpr'], values)]

  def backward(values: list[Value], given: list[Value]) -> Any:
    def rule(primals: list[Any], cotangents: list[Any]) -> Any:
      return jax.vjp(_of_floats(eqn, primals), *(primals[index] for index in places))[1](cotangents)

    of = jax.make_jaxpr(rule)(_shapes(eqn.invars, range(len(values))), _shapes(eqn.outvars, results))
    coming = [
      Value(one.array, {axis: cut._replace(gone=None) for axis, cut in one.cuts.items()})
      for one in (given[index] for index in results)
    ]
    with _of_a_rule(eqn):
      found = dict(zip(places, run(of, [*values, *coming]), strict=True))
    back = []
    for index, value in enumerate(values):
      if index not in found:
        back.append(_no_change(value))
        continue
      cuts = {axis: cut._replace(gone=None) for axis, cut in value.cuts.items()}
      new = fitted(forgetting(found[index]), cuts, eqn)
      back.append(Value(new.array, value.cuts, value.alike, value.level))
    return (back,)

  again = jax.custom_vjp(forward)
  again.defvjp(lambda values: (forward(values), values), backward)
  return again([_alive(forgetting(value)) for value in values])


# --- loops and branches --------------------------------------------------------------------------------------------


def _moved(value: Value, by: int, eqn: Any) -> Value:
  """A value with one axis less (by=-1) or more in front."""
  if by < 0 and 0 in value.cuts:
    raise cannot(eqn, 'the axis that it runs over is cut')
  return Value(value.array, {axis + by: cut for axis, cut in forgetting(value).cuts.items()})


def _steady(body: Any, init: list[Value], count: int, eqn: Any) -> list[Value]:
  """What a loop begins with, cut as what it carries is from the first round on."""
  carry = [_alive(forgetting(value)) for value in init]
  while True:
    new = jax.eval_shape(body, carry)[:count]
    cuts = [joined(old.cuts, one.cuts, eqn) for old, one in zip(carry, new, strict=True)]
    if all(cut == old.cuts for cut, old in zip(cuts, carry, strict=True)):
      return carry
    carry = [fitted(old, cut, eqn) for old, cut in zip(carry, cuts, strict=True)]


def _scan(eqn: Any, values: list[Value]) -> list[Value]:
  num_consts, num_carry = walk.scan_layout(eqn)
  split = num_consts + num_carry
  consts, init = values[:num_consts], values[num_consts:split]
  xs = [_moved(value, 0, eqn) if not value.cuts else value for value in values[split:]]
  layers = [_moved(value, -1, eqn).cuts for value in xs]
  seen: list[Any] = []

  def step(carry: list[Value], arrays: Any) -> list[Value]:
    here = [Value(array, cuts) for array, cuts in zip(arrays, layers, strict=True)]
    return run(eqn.params['jaxpr'], [*consts, *carry, *here])

  first = [jax.ShapeDtypeStruct(value.shape[1:], value.array.dtype) for value in xs]
  carry = _steady(lambda carry: step(carry, jax.tree.map(_blank, first)), init, num_carry, eqn)

  def body(carry: list[Value], arrays: Any) -> Any:
    out = [_alive(one) for one in step(carry, arrays)]
    after = [fitted(new, old.cuts, eqn) for new, old in zip(out[:num_carry], carry, strict=True)]
    seen[:] = [forgetting(one).cuts for one in out[num_carry:]]
    return after, [one.array for one in out[num_carry:]]

  last, ys = lax.scan(
    body,
    carry,
    [value.array for value in xs],
    length=eqn.params['length'],
    reverse=eqn.params['reverse'],
    unroll=eqn.params['unroll'],
  )
  return [*last, *(_moved(Value(array, cuts), 1, eqn) for array, cuts in zip(ys, seen, strict=True))]


def _blank(shape: Any) -> Any:
  return jnp.zeros(shape.shape, shape.dtype)


def _while(eqn: Any, values: list[Value]) -> list[Value]:
  num_cond, num_body = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
  for_cond, for_body, init = values[:num_cond], values[num_cond : num_cond + num_body], values[num_cond + num_body :]

  def step(carry: list[Value]) -> list[Value]:
    return run(eqn.params['body_jaxpr'], [*for_body, *carry])

  carry = _steady(step, init, len(init), eqn)

  def body(carry: list[Value]) -> list[Value]:
    return [fitted(_alive(new), old.cuts, eqn) for new, old in zip(step(carry), carry, strict=True)]

  return lax.while_loop(lambda carry: run(eqn.params['cond_jaxpr'], [*for_cond, *carry])[0].array, body, carry)


def _cond(eqn: Any, values: list[Value]) -> list[Value]:
  index, *given = values
  given = [_alive(forgetting(value)) for value in given]
  branches = eqn.params['branches']
  several = [jax.eval_shape(functools.partial(run, branch), given) for branch in branches]
  cuts = [one.cuts for one in several[0]]
  for others in several[1:]:
    cuts = [joined(one, other.cuts, eqn) for one, other in zip(cuts, others, strict=True)]
  cuts = [forgetting(Value(None, one)).cuts for one in cuts]

  def taken(branch: Any, given: list[Value]) -> list[Value]:
    return [fitted(_alive(value), cut, eqn) for value, cut in zip(run(branch, given), cuts, strict=True)]

  every = [functools.partial(taken, branch) for branch in branches]
  platforms = eqn.params.get('branches_platforms')
  if platforms is None:
    return lax.switch(index.array, every, given)
  chosen = {
    name: branch
    for names, branch in zip(platforms, every, strict=True)
    for name in (names if names is not None else ('default',))
  }
  return lax.platform_dependent(given, **chosen)


_FLOW = {
  **dict.fromkeys(('jit', 'pjit', 'closed_call', 'core_call', 'call'), _call),
  **dict.fromkeys(('remat', 'remat2', 'checkpoint'), _remat),
  'custom_jvp_call': _custom_jvp,
  'custom_vjp_call': _custom_vjp,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
}
