"""What fine-tuning a language model of 135 million parameters takes, each way in a process of its own.

  python experiments/bench/lora_memory.py [--model=PATH.gguf] [--length=128] [--steps=4] [--ways=full,lora,int8,nf4]

Without --model the network has the size of SmolLM2-135M and random weights, which take as many bytes. A row tells the
process's peak (VmHWM) while it trains, XLA's temporaries of the gradient, seconds a step, what learns, and the loss.

  python experiments/bench/lora_memory.py limit --megabytes=N WAY

runs one way under RLIMIT_DATA and ends with the exit code of the process. In both, freed arrays go back to the system
at once, in every way alike (glibc's MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_): else what loading the base in
floats freed stays with the process, and the peak tells of that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = ('full', 'lora', 'int8', 'nf4')
GIVES_BACK = {'MALLOC_MMAP_THRESHOLD_': '262144', 'MALLOC_TRIM_THRESHOLD_': '262144'}  # bytes
SIZES = {'vocabulary': 49_152, 'width': 576, 'layers': 30, 'heads': 9, 'hidden': 1_536, 'length': 2_048}


def network(path: str | None, sizes: dict[str, int]) -> tuple[Any, Any]:
  """(module, params) of a GGUF file, or of random weights."""
  import jax
  import numpy as np

  if path is not None:
    from jaxlite.finetuning import pretrained_text

    found = pretrained_text(path)
    return found.module, found.variables['params']
  from jaxlite.models import Decoder

  module = Decoder(**sizes)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), 'int32'))['params']
  rng = np.random.default_rng(0)
  drawn = lambda leaf: rng.standard_normal(leaf.shape, 'float32') * (0.02 if leaf.ndim > 1 else 1)  # noqa: E731
  return module, jax.tree.map(drawn, shapes)


def worker(way: str, path: str | None, length: int, steps: int, sizes: dict[str, int]) -> dict[str, Any]:
  """Trains one way and tells what it took."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  import jaxlite as jl
  from jaxlite.host.machine import status

  module, params = network(path, sizes)
  total = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
  tokens = np.random.default_rng(1).integers(0, sizes['vocabulary'], (1, length + 1)).astype(np.int32)
  batch = {'inputs': tokens[:, :-1], 'labels': tokens[:, 1:]}

  def loss(outputs: Any, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(outputs.astype(jnp.float32), batch['labels']).mean(-1)

  kernels = r'block\d+/.*kernel$'
  hook = {
    'full': lambda: [],
    'lora': lambda: [jl.optim.lora(4, 8, select=kernels)],
    'int8': lambda: [jl.optim.qlora(4, 8, base='int8', select=kernels)],
    'nf4': lambda: [jl.optim.qlora(4, 8, select=kernels)],
  }[way]()
  train = jl.train_step(jl.from_linen(module), loss, jl.chain(*hook, optax.adamw(1e-4)))
  state = train.init(jax.random.key(0), batch, params)
  del params  # what is kept in few bits is in the state
  begun = status('VmHWM')
  times, losses = [], []
  for _ in range(steps):
    start = time.perf_counter()
    state, metrics = train.step(state, batch)
    losses.append(float(metrics['loss']))
    times.append(time.perf_counter() - start)
  learned = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  const = sum(leaf.nbytes for leaf in jax.tree.leaves(state.const))
  return {
    'way': way,
    'peak MiB': round(status('VmHWM') / 2**20),
    'before the first step': round(begun / 2**20),
    'base MiB': round(const / 2**20),
    'learns %': round(100 * learned / total, 2),
    's a step': round(min(times[1:] or times), 2),
    'losses': [round(one, 4) for one in losses],
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('command', nargs='?', default='all', choices=('all', 'worker', 'limit'))
  parser.add_argument('way', nargs='?', choices=WAYS)
  parser.add_argument('--model')
  parser.add_argument('--length', type=int, default=128)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--ways', default=','.join(WAYS))
  parser.add_argument('--megabytes', type=int)
  parser.add_argument('--sizes', default='{}', help='JSON: other sizes of the random network')
  args = parser.parse_args()
  sizes = {**SIZES, **json.loads(args.sizes)}
  if args.command == 'worker':
    print(json.dumps(worker(args.way, args.model, args.length, args.steps, sizes)))
    return
  given = [f'--length={args.length}', f'--steps={args.steps}', f'--sizes={json.dumps(sizes)}']
  given += [f'--model={args.model}'] if args.model else []
  if args.command == 'limit':
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (args.megabytes * 2**20,) * 2)
    command = [sys.executable, __file__, 'worker', args.way, *given]
    raise SystemExit(subprocess.run(command, env={**os.environ, **GIVES_BACK}, check=False).returncode)
  for way in args.ways.split(','):
    command = [sys.executable, __file__, 'worker', way, *given]
    done = subprocess.run(command, env={**os.environ, **GIVES_BACK}, capture_output=True, text=True, check=False)
    print(done.stdout.strip() or f'{way}: ended with {done.returncode}: {done.stderr.strip()[-300:]}', flush=True)


if __name__ == '__main__':
  sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
  main()
