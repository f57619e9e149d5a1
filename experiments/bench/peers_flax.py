"""Flax with Optax, Qwix and JaxPruner in the table of peers, started by `peers`, never by hand.

One loop as Flax's documentation has it, a jitted step at a time; Qwix and JaxPruner come into it where their own
documentation puts them. Neither prunes and quantizes both, none of the three has distillation: the loss of softened
predictions is written by hand where the table says so.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers_course
from flax import linen as nn
from peers_course import Course, File, Side


class Mlp(nn.Module):
  """Dense layers with ReLU between them."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Any) -> jax.Array:
    for width in self.widths[:-1]:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.widths[-1])(x)


class Trained(NamedTuple):
  """Params of the float network, and the function that export makes of them: inputs -> logits."""

  params: Any
  forward: Any


def loss_of(course: Course, logits: jax.Array, labels: jax.Array, taught: jax.Array) -> jax.Array:
  """Cross-entropy, and by hand the softened divergence from the teacher."""
  hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  if not course.distills():
    return hard
  t = course.temperature
  soft = optax.kl_divergence(jax.nn.log_softmax(logits / t), jax.nn.softmax(taught / t)).mean()
  return (1 - course.alpha) * hard + course.alpha * t**2 * soft


def looped(course: Course, seed: int, models: list[tuple[int, Any]], tx: Any, after: Any = None) -> Any:
  """Trains; `models` says from which step on which module runs, `after` changes params once a step."""

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
  def step(model: Any, params: Any, opt_state: Any, x: Any, y: Any, taught: Any) -> Any:
    grads = jax.grad(lambda p: loss_of(course, model.apply({'params': p}, x), y, taught))(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params if after is None else after(params, opt_state), opt_state

  weights = course.weights(seed)
  params = {f'Dense_{i}': {'kernel': jnp.asarray(w), 'bias': jnp.asarray(b)} for i, (w, b) in enumerate(weights)}
  opt_state, (x, y) = tx.init(params), course.train
  taught = course.logits if course.logits is not None else np.zeros((len(y), 1), np.float32)
  for at, rows in peers_course.rows_of(course, seed):
    model = [one for begin, one in models if at >= begin][-1]
    params, opt_state = step(model, params, opt_state, x[rows], y[rows], taught[rows])
  return jax.block_until_ready(params), opt_state


def adam(course: Course) -> Any:
  return optax.adam(optax.cosine_decay_schedule(course.rate, course.steps))


def by_flax(course: Course, seed: int) -> Trained:
  model = Mlp(course.widths[1:])
  params, _ = looped(course, seed, [(0, model)], adam(course))
  return Trained(params, lambda x: model.apply({'params': params}, x))


def by_jaxpruner(course: Course, seed: int) -> Trained:
  """As its colab on MNIST: the updater wraps Optax and masks the weights after each step."""
  import jaxpruner
  import ml_collections

  config = ml_collections.ConfigDict({'algorithm': 'no_prune'})
  if course.prunes():
    begin, end, every = course.pruning
    config = ml_collections.ConfigDict({'algorithm': 'magnitude', 'sparsity': course.sparsity, 'dist_type': 'erk'})
    end -= end % every  # masks are drawn at multiples of `update_freq`
    config.update_start_step, config.update_end_step, config.update_freq = begin, end, every
  pruner, model = jaxpruner.create_updater_from_config(config), Mlp(course.widths[1:])
  tx = pruner.wrap_optax(adam(course))
  params, opt_state = looped(course, seed, [(0, model)], tx, pruner.post_gradient_update)
  params = pruner.post_gradient_update(params, opt_state)
  return Trained(params, lambda x: model.apply({'params': params}, x))


def by_qwix(course: Course, seed: int) -> Trained:
  """As its pages on QAT and PTQ: float first, then QAT, then integers for weights and activations."""
  import qwix

  rules = [qwix.QuantizationRule(module_path='.*', weight_qtype='int8', act_qtype='int8')]
  model = Mlp(course.widths[1:])
  aware = qwix.quantize_model(model, qwix.QtProvider(rules))
  params, _ = looped(course, seed, [(0, model), (course.half, aware)], adam(course))
  integers = qwix.quantize_model(model, qwix.PtqProvider(rules))
  wanted = jax.eval_shape(integers.init, jax.random.key(0), course.test[:1])['params']
  quantized = qwix.quantize_params(params, wanted)
  return Trained(params, lambda x: integers.apply({'params': quantized}, x))


def zeros(trained: Trained) -> float:
  return peers_course.zeros_of([leaf for leaf in jax.tree.leaves(trained.params) if leaf.ndim == 2])


def exported(course: Course, trained: Trained, folder: Path, first: bool) -> list[File]:
  """A program of JAX's own export, with the weights in it, for any batch size."""
  from jax import export

  path = folder / 'network.stablehlo'
  shape = jax.ShapeDtypeStruct((*export.symbolic_shape('b'), course.widths[0]), jnp.float32)
  path.write_bytes(export.export(jax.jit(trained.forward))(shape).serialize())

  def opened(size: int) -> Any:
    return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)

  return [File('StableHLO', path, opened)]


def told(what: str, **others: str) -> Any:
  return lambda course: others.get(course.work, what)


if __name__ == '__main__':
  peers_course.serve(
    {
      'flax': Side(
        by_flax, exported, zeros, told('jitted steps', distilled='jitted steps, loss by hand'), ('flax', 'optax', 'jax')
      ),
      'jaxpruner': Side(
        by_jaxpruner, exported, zeros, told('no_prune', pruned='magnitude, ERK'), ('jaxpruner', 'flax', 'jax')
      ),
      'qwix': Side(by_qwix, exported, zeros, told('QtProvider, then PtqProvider'), ('qwix', 'flax', 'jax')),
    }
  )
