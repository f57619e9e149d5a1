"""How large a model is and how much work one forward does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxlite.adapters import adapt
from jaxlite.graph.contractions import CONTRACTIONS, flops_of
from jaxlite.graph.walk import bodies, opened


class Summary(NamedTuple):
  """Size and work of a model.

  Attributes:
    parameters: number of trained values.
    flops: floating-point operations of the contractions of one forward, two for each multiply-add.
  """

  parameters: int
  flops: int


def summary(model: Any, inputs_shape: Sequence[int], dtype: Any = 'float32') -> Summary:
  """Counts the parameters of a model and the FLOPs of its forward in evaluation; nothing is computed.

  FLOPs are those of matrix products and convolutions, padding included, as the jaxpr shows them; additions,
  activations and normalizations are left out. Of a `cond` the dearest branch counts; the body of a
  `while_loop` counts once, since its length is not known.

  Args:
    model: anything that `jaxlite.adapt` takes.
    inputs_shape: shape of one batch, batch axis first.
    dtype: of the inputs.

  Returns:
    (parameters, flops), the latter for the whole batch.

  >>> from jaxlite.models.mlp import MLP
  >>> summary(MLP((4,), classes=2), (1, 3))
  Summary(parameters=26, flops=40)
  """
  model = adapt(model)
  inputs = jax.ShapeDtypeStruct(tuple(inputs_shape), dtype)
  params, model_state = jax.eval_shape(model.init, jax.random.key(0), inputs)

  def forward(params: Any, model_state: Any, inputs: Any) -> Any:
    return model.apply(params, model_state, inputs, train=False, key=None)[0]

  jaxpr = jax.make_jaxpr(forward)(params, model_state, inputs)
  return Summary(sum(leaf.size for leaf in jax.tree.leaves(params)), _flops(jaxpr))


def _flops(jaxpr: Any) -> int:
  total = 0
  for eqn in opened(jaxpr)[0].eqns:
    name = eqn.primitive.name
    inner = [_flops(body) for body in bodies(eqn)]
    if name in CONTRACTIONS:
      total += flops_of(eqn)
    elif name == 'cond':
      total += max(inner)
    else:
      total += sum(inner) * eqn.params.get('length', 1)
  return total
