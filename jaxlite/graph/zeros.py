"""Whether a zero in a leaf is a zero in what a contraction multiplies.

To mask a weight means to take it out of the product. That holds as long as what stands between the leaf and the
product keeps zeros: masks, scales, gains, rounding, its own norm. It does not where a network sees `exp(w)`,
`softplus(w)`, `softmax(w)`, `w - mean(w)` or `where(w >= 0, 1, -1)`: the leaf is sparse then, and what is multiplied
full. What is added from elsewhere (a constant, another factor) counts as that one's, not as the leaf's.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.graph import by_hand, provenance, walk
from jaxlite.graph.contractions import CONTRACTIONS, OTHER_CONTRACTIONS, operands_of


class State(NamedTuple):
  """What stands where an entry of a leaf is zero.

  Attributes:
    value: that number; None where no one number does.
    by: the operation that last made it what it is.
    sums: it is made of several entries: a zero among them only takes its own share away.
    bent: the operation for which it is no multiple of the entry; rounding and bounds are none.
  """

  value: float | None = 0.0
  by: str = ''
  sums: bool = False
  bent: str = ''

  @property
  def fine(self) -> bool:
    """Whether the leaf's zeros are zeros here, or at least add nothing."""
    return self.sums or self.value == 0


Held = dict[str, State]  # of one value, by leaf
KEPT, SUM = State(), State(None, 'a sum over it', True)

_MOVES = frozenset(
  (
    *('transpose', 'reshape', 'squeeze', 'expand_dims', 'broadcast_in_dim', 'slice', 'dynamic_slice', 'gather', 'rev'),
    *('copy', 'copy_p', 'convert_element_type', 'reduce_precision', 'stop_gradient', 'optimization_barrier', 'name'),
    *('split', 'unstack', 'tile', 'concatenate', 'stack', 'pad', 'dynamic_update_slice', 'scatter', 'scatter-add'),
    *('sharding_constraint', 'device_put', 'all_gather', 'all_to_all', 'ppermute', 'pvary', 'pcast', 'reshard'),
    *('real', 'imag', 'conj', 'complex', 'layout_constraint', 'mesh_cast'),
  )
)
_MIXES = frozenset({'cumsum', 'cumlogsumexp', 'cummax', 'cummin', 'cumprod', 'sort', 'top_k', 'fft', 'psum', 'pmean'})
_COMPARES: dict[str, Callable[[float, float], bool]] = {
  'eq': operator.eq,
  'ne': operator.ne,
  'lt': operator.lt,
  'le': operator.le,
  'gt': operator.gt,
  'ge': operator.ge,
}
_PAIRS: dict[str, Callable[[float, float], float]] = {
  'add': operator.add,
  'add_any': operator.add,
  'sub': operator.sub,
  'max': max,
  'min': min,
}
_AT: dict[str, Callable[[float], float]] = {  # of one number
  'neg': lambda a: -a,
  'sign': lambda a: float(np.sign(a)),
  'abs': abs,
  'sqrt': math.sqrt,
  'rsqrt': lambda a: a**-0.5,
  'cbrt': lambda a: float(np.cbrt(a)),
  'square': lambda a: a * a,
  'exp': math.exp,
  'exp2': lambda a: 2.0**a,
  'expm1': math.expm1,
  'log': math.log,
  'log1p': math.log1p,
  'logistic': lambda a: 1 / (1 + math.exp(-a)),
  'tanh': math.tanh,
  'sin': math.sin,
  'cos': math.cos,
  'tan': math.tan,
  'asin': math.asin,
  'acos': math.acos,
  'atan': math.atan,
  'sinh': math.sinh,
  'cosh': math.cosh,
  'asinh': math.asinh,
  'erf': math.erf,
  'erfc': math.erfc,
  'erf_inv': lambda a: 0.0 if a == 0 else math.nan,
  'atanh': math.atanh,
  'round': round,
  'floor': math.floor,
  'ceil': math.ceil,
  'not': lambda a: float(not a),
  'is_finite': lambda a: float(math.isfinite(a)),
}
_STRAIGHT = frozenset(
  ('neg', 'round', 'floor', 'ceil', 'add', 'add_any', 'sub', 'max', 'min', 'clamp', 'select_n', 'reduce_sum')
)
_DATA = object()


def filled(jaxpr: Any, plan: provenance.Plan, tags: Sequence[provenance.Tag]) -> dict[str, str]:
  """Finds the weights whose zeros are no zeros where they are multiplied, and what stands between; see `multiplied`.

  >>> import jax, jax.numpy as jnp
  >>> w = jnp.ones((3, 3))
  >>> closed = jax.make_jaxpr(lambda w, v, x: x @ jnp.exp(w) + x @ jnp.tanh(v))(w, w, w)
  >>> tags = [provenance.weight('w'), provenance.weight('v'), provenance.DATA]
  >>> filled(closed, provenance.read(closed, tags), tags)
  {'w': 'exp'}
  """
  return {path: state.by for path, state in multiplied(jaxpr, plan, tags).items() if not state.fine}


def multiplied(jaxpr: Any, plan: provenance.Plan, tags: Sequence[provenance.Tag]) -> dict[str, State]:
  """Says of each weight what of it a contraction multiplies; of several, what is worst.

  Args:
    jaxpr: closed or open.
    plan: what `provenance.read` gave for it.
    tags: as `provenance.read` got them.

  Returns:
    By path, its State.
  """
  given = [_DATA if tag.data else dict.fromkeys(tag.paths, KEPT) for tag in tags]
  found: dict[str, State] = {}
  _follow(jaxpr, plan, given, [None] * len(given), found)
  return found


def _follow(
  jaxpr: Any, plan: provenance.Plan, given: Sequence[Any], known: Sequence[Any], found: dict[str, State]
) -> list[tuple[Any, Any]]:
  """Follows one body; returns what each result holds, and its value where it is one known number."""
  bare, consts = walk.opened(jaxpr)
  holds: dict[Any, Any] = {}
  numbers_of: dict[Any, Any] = {}
  for var, const in zip(bare.constvars, consts, strict=False):
    numbers_of[var] = _number(const)
  holds.update(zip(bare.invars, given, strict=True))
  numbers_of.update(zip(bare.invars, known, strict=True))
  products: dict[Any, Any] = {}

  def held(atom: Any) -> Any:
    return {} if hasattr(atom, 'val') else holds.get(atom, {})

  def number(atom: Any) -> Any:
    return _number(atom.val) if hasattr(atom, 'val') else numbers_of.get(atom)

  for index, eqn in enumerate(bare.eqns):
    operands = [held(atom) for atom in eqn.invars]
    values = [number(atom) for atom in eqn.invars]
    by_hand.follow(eqn, (eqn, operands), products)
    site = plan.sites.get(index)
    if site is not None and site.weights:
      if site.kind == by_hand.KIND:
        _, sides = products[eqn.invars[0]]
        factors = [one for one in sides if isinstance(one, dict)]
      else:
        factors = [operands[operands_of(eqn)[site.side]]] if site.side is not None else operands
      for factor in factors:
        for path, state in factor.items() if isinstance(factor, dict) else ():
          if path in site.weights:
            found[path] = _worse(found[path], state) if path in found else state
    if index in plan.inner:
      out = _enter(eqn, plan.inner[index], operands, values, found)
    elif not any(operand is _DATA or operand for operand in operands):
      same = eqn.primitive.name in ('broadcast_in_dim', 'convert_element_type', 'reshape', 'copy')
      out = [({}, values[0] if same and values else None)] * len(eqn.outvars)
    else:
      out = [(_through(eqn, operands, values), None)] * len(eqn.outvars)
    for var, (own, value) in zip(eqn.outvars, out, strict=True):
      holds[var], numbers_of[var] = own, value
  return [(held(atom), number(atom)) for atom in bare.outvars]


def _number(value: Any) -> float | None:
  """A constant as a number where one number fills it; NaN where several do; None of what is no number."""
  if isinstance(value, numbers.Number):
    return float(np.real(value))
  if not hasattr(value, 'dtype') or not np.issubdtype(value.dtype, np.number):
    return None
  array = np.real(np.asarray(value))
  first = float(array.flat[0]) if array.size else 0.0
  return first if (array == first).all() else math.nan


def _through(eqn: Any, operands: Sequence[Any], values: Sequence[Any]) -> Any:
  """What the results of an equation without a body hold."""
  name = eqn.primitive.name
  if any(operand is _DATA for operand in operands):
    picks = name in _MOVES or name == 'select_n'
    if not picks or not any(isinstance(operand, dict) and operand for operand in operands):
      return _DATA  # an activation
    operands = [{} if operand is _DATA else operand for operand in operands]
  paths = dict.fromkeys(path for operand in operands for path in operand)
  found: Held = {}
  for path in paths:
    states = [operand.get(path) for operand in operands]
    bent = _bent(name, states)
    found[path] = _state(eqn, name, states, values)._replace(bent=bent)
  return found


def _bent(name: str, states: Sequence[State | None]) -> str:
  """The operation for which a result is no multiple of a leaf's entries; '' where it is one."""
  own = [state for state in states if state is not None]
  own = [state for state in own if not state.sums] or own  # of a sum, such as its own norm, it is scaled
  before = next((state.bent for state in own if state.bent), '')
  scaled = len(own) == 1 and (name == 'mul' or (name == 'div' and states[0] is not None))
  linear = scaled or name in _STRAIGHT or name in _MOVES or name in CONTRACTIONS + OTHER_CONTRACTIONS
  return before or ('' if linear else name)


def _state(eqn: Any, name: str, states: Sequence[State | None], values: Sequence[float | None]) -> State:
  """The state of one leaf in a result; `states` are None for operands that do not hold it."""
  own = [state for state in states if state is not None]
  # Each operand's number where the leaf is zero; of another leaf or of what is not known, None.
  at = [value if state is None else state.value for state, value in zip(states, values, strict=True)]
  if name in ('mul', 'and'):
    return KEPT if any(state.value == 0 for state in own) else _number_of(name, own, at, operator.mul)
  if name == 'div':
    return KEPT if states[0] and states[0].value == 0 else _number_of(name, own, at, operator.truediv)
  if name in _PAIRS:  # beside another leaf, or what is not known, a zero still gives none of its own
    return own[0] if len(own) == 1 and None in at else _number_of(name, own, at, _PAIRS[name])
  if name == 'clamp':
    low, middle, high = at
    if states[1] is None or middle is None:
      return _number_of(name, own, at, lambda *_: math.nan)
    inside = max(middle, -math.inf if low is None else low)
    return State(min(inside, math.inf if high is None else high), name)
  if name == 'select_n':
    if states[0] is None:  # what chooses is not the leaf
      return next((state for state in own if not state.fine), own[0])
    if at[0] in (0.0, 1.0) and (chosen := at[1 + int(at[0])]) is not None:
      return State(chosen, 'where')
    kept = all(
      number == 0 or (state is not None and state.fine) for number, state in zip(at[1:], states[1:], strict=True)
    )
    return SUM if kept else State(None, 'where')
  if name in _COMPARES:
    return _number_of(name, own, at, _COMPARES[name])
  if name in ('integer_pow', 'pow'):
    power = eqn.params['y'] if name == 'integer_pow' else at[1]
    return _number_of(name, own, [at[0], power], operator.pow)
  if name in _MOVES:
    return next((state for state in own if not state.fine), max(own, key=lambda state: state.sums))
  if name in _AT:
    return KEPT if own[0].value == 0 and name in _PLAIN else _number_of(name, own, at, _AT[name])
  if name.startswith(('reduce_', 'arg')) or name in _MIXES or name in CONTRACTIONS + OTHER_CONTRACTIONS:
    worst = next((state for state in own if not state.fine), None)
    return worst or (own[0] if name.startswith('reduce_') and not eqn.params.get('axes', True) else SUM)
  return State(None, name)


_PLAIN = frozenset(name for name, of in _AT.items() if name not in ('log', 'rsqrt') and of(0.0) == 0)


def _number_of(name: str, own: Sequence[State], at: Sequence[float | None], of: Callable[..., float]) -> State:
  """The state where all numbers are known; a sum over entries stays one, by itself or with what does not hold the
  leaf."""
  if all(number is not None for number in at):
    try:
      return State(float(of(*at)), name)
    except (ArithmeticError, ValueError):
      return State(None, name)
  if all(state.sums for state in own):
    return own[0]
  return State(None, next((state.by for state in own if state.value not in (0, None)), name))


def _enter(
  eqn: Any, plans: Sequence[provenance.Plan], given: list[Any], values: list[Any], found: dict[str, State]
) -> list[tuple[Any, Any]]:
  name = eqn.primitive.name
  if name == 'scan':
    consts, carry = walk.scan_layout(eqn)
    return _until_still(eqn.params['jaxpr'], plans[0], given, values, consts, carry, found)
  if name == 'while':
    first, second = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    rest = given[first:], values[first:]
    return _until_still(eqn.params['body_jaxpr'], plans[1], *rest, second, len(given) - first - second, found)
  if name == 'cond':
    several = [
      _follow(branch, plan, given[1:], values[1:], found)
      for branch, plan in zip(eqn.params['branches'], plans, strict=True)
    ]
    return [(_joined([one for one, _ in each]), None) for each in zip(*several, strict=True)]
  return _follow(eqn.params[walk.CALLS[name]], plans[0], given, values, found)


def _until_still(
  body: Any,
  plan: provenance.Plan,
  given: Sequence[Any],
  values: Sequence[Any],
  consts: int,
  carry: int,
  found: dict[str, State],
) -> list[tuple[Any, Any]]:
  """A loop's body, until what its carry holds grows no more."""
  split = consts + carry
  carried, known = list(given[consts:split]), [*values[:consts], *[None] * (len(given) - consts)]
  while True:
    out = [one for one, _ in _follow(body, plan, [*given[:consts], *carried, *given[split:]], known, found)]
    grown = [_joined(pair) for pair in zip(carried, out[:carry], strict=True)]
    if grown == carried:
      return [(one, None) for one in (*carried, *out[carry:])]
    carried = grown


def _joined(several: Sequence[Any]) -> Any:
  if any(one is _DATA for one in several):
    return _DATA
  found: Held = {}
  for one in several:
    for path, state in one.items():
      found[path] = _worse(found.get(path, state), state)
  return found


def _worse(one: State, other: State) -> State:
  worse = one if not one.fine or (one.sums and other.fine) else other
  return worse._replace(bent=one.bent or other.bent)


def told(by: str) -> str:
  """Says why masking a leaf would not take it out.

  >>> told('exp')
  "a zero in it is none in what is multiplied ('exp' stands between)"
  """
  return f'a zero in it is none in what is multiplied ({by!r} stands between)'
