"""Which weights a model multiplies in integers, read off the program that it runs, and what a hook says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxlite import trees
from jaxlite.contract import Account, Model, Network, Params, State
from jaxlite.errors import arrays
from jaxlite.graph import walk
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _program as quant_program
from jaxlite.quantization._numerics import Bits
from jaxlite.quantization._program import Rules
from jaxlite.quantization._quantize import coverage


def weight_bits(model: Model, params: Params, model_state: State, inputs: Any) -> dict[str, int]:
  """Tells the bits of every weight that a model multiplies in integers, read off the program that it runs.

  Args:
    model: as the recipe wrapped it.
    params: its params.
    model_state: its state.
    inputs: one batch, arrays or ShapeDtypeStructs.

  Returns:
    {path: bits}; a weight that is not listed is float. Used at several sites, the most bits.
  """
  program, _ = quant_program.trace_model(model, params, model_state, inputs, train=False, key=None, step=None)
  found: dict[str, int] = {}
  for mark, paths in quant_program.marks(program.plan):
    if mark.startswith(numerics.MARK):
      bits = int(mark.removeprefix(numerics.MARK))
      found.update({path: max(bits, found.get(path, 0)) for path in paths if not trees.is_extra(path)})
  return found


def has_integer_weights(jaxpr: Any) -> bool:
  """Tells whether a program multiplies any weight in integers: where it does not, nothing need be traced to say so.

  Args:
    jaxpr: of a forward, open or closed.

  >>> import jax.numpy as jnp
  >>> from jaxlite.quantization import quantize
  >>> forward, args = lambda w, x: x @ w, (jnp.ones((3, 2)), jnp.ones((1, 3)))
  >>> [has_integer_weights(jax.make_jaxpr(fn)(*args)) for fn in (forward, quantize(forward))]
  [False, True]
  """
  names = (eqn.params['name'] for eqn in walk.equations(jaxpr) if eqn.primitive.name == 'name')
  return any(name.startswith(numerics.MARK) for name in names)


def account_of(
  wrap: Callable[[Model], Model], entry: str, bits: Bits, rules: Rules | None
) -> Callable[[Network, Model, Any], Account]:
  """Returns the account of a hook that quantizes: which weights it put into integers, and what stays float and why.

  Args:
    wrap: the hook's own Model -> Model.
    entry: where it keeps what belongs to a site, in params or in model_state.
    bits: of the hook.
    rules: of the hook.
  """

  def account(trained: Network, bare: Model, inputs: Any) -> Account:
    found = weight_bits(trained.model, trained.params, trained.model_state, inputs)
    own = {path: found[path] for path in _alone(wrap, bare, inputs) if path in found} or found
    touched = f'{arrays(own)} in {" and ".join(map(str, sorted(set(own.values()))))} bits' if own else ''
    kept = trained.params.get(entry) or trained.model_state.get(entry) or {}
    return Account('', touched, '; '.join([*_floats(bare, inputs, found), *_by_the_call(bare, inputs, kept)]))

  def _by_the_call(bare: Model, inputs: Any, kept: Mapping[str, Any]) -> list[str]:
    """The uses of which training knew nothing."""
    if not kept:  # nothing is kept of any
      return []
    program, _ = quant_program.trace_model(bare, *_shapes(bare, inputs), inputs, train=False, key=None, step=None)
    chosen = quant_program.bits_by_site(program.plan, bits, rules, entry)
    return [
      f'{site}: a use that training does not have, by the range of each batch'
      for site, own in chosen.items()
      if own is not None and own.activation is not None and site not in kept
    ]

  return account


def _alone(wrap: Callable[[Model], Model], bare: Model, inputs: Any) -> list[str]:
  """The weights that a hook alone puts into integers."""
  model = wrap(bare)
  try:
    params, model_state = jax.eval_shape(lambda key: model.init(key, inputs), _key())
    return sorted(weight_bits(model, params, model_state, inputs))
  except ValueError:  # it works on what another hook brings, so alone it has nothing to do
    return []


def _shapes(bare: Model, inputs: Any) -> tuple[Params, State]:
  shapes: tuple[Params, State] = jax.eval_shape(lambda key: bare.init(key, inputs), _key())
  return shapes


def _floats(bare: Model, inputs: Any, bits: Mapping[str, int]) -> list[str]:
  """The contractions that stay float, and why."""
  told = []
  for row in coverage(Network(bare, *_shapes(bare, inputs)))(inputs):
    if not row.quantized:
      told.append(f'{row.name or row.kind}: {row.why}')
    elif not any(path in bits for path in row.name.partition('#')[0].split('+')):
      told.append(f'{row.name}: kept float')
  return told


def _key() -> jax.ShapeDtypeStruct:
  """A key's type: to make one would be a program to compile."""
  return jax.eval_shape(lambda: jax.random.key(0))
