"""Networks of dense layers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.layers import dense, flattened


class MLP(nn.Module):
  """Dense layers with ReLU between them; the last gives the logits.

  With sizes n0 (inputs an example), *widths, classes: sum of n[i] * n[i+1] + n[i+1] parameters, and
  2 * sum of n[i] * n[i+1] FLOPs per example.

  Attributes:
    widths: sizes of the hidden layers; empty for a linear classifier.
    classes: number of logits.
    dtype: what it computes in; parameters are float32.

  >>> import jax, jax.numpy as jnp
  >>> MLP((16,), classes=3).init_with_output(jax.random.key(0), jnp.ones((2, 4)))[0].shape
  (2, 3)
  """

  widths: Sequence[int]
  classes: int = 10
  dtype: Any = jnp.float32

  @property
  def classifier(self) -> str:
    """Name of the layer that gives the logits."""
    return f'dense{len(self.widths) + 1}'

  @nn.compact
  def __call__(self, x: Any, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of any [B, ...]; with `pooled`, what the last layer reads."""
    x = jnp.asarray(x, self.dtype)
    if x.ndim < 2:
      raise ValueError(f'{type(self).__name__} takes a batch, [B, ...]; got {list(x.shape)}: add the batch axis')
    x = flattened(x)
    for index, width in enumerate(self.widths, 1):
      x = nn.relu(dense(width, self.dtype, f'dense{index}')(x))
    return x if pooled else dense(self.classes, self.dtype, self.classifier)(x).astype(jnp.float32)


class LeNet300(MLP):
  """LeNet-300-100: the multilayer perceptron that pruning papers start from.

  On 28x28 images with 10 classes: 266,610 parameters and 2 * 266,200 = 532,400 FLOPs per example
  (784 * 300 + 300 * 100 + 100 * 10 multiply-adds).

  Attributes:
    widths, classes, dtype: as in `MLP`.

  References:
    LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998,
    http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf. First pruned in Han, Pool, Tran and Dally, Learning
    both weights and connections for efficient neural networks, 2015, https://arxiv.org/abs/1506.02626

  >>> from jaxlite.models import summary
  >>> summary(LeNet300(), (1, 28, 28, 1))
  Summary(parameters=266610, flops=532400)
  """

  widths: Sequence[int] = (300, 100)
