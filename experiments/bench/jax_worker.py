"""A process that trains a case in JAX: started by `against_pytorch` and `startup`, never by hand.

Each form imports only what its user would.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import cases
import serving

from jaxlite.host import machine

STEPS = {'mlp': 20, 'tiny': 100, 'vit': 4}  # a dispatch; a convolution on CPU is never looped over in a program


def forms(case: str) -> list[str]:
  """Returns the forms of a case."""
  return ['jaxlite', *([f'jaxlite, {STEPS[case]} steps per dispatch'] if case in STEPS else []), 'Linen + Optax', 'NNX']


def optimizer_of(spec: dict[str, Any]) -> Any:
  """Momentum SGD or AdamW, plain Optax."""
  import optax

  lr = cases.case(spec['case']).lr[spec['optimizer']]
  if spec['optimizer'] == 'sgd':
    return optax.sgd(lr, momentum=cases.MOMENTUM)
  return optax.adamw(lr, weight_decay=cases.WEIGHT_DECAY)


def jaxlite_form(spec: dict[str, Any], steps: int) -> serving.Running:
  """`train_step` as the loop calls it: rewrites chosen by time, one or several steps per dispatch."""
  import jax
  import linen_models
  import numpy as np

  import jaxlite as jl
  from jaxlite import models
  from jaxlite.cpu import autotune
  from jaxlite.step import warm_up

  name = spec['case']
  if name in cases.WIDTHS:
    network = models.MLP(cases.WIDTHS[name])
  else:
    network = {'cnn': models.SmallCNN, 'resnet20': models.ResNet20, 'vit': lambda: models.ViT(**cases.VIT)}[name]()
  train = jl.train_step(jl.from_linen(network), jl.cross_entropy, jl.chain(optimizer_of(spec)))
  given = cases.batches(name)
  state = train.init(jax.random.key(0), given[0], params=linen_models.tree(cases.weights(name)))
  train = warm_up.tuned(train, state, given[0], lambda sites: autotune.choose(sites).table.choices)
  if steps > 1:
    starts = range(0, len(given) * steps, steps)
    order = [[index % len(given) for index in range(at, at + steps)] for at in starts]
    stacks = [{field: np.stack([given[at][field] for at in rows]) for field in given[0]} for rows in order]

  def step(index: int) -> Any:
    nonlocal state
    if steps == 1:
      state, terms = train.step(state, given[index % len(given)])
      return terms['loss']
    state, terms = train.steps(state, stacks[index // steps % len(stacks)])
    return terms['loss']

  return serving.Running(step, lambda loss: np.ravel(loss).tolist(), steps)


def linen_form(spec: dict[str, Any]) -> serving.Running:
  """Flax Linen and Optax by the book, the state donated."""
  import functools

  import jax
  import linen_models
  import optax

  name, given = spec['case'], cases.batches(spec['case'])
  module, tx = linen_models.network(name), optimizer_of(spec)
  variables = jax.jit(module.init)(jax.random.key(0), given[0]['inputs'])
  weights = linen_models.tree(linen_models.attended(cases.weights(name)) if name == 'vit' else cases.weights(name))
  if jax.tree.structure(weights) != jax.tree.structure(variables['params']):
    raise ValueError(f'{name}: the weights are not those of the Linen network')
  params = jax.tree.map(jax.numpy.array, weights)
  rest = {key: value for key, value in variables.items() if key != 'params'}
  opt_state = jax.jit(tx.init)(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
  def train_step(params: Any, rest: Any, opt_state: Any, batch: Any) -> Any:
    def loss_of(params: Any) -> Any:
      logits, new = module.apply({'params': params, **rest}, batch['inputs'], mutable=list(rest))
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels']).mean(), new

    (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), new, opt_state, loss

  def step(index: int) -> Any:
    nonlocal params, rest, opt_state
    params, rest, opt_state, loss = train_step(params, rest, opt_state, given[index % len(given)])
    return loss

  return serving.Running(step, lambda loss: [float(loss)])


def nnx_form(spec: dict[str, Any]) -> serving.Running:
  """Flax NNX by the book, with its `cached_partial`, the quicker of its ways to call a compiled step."""
  import jax
  import linen_models
  import nnx_models
  import optax
  from flax import nnx

  name, given = spec['case'], cases.batches(spec['case'])
  model = nnx_models.network(name, nnx.Rngs(0))
  model.train()
  weights = linen_models.tree(linen_models.attended(cases.weights(name)) if name == 'vit' else cases.weights(name))
  known = {path for path, _ in nnx.state(model, nnx.Param).flat_state()}
  if known != {path for path, _ in flat(weights)}:
    raise ValueError(f'{name}: the weights are not those of the NNX network')
  nnx.update(model, nnx.State.from_flat_path({path: nnx.Param(jax.numpy.array(v)) for path, v in flat(weights)}))
  optimizer = nnx.Optimizer(model, optimizer_of(spec), wrt=nnx.Param)

  @nnx.jit
  def train_step(model: Any, optimizer: Any, batch: Any) -> Any:
    def loss_of(model: Any) -> Any:
      return optax.softmax_cross_entropy_with_integer_labels(model(batch['inputs']), batch['labels']).mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss

  call = nnx.cached_partial(train_step, model, optimizer)
  return serving.Running(lambda index: call(given[index % len(given)]), lambda loss: [float(loss)])


def flat(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Yields (path, leaf) of nested dicts."""
  for name, value in tree.items():
    yield from flat(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]


def main() -> None:
  """Serves one case with one optimizer."""
  spec = json.loads(sys.argv[1])
  if spec['allocator'] == 'kept':
    from jaxlite.host import allocator

    allocator.share_one_arena()
  if spec['cache']:
    from jaxlite.host import compile_cache

    print(compile_cache.enable(spec['cache']), file=sys.stderr)

  def build(form: str) -> serving.Running:
    if form.startswith('jaxlite'):
      return jaxlite_form(spec, STEPS[spec['case']] if 'dispatch' in form else 1)
    return linen_form(spec) if form.startswith('Linen') else nnx_form(spec)

  def after_first() -> None:
    if spec.get('room'):  # MiB; the decision below reads the limit
      import resource

      limit = machine.mapped() + (spec['room'] << 20)
      resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if spec['allocator'] == 'kept':
      decision = allocator.keep_mapped()
      if not decision.kept:
        print(f'allocator: {decision.why}', file=sys.stderr)

  serving.serve_steps(build, after_first)


if __name__ == '__main__':
  main()
