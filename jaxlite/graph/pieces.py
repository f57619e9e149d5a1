"""A program run in pieces of which only the ends are kept until its backward pass.

`jax.checkpoint` around a whole model saves nothing: its backward pass begins by computing all of it again. Cut into
pieces, one piece at a time is computed again, so that the most that is held is the ends of all and the inside of one.
Where to cut is read off the program: near equal shares of what it makes, where the fewest bytes cross.

XLA:CPU undoes `jax.checkpoint` outside of a loop: it drops the barriers, and computes early what it is to compute late.
So the ends go through a call that may not be inlined and that takes the gradient which the piece waits for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxlite.graph import sharding, walk

_NEAR = 0.5  # of a piece, on either side of the equal share: where a cut is looked for
_INLINED = ('jit', 'pjit', 'closed_call', 'core_call')


def in_pieces(function: Callable[..., Any], pieces: int) -> Callable[..., Any]:
  """Returns a function that computes the same and keeps only the ends of its pieces for its backward pass.

  Args:
    function: of arrays, positional, the parameters first; it is traced at each call.
    pieces: how many; the last keeps all, since the backward pass begins with it.

  References:
    Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, https://arxiv.org/abs/1604.06174

  >>> square = in_pieces(lambda x: jnp.sin(jnp.sin(jnp.sin(x))), 3)
  >>> round(float(jax.grad(square)(1.0)), 4)
  0.2645
  """

  def cut(*args: Any) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    values = _run(closed, jax.tree.leaves(args), len(jax.tree.leaves(args[0])), pieces)
    return jax.tree.unflatten(jax.tree.structure(shape), values)

  return cut


def _run(closed: Any, args: Sequence[Any], params: int, pieces: int) -> list[Any]:
  bare, consts = walk.opened(closed)
  weights = {id(value) for value in args[:params]}
  while len(bare.eqns) == 1 and bare.eqns[0].primitive.name in _INLINED:  # all of it in one jit
    eqn = bare.eqns[0]
    given = dict(zip([*bare.constvars, *bare.invars], [*consts, *args], strict=True))
    inner, inner_consts = walk.opened(eqn.params[walk.CALLS[eqn.primitive.name]])
    if [_key(atom) for atom in bare.outvars] != [_key(atom) for atom in eqn.outvars]:
      break
    args = [atom.val if hasattr(atom, 'val') else given[atom] for atom in eqn.invars]
    bare, consts = inner, inner_consts
  env: dict[Any, Any] = dict(zip([*bare.constvars, *bare.invars], [*consts, *args], strict=True))
  bounds = [0, *cuts(bare, pieces), len(bare.eqns)]
  results = [atom for atom in bare.outvars if not hasattr(atom, 'val')]
  for start, end in itertools.pairwise(bounds):
    eqns = bare.eqns[start:end]
    made = {var for eqn in eqns for var in eqn.outvars}
    takes = list(dict.fromkeys(atom for eqn in eqns for atom in eqn.invars if not hasattr(atom, 'val')))
    takes = [var for var in takes if var not in made]
    later = {atom for eqn in bare.eqns[end:] for atom in eqn.invars if not hasattr(atom, 'val')} | set(results)
    gives = [var for var in dict.fromkeys(var for eqn in eqns for var in eqn.outvars) if var in later]
    run = _piece(eqns, takes, gives)
    given = [env[var] for var in takes]
    waits = [id(value) not in weights for value in given]
    found = run(*given) if end == len(bare.eqns) else _again(run, waits)(*given)
    env.update(zip(gives, found, strict=True))
  return [jnp.asarray(atom.val, atom.aval.dtype) if hasattr(atom, 'val') else env[atom] for atom in bare.outvars]


def _key(atom: Any) -> Any:
  return id(atom)


def _piece(eqns: Sequence[Any], takes: Sequence[Any], gives: Sequence[Any]) -> Callable[..., list[Any]]:
  def run(*given: Any) -> list[Any]:
    env = dict(zip(takes, given, strict=True))
    for eqn in eqns:
      operands = [atom.val if hasattr(atom, 'val') else env[atom] for atom in eqn.invars]
      with eqn.ctx.manager, jax.named_scope(str(eqn.source_info.name_stack) or 'piece'):
        out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
      env.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    return [env[var] for var in gives]

  return run


def _again(run: Callable[..., list[Any]], waits: Sequence[bool]) -> Callable[..., list[Any]]:
  """The same function, computed again in the backward pass, once its gradient is there."""

  @jax.custom_vjp
  def piece(*given: Any) -> list[Any]:
    return run(*given)

  def forward(*given: Any) -> tuple[list[Any], tuple[Any, ...]]:
    return run(*given), given

  def backward(given: tuple[Any, ...], gradient: list[Any]) -> tuple[Any, ...]:
    known = [one for one in gradient if getattr(one, 'dtype', None) != jax.dtypes.float0]
    # In a shard_map what waits varies as what it waits for: a key that is the same in every shard does not wait.
    axes: frozenset[str] = frozenset().union(*map(sharding.varying, known))
    waiting = [
      wait and _is_array(one) and axes <= sharding.varying(one) for one, wait in zip(given, waits, strict=True)
    ]
    late = [one for one, wait in zip(given, waiting, strict=True) if wait]
    late = lax.platform_dependent(late, known, cpu=_after, default=lambda late, known: _barrier(late, known))
    fresh = iter(late)
    seen = [next(fresh) if wait else one for one, wait in zip(given, waiting, strict=True)]
    return jax.vjp(run, *seen)[1](gradient)

  piece.defvjp(forward, backward)
  return piece


def made_late(make: Callable[[list[Any]], Any]) -> Callable[[list[Any], list[Any]], Any]:
  """Returns (late, known) -> make(late), computed when `known` is there, and again for each other `known`.

  XLA:CPU computes what hangs on arguments alone before everything else, and keeps it to its last use. Here it happens
  inside of the call that may not be inlined, so that nothing is copied either.

  Args:
    make: a function of a list of arrays, that makes one or several.
  """

  @jax.jit
  def jaxlite_cpu_late(late: list[Any], known: list[Any]) -> Any:
    return make(_barrier(late, known))

  def on_cpu(late: list[Any], known: list[Any]) -> Any:
    with set_xla_metadata(inlineable='false'):
      return jaxlite_cpu_late(late, known)

  def made(late: list[Any], known: list[Any]) -> Any:
    return lax.platform_dependent(late, known, cpu=on_cpu, default=lambda *given: make(_barrier(*given)))

  return made


def _is_array(value: Any) -> bool:
  return not jnp.issubdtype(value.dtype, jax.dtypes.extended)


def _barrier(late: list[Any], known: list[Any]) -> list[Any]:
  return lax.optimization_barrier((late, known))[0]


def _after(late: list[Any], known: list[Any]) -> list[Any]:
  with set_xla_metadata(inlineable='false'):
    return jaxlite_cpu_after(late, known)


@jax.jit
def jaxlite_cpu_after(late: list[Any], known: list[Any]) -> list[Any]:
  """Every bit of `late` as it was, once `known` is there."""
  return [_barrier([one], known)[0] for one in late]


def cuts(bare: Any, pieces: int) -> list[int]:
  """Returns before which equations a program is cut, ascending; fewer than `pieces - 1` where it is short.

  Args:
    bare: an open jaxpr.
    pieces: at least 1.
  """
  eqns = bare.eqns
  made = [sum(_bytes(var.aval) for var in eqn.outvars) for eqn in eqns]
  total, crossing = sum(made), _crossing(bare)
  found: list[int] = []
  for number in range(1, pieces):
    low, high = (total * (number - _NEAR) / pieces, total * (number + _NEAR) / pieces)
    done, near = 0, []
    for place, size in enumerate(made[:-1], start=1):
      done += size
      if low <= done <= high and (not found or place > found[-1]):
        near.append((crossing[place], abs(done - total * number / pieces), place))
    if near:
      found.append(min(near)[2])
  return found


def _crossing(bare: Any) -> list[int]:
  """Bytes that are made before and read after each place between two equations."""
  last: dict[Any, int] = {}
  for place, eqn in enumerate(bare.eqns):
    last |= {atom: place for atom in eqn.invars if not hasattr(atom, 'val')}
  last |= {atom: len(bare.eqns) for atom in bare.outvars if not hasattr(atom, 'val')}
  change = [0] * (len(bare.eqns) + 2)
  for place, eqn in enumerate(bare.eqns):
    for var in eqn.outvars:
      if last.get(var, place) > place:
        change[place + 1] += _bytes(var.aval)
        change[last[var] + 1] -= _bytes(var.aval)
  held, crossing = 0, []
  for one in change:
    held += one
    crossing.append(held)
  return crossing


def _bytes(aval: Any) -> int:
  try:
    return math.prod(aval.shape) * aval.dtype.itemsize
  except (AttributeError, TypeError):  # a token, a key
    return 0
