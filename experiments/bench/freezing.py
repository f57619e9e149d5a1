"""What freezing saves: a network trained whole beside one of which the head alone learns, each in a fresh process.

  python experiments/bench/freezing.py [--networks=resnet20,vit] [--batch=128] [--steps=12]

A row tells the least seconds of a step, XLA's temporaries of the compiled gradient, the process's peak (VmHWM), and how
many arrays have a moment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def worker(name: str, way: str, size: int, steps: int) -> dict[str, Any]:
  """Trains one network one way."""
  import jax
  import numpy as np
  import optax

  import jaxlite as jl
  from jaxlite import models, trees
  from jaxlite.host.machine import status

  rng = np.random.default_rng(0)
  batch = {'inputs': rng.normal(size=(size, 32, 32, 3)).astype(np.float32), 'labels': np.arange(size) % 10}
  module = {'resnet20': models.ResNet20, 'vit': models.ViT}[name]()
  model = jl.from_linen(module)
  params = jax.eval_shape(model.init, jax.random.key(0), batch['inputs'])[0]
  head = trees.select(trees.paths(params), rf'(^|/){module.classifier}/')
  hooks = [jl.freeze(lambda path: path not in head)] if way == 'head' else []
  train = jl.train_step(model, jl.cross_entropy, jl.chain(*hooks, optax.adam(1e-3)))
  state = train.init(jax.random.key(0), batch)
  loop = jl.step.wrap(model, jl.cross_entropy, jl.chain(*hooks))
  given = (*loop.init(jax.random.key(0), batch), batch, jax.random.key(0), 0)
  temporaries = jax.jit(loop.gradient).lower(*given).compile().memory_analysis().temp_size_in_bytes
  times = []
  for _ in range(steps):
    start = time.perf_counter()
    state, metrics = train.step(state, batch)
    jax.block_until_ready(metrics)
    times.append(time.perf_counter() - start)
  return {
    'network': name,
    'learns': way,
    's a step': round(min(times[1:]), 4),
    'temporaries MiB': round(temporaries / 2**20, 1),
    'peak MiB': round(status('VmHWM') / 2**20),
    'arrays with moments': len(jax.tree.leaves(state.opt_state)) - 1,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('worker', nargs='*')
  parser.add_argument('--networks', default='resnet20,vit')
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--steps', type=int, default=12)
  args = parser.parse_args()
  if args.worker:
    print(json.dumps(worker(*args.worker, args.batch, args.steps)))
    return
  for name in args.networks.split(','):
    for way in ('all', 'head'):
      command = [sys.executable, __file__, name, way, f'--batch={args.batch}', f'--steps={args.steps}']
      done = subprocess.run(command, capture_output=True, text=True, check=False)
      print(done.stdout.strip() or done.stderr.strip()[-500:], flush=True)


if __name__ == '__main__':
  sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
  main()
