"""A fresh process that starts training and tells where the time went: started by `startup`, never by hand."""

from __future__ import annotations

import time

BEGAN = time.perf_counter(), time.process_time()  # before anything else is imported

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

# What JAX tells of its own work, by the names of the table.
EVENTS = {
  '/jax/core/compile/jaxpr_trace_duration': 'trace',
  '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lower',
  '/jax/core/compile/backend_compile_duration': 'compile or load',
}


def main() -> None:
  """Prints one line of JSON: phase -> [seconds, CPU seconds], and within them what JAX tells."""
  spec = json.loads(sys.argv[1])
  phases: dict[str, list[float]] = {}
  inside: dict[str, list[float]] = {}
  at = list(BEGAN)

  def mark(phase: str) -> None:
    now = [time.perf_counter(), time.process_time()]
    phases[phase] = [now[0] - at[0], now[1] - at[1]]
    at[:] = now

  phases['interpreter'] = [spec['waited'] and time.time() - spec['waited'], time.process_time()]
  import jax

  jax.devices()
  mark('import jax, and its devices')
  where = ['']

  def told(event: str, seconds: float, **_: object) -> None:
    if event in EVENTS:
      entry = inside.setdefault(f'{where[0]}: {EVENTS[event]}', [0, 0.0])
      entry[0] += 1
      entry[1] += seconds

  jax.monitoring.register_event_duration_secs_listener(told)
  if spec['through'] == 'loop':
    through_loop(spec, mark, where)
  else:
    through_step(spec, mark, where)
  print(json.dumps({'phases': phases, 'inside': inside}))


def network(name: str) -> Any:
  """Returns the case's network from jaxlite.models."""
  import cases

  from jaxlite import models

  if name in cases.WIDTHS:
    return models.MLP(cases.WIDTHS[name])
  return {'cnn': models.SmallCNN, 'resnet20': models.ResNet20, 'vit': models.ViT}[name]()


def through_step(spec: dict[str, Any], mark: Callable[[str], None], where: list[str]) -> None:
  """A loop of one's own around `train_step`."""
  import cases
  import optax

  import jaxlite as jl
  from jaxlite.host import compile_cache

  model = network(spec['case'])
  tx = optax.adamw(1e-3)
  train = jl.train_step(jl.from_linen(model), jl.cross_entropy, jl.chain(tx))
  mark('imports and train_step')
  if spec['cache']:
    compile_cache.enable(spec['cache'])
  mark('compile cache on')
  batch = cases.batches(spec['case'])[0]
  mark('data')
  import jax

  where[0] = 'init'
  state = train.init(jax.random.key(0), batch)
  mark('init')
  where[0] = 'step'
  state, terms = train.step(state, batch)
  mark('first step called')
  float(terms['loss'])
  mark('first step done')


def through_loop(spec: dict[str, Any], mark: Callable[[str], None], where: list[str]) -> None:
  """`jaxlite.train`, with all that a run is: data checked, folder, checkpoints, the written program."""
  import os

  import cases
  import optax

  import jaxlite as jl

  if spec['cache']:
    os.environ['XDG_CACHE_HOME'] = spec['cache']
  given = cases.batches(spec['case'])
  inputs = [one for batch in given for one in batch['inputs']]
  labels = [one for batch in given for one in batch['labels']]
  config = jl.Config(name='start', recipe=lambda config, total: jl.chain(optax.adamw(1e-3)))
  config.train, config.data.batch_size = jl.Duration(steps=1), cases.case(spec['case']).batch
  config.log.tensorboard = config.log.progress = False
  model = network(spec['case'])
  from jaxlite.run import loop  # noqa: F401 - so that its imports are counted apart

  mark('imports')
  where[0] = 'until the first step'

  def say(line: str) -> None:
    if line.startswith('memory:'):  # said when the first step is done
      mark('jaxlite.train until the first step is done')
      where[0] = 'after'

  import numpy as np

  with tempfile.TemporaryDirectory() as folder:
    jl.train(config, folder, model=model, data=(np.stack(inputs), np.array(labels)), say=say)
  mark('the rest: validation, checkpoint, test, report')


if __name__ == '__main__':
  main()
