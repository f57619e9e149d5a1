"""Which weights a model multiplies in integers, read off the program that it runs, and what a hook says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxlite import trees
from jaxlite.contract import Account, Model, Network, Params, State
from jaxlite.errors import arrays
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _program as quant_program
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


def account_of(wrap: Callable[[Model], Model]) -> Callable[[Network, Model, Any], Account]:
  """Returns the account of a hook that quantizes: which weights it put into integers, and what stays float and why.

  Args:
    wrap: the hook's own Model -> Model.
  """

  def account(trained: Network, bare: Model, inputs: Any) -> Account:
    bits = weight_bits(trained.model, trained.params, trained.model_state, inputs)
    own = {path: bits[path] for path in _alone(wrap, bare, inputs) if path in bits} or bits
    touched = f'{arrays(own)} in {" and ".join(map(str, sorted(set(own.values()))))} bits' if own else ''
    return Account('', touched, '; '.join(_floats(bare, inputs, bits)))

  return account


def _alone(wrap: Callable[[Model], Model], bare: Model, inputs: Any) -> list[str]:
  """The weights that a hook alone puts into integers."""
  model = wrap(bare)
  try:
    params, model_state = jax.eval_shape(lambda key: model.init(key, inputs), jax.random.key(0))
    return sorted(weight_bits(model, params, model_state, inputs))
  except ValueError:  # it works on what another hook brings, so alone it has nothing to do
    return []


def _floats(bare: Model, inputs: Any, bits: Mapping[str, int]) -> list[str]:
  """The contractions that stay float, and why."""
  params, model_state = jax.eval_shape(lambda key: bare.init(key, inputs), jax.random.key(0))

  def forward(params: Params, model_state: State, inputs: Any) -> Any:
    return bare.apply(params, model_state, inputs, train=False, key=None)[0]

  told = []
  for row in coverage(forward)(params, model_state, inputs):
    if not row.quantized:
      told.append(f'{row.name or row.kind}: {row.why}')
    elif not any(path in bits for path in row.name.partition('#')[0].split('+')):
      told.append(f'{row.name}: kept float')
  return told
