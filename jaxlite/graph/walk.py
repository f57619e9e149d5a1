"""Reading a jaxpr: its equations at any depth, and how higher-order primitives wire their bodies.

What differs between JAX versions about a jaxpr's shape is known here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Primitives whose single body takes exactly the equation's operands and gives exactly its results.
CALLS = {
  'jit': 'jaxpr',
  'pjit': 'jaxpr',
  'closed_call': 'call_jaxpr',
  'core_call': 'call_jaxpr',
  'call': 'call_jaxpr',
  'remat': 'jaxpr',
  'remat2': 'jaxpr',
  'checkpoint': 'jaxpr',
  'shard_map': 'jaxpr',
  'custom_jvp_call': 'call_jaxpr',
  'custom_vjp_call': 'call_jaxpr',
}

# How a program that `jax.export` wrote is called: a network that was loaded without its model. Nobody sees inside.
SEALED = 'call_exported'
GIVE_MODEL = 'give its model, jaxlite.load(workdir, model=...), and recipe= too where it trained in few bits'


def form(aval: Any) -> Any:
  """Returns what tells values of one kind apart, to compare and to hash: shape and dtype, or what is written of it.

  >>> import jax
  >>> form(jax.make_jaxpr(lambda x: x + 1)(0.0).out_avals[0])
  ((), dtype('float32'))
  """
  return (aval.shape, aval.dtype) if hasattr(aval, 'shape') and hasattr(aval, 'dtype') else str(aval)


def opened(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
  """Returns the bare jaxpr and its constants, of a closed or an open one.

  >>> import jax
  >>> bare, consts = opened(jax.make_jaxpr(lambda x: x + 1)(0.0))
  >>> len(bare.eqns), consts
  (1, ())
  """
  return getattr(jaxpr, 'jaxpr', jaxpr), tuple(getattr(jaxpr, 'consts', ()))


def bodies(eqn: Any) -> list[Any]:
  """Returns every jaxpr among an equation's parameters, in order.

  >>> import jax
  >>> closed = jax.make_jaxpr(lambda x: jax.lax.cond(x > 0, lambda y: y, lambda y: -y, x))(1.0)
  >>> len(bodies(opened(closed)[0].eqns[-1]))
  2
  """
  return [body for value in eqn.params.values() if type(value) not in _PLAIN for body in _jaxprs(value)]


_PLAIN = frozenset({type(None), bool, int, float, str})  # of most parameters, which hold no program


def _jaxprs(value: Any) -> Iterator[Any]:
  if hasattr(value, 'eqns') or hasattr(getattr(value, 'jaxpr', None), 'eqns'):
    yield value
  elif isinstance(value, tuple | list):
    for item in value:
      if type(item) not in _PLAIN:
        yield from _jaxprs(item)


def equations(jaxpr: Any) -> Iterator[Any]:
  """Yields the equations of a jaxpr and of every body inside it, outer before inner.

  Args:
    jaxpr: open or closed, as `jax.make_jaxpr` gives it.

  >>> import jax
  >>> [eqn.primitive.name for eqn in equations(jax.make_jaxpr(jax.jit(lambda x: x + 1))(0.0))]
  ['jit', 'add']
  """
  for eqn in opened(jaxpr)[0].eqns:
    yield eqn
    for body in bodies(eqn):
      yield from equations(body)


def has_primitive(jaxpr: Any, *names: str) -> bool:
  """Tells whether any of the named primitives occurs in a jaxpr, at any depth.

  Args:
    jaxpr: open or closed.
    *names: primitive names, such as 'conv_general_dilated'.

  >>> import jax
  >>> has_primitive(jax.make_jaxpr(jax.jit(lambda x: x @ x))(jax.numpy.ones((2, 2))), 'dot_general')
  True
  """
  return any(eqn.primitive.name in names for eqn in equations(jaxpr))


def scan_layout(eqn: Any) -> tuple[int, int]:
  """Returns how many operands of a scan are constants, and how many its carry.

  >>> import jax
  >>> closed = jax.make_jaxpr(lambda w, xs: jax.lax.scan(lambda c, x: (c + w * x, c), 0.0, xs))(2.0, jax.numpy.ones(3))
  >>> scan_layout(next(eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == 'scan'))
  (1, 1)
  """
  if 'num_consts' in eqn.params:
    return eqn.params['num_consts'], eqn.params['num_carry']
  consts, carry, _ = eqn.params['ft_in'].unpack()  # jax 0.12 keeps the three groups as trees
  return len(list(consts)), len(list(carry))


def lowered(eqn: Any, platform: str) -> Any:
  """Returns the branch of a choice between platforms that is compiled for one of them.

  Args:
    eqn: a cond whose branches are of platforms (`jax.lax.platform_dependent`).
    platform: 'cpu', 'tpu', ...
  """
  for platforms, branch in zip(eqn.params['branches_platforms'], eqn.params['branches'], strict=True):
    if platforms is None or platform in platforms:
      return branch
  return eqn.params['branches'][-1]


def refuse_sealed(jaxpr: Any, what: str) -> None:
  """Raises ValueError where a program calls one that is sealed, in whose inside `what` would do nothing.

  Args:
    jaxpr: open or closed.
    what: names the asking part.
  """
  if has_primitive(jaxpr, SEALED):
    raise ValueError(f'{what} cannot see inside a network that was loaded without its model: {GIVE_MODEL}')
