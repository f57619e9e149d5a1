"""What a program alone shows: what its outputs end in, and whether its loss is smallest where the answer is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.graph import walk

_FORM = ('convert_element_type', 'reshape', 'squeeze', 'broadcast_in_dim', 'transpose', 'copy', 'optimization_barrier',
         'concatenate', 'slice', 'expand_dims')  # fmt: skip
_STEPS, _RATE = 200, 0.2  # of a descent on the outputs themselves
RANGES = {'softmax': (0.0, 1.0), 'sigmoid': (0.0, 1.0), 'tanh': (-1.0, 1.0), 'relu': (0.0, np.inf)}


def output_activation(jaxpr: Any, index: int = 0) -> str:
  """Returns what an output of a program is made by: 'softmax', 'sigmoid', 'tanh', 'relu', or '' for anything else.

  >>> output_activation(jax.make_jaxpr(lambda x: jax.nn.softmax(x * 2))(jnp.ones((2, 3))))
  'softmax'
  >>> output_activation(jax.make_jaxpr(lambda x: jax.nn.log_softmax(x))(jnp.ones((2, 3))))
  ''
  """
  bare, _ = walk.opened(jaxpr)
  made = _made_by(bare, bare.outvars[index])
  if made is None:
    return ''
  body, eqn = made
  kind = eqn.primitive.name
  if kind in ('logistic', 'tanh'):
    return {'logistic': 'sigmoid'}.get(kind, kind)
  if kind == 'max' and any(hasattr(atom, 'val') and np.ndim(atom.val) == 0 and atom.val == 0 for atom in eqn.invars):
    return 'relu'
  if kind == 'div':
    above, below = (_made_by(body, atom) for atom in eqn.invars)
    if above is not None and above[1].primitive.name == 'exp':
      return 'softmax'
    if below is not None and below[1].primitive.name == 'add' and hasattr(eqn.invars[0], 'val'):  # 1 / (1 + exp(-x))
      inner = [_made_by(below[0], atom) for atom in below[1].invars if not hasattr(atom, 'val')]
      if any(one is not None and one[1].primitive.name == 'exp' for one in inner):
        return 'sigmoid'
  return ''


def without_output_activation(fn: Callable[..., Any], *args: Any) -> Any:
  """Calls a function and returns its outputs as they were before a last softmax, sigmoid, tanh or ReLU.

  Args:
    fn: returns a pytree whose first leaf is the output.
    *args: of the function.

  Raises:
    ValueError: its output ends in none of these.

  >>> outputs = without_output_activation(lambda x: jax.nn.sigmoid(2 * x), jnp.array([3.0]))
  >>> outputs.tolist()
  [6.0]
  """
  jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  bare, _ = walk.opened(jaxpr)
  if not output_activation(jaxpr):
    raise ValueError('outputs end in no softmax, sigmoid, tanh or ReLU: leave repair.logits out')
  at = _made_by(bare, bare.outvars[0])[1]
  found = _run(jaxpr, jax.tree.leaves(args), at)
  return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _run(jaxpr: Any, args: Any, at: Any) -> list[Any]:
  """Runs a program in which the equation `at` gives what its activation was given."""
  bare, consts = walk.opened(jaxpr)
  env = dict(zip([*bare.constvars, *bare.invars], [*consts, *args], strict=True))
  value = lambda atom: atom.val if hasattr(atom, 'val') else env[atom]  # noqa: E731
  for eqn in bare.eqns:
    operands = [value(atom) for atom in eqn.invars]
    kind = eqn.primitive.name
    if eqn is at:
      results = [_before(bare, eqn, value)]
    elif kind in walk.CALLS and kind != 'shard_map' and _holds(eqn.params[walk.CALLS[kind]], at):
      results = _run(eqn.params[walk.CALLS[kind]], operands, at)
    else:
      with eqn.ctx.manager:
        got = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
      results = list(got) if eqn.primitive.multiple_results else [got]
    env.update(zip(eqn.outvars, results, strict=True))
  return [value(atom) for atom in bare.outvars]


def _holds(jaxpr: Any, at: Any) -> bool:
  return any(eqn is at for eqn in walk.equations(jaxpr))


def _before(body: Any, eqn: Any, value: Callable[[Any], Any]) -> Any:
  """What the activation that an equation completes was given."""
  if eqn.primitive.name == 'div':
    above = _made_by(body, eqn.invars[0])
    if above is not None and above[1].primitive.name == 'exp':
      return value(above[1].invars[0])
    below = _made_by(body, eqn.invars[1])[1]
    inner = next(_made_by(body, atom)[1] for atom in below.invars if not hasattr(atom, 'val'))
    return -value(inner.invars[0])
  return value(next(atom for atom in eqn.invars if not hasattr(atom, 'val')))


def _made_by(body: Any, atom: Any) -> Any:
  """(the body, the equation) that makes a value, past what only changes its form; None for an argument."""
  if hasattr(atom, 'val'):
    return None
  for eqn in reversed(body.eqns):
    if atom not in eqn.outvars:
      continue
    kind = eqn.primitive.name
    if kind in walk.CALLS:
      inner, _ = walk.opened(eqn.params[walk.CALLS[kind]])
      found = _made_by(inner, inner.outvars[eqn.outvars.index(atom)])
      if found is None and inner.outvars[eqn.outvars.index(atom)] in inner.invars:
        return _made_by(body, eqn.invars[inner.invars.index(inner.outvars[eqn.outvars.index(atom)])])
      return found
    if kind in _FORM:
      return _made_by(body, eqn.invars[0])
    return body, eqn
  return None


def fits_labels(
  loss: Callable[..., Any],
  own: Callable[..., Any],
  outputs: Any,
  batch: Mapping[str, Any],
  score: Callable[[Any], float],
) -> tuple[float, float, float] | None:
  """Descends a loss over the outputs themselves, free of any network, and looks how right they become.

  Args:
    loss: of the run, (outputs, batch) -> float[B].
    own: of the task.
    outputs: of the model for the batch, [B, ...]: their shape.
    batch: labels and weight, inputs too.
    score: outputs -> how right they are, larger is better.

  Returns:
    Scores (before, after descending `loss`, after descending `own`); None where the loss cannot be descended so.
  """

  def descended(one: Callable[..., Any]) -> Any:
    total = lambda free: jnp.sum(jnp.nan_to_num(one(free, batch)))  # noqa: E731

    def turn(_: Any, carry: Any) -> Any:
      free, first, second, count = carry
      grad = jax.grad(total)(free)
      first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad**2
      fixed = (first / (1 - 0.9**count), second / (1 - 0.99**count))
      return free - rate * fixed[0] / (jnp.sqrt(fixed[1]) + 1e-12), first, second, count + 1

    nothing = jnp.zeros_like(start)
    return jax.jit(lambda: jax.lax.fori_loop(0, _STEPS, turn, (start, nothing, nothing, jnp.float32(1)))[0])()

  outputs = np.asarray(outputs, np.float32)
  scale = (
    float(np.std(np.asarray(batch['labels'], np.float32))) if np.asarray(batch['labels']).dtype.kind == 'f' else 1.0
  )
  centre = float(np.mean(batch['labels'])) if np.asarray(batch['labels']).dtype.kind == 'f' else 0.0
  rate = _RATE * max(scale, 1e-6)
  drawn = np.random.default_rng(0).normal(size=outputs.shape)
  start = jnp.asarray(centre + 0.1 * scale * drawn, jnp.float32)
  try:
    return score(start), score(descended(loss)), score(descended(own))
  except (TypeError, ValueError):
    return None
