"""What a run costs as its data grow: classes, points of its record, examples that are carved, bytes of its state.

  python experiments/bench/growth_data.py [--short]

Each row is a fresh process: seconds of processor time, and the most memory above what the process held when its inputs
were there.

  classes    metrics of one batch of 512, and a whole small run: evaluation, report, result.json
  points     resuming a run whose record has that many, TensorBoard files and all; and its report written and read again
  carving    MB of inputs, from_arrays with a tenth for validation and a tenth for test; folds of the same
  predict    examples of a whole split through a network whose hidden layer takes 64 KiB each
  checkpoint MB of state, saved and waited for; restored
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Act = Callable[[], Any]


def rows(short: bool = False) -> Iterator[dict[str, Any]]:
  """Yields {'what', 'size', 'cpu seconds', 'peak MiB'}, a measurement each."""
  for what, (_, sizes) in KINDS.items():
    for size in sizes[:1] if short else sizes:
      command = [sys.executable, __file__, '--one', what, str(size)]
      done = subprocess.run(command, capture_output=True, text=True, check=False)
      lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
      lost = {'cpu seconds': math.nan, 'peak MiB': math.nan}  # out of memory, say
      yield {'what': what, 'size': size, **(json.loads(lines[-1]) if lines else lost)}


def _measured(make: Callable[[int, Path], Act], size: int) -> dict[str, float]:
  with tempfile.TemporaryDirectory() as folder:
    act = make(size, Path(folder))
    gc.collect()
    Path('/proc/self/clear_refs').write_text('5')  # the peak of memory counts from here
    held, began = _memory('VmRSS'), time.process_time()
    left = act()
    found = {'cpu seconds': time.process_time() - began, 'peak MiB': (_memory('VmHWM') - held) / 1024}
    del left
  return {name: round(value, 3) for name, value in found.items()}


def _memory(name: str) -> int:
  """KiB, as Linux counts them."""
  lines = Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(f'{name}:'))


def _batch_of_metrics(classes: int, _: Path) -> Act:
  import jax
  import jax.numpy as jnp

  from jaxlite.tasks.metrics import classification_metrics

  metric, random = classification_metrics(classes), np.random.default_rng(0)
  keep, merge = metric.keep, getattr(metric, 'merge', None)
  logits = jnp.asarray(random.standard_normal((512, classes), np.float32))
  batch = {'labels': jnp.asarray(random.integers(0, classes, 512)), 'weight': jnp.ones(512)}

  def add(state: Any, logits: Any, batch: Any) -> Any:
    kept = {**keep(logits, batch), 'weight': batch['weight']} if keep else None
    return metric.update(state, logits, batch, jnp.zeros(512)), kept

  program = jax.jit(add, donate_argnums=0)
  state, _kept = program(metric.init(), logits, batch)
  jax.block_until_ready(state)

  def act() -> Any:
    found, kept = program(state, logits, batch)
    if merge:
      merge(None, jax.device_get(kept))
    return jax.block_until_ready(found)

  return act


def _run_of_classes(classes: int, folder: Path) -> Act:
  import jax
  import optax

  import jaxlite as jl

  random = np.random.default_rng(0)
  inputs = random.standard_normal((4_000, 8), np.float32)
  labels = random.integers(0, max(2, classes // 10), 4_000)  # most classes have no example: none of them would have two
  config = jl.Config(name='growth', recipe=lambda config, total: jl.chain(optax.adam(1e-2)))
  config.train, config.log.progress = jl.Duration(steps=20), False
  params = {'w': np.asarray(jax.random.normal(jax.random.key(0), (8, classes)))}
  model = jl.from_function(lambda p, x: x @ p['w'], params)
  data = jl.data.from_arrays((inputs, labels), classes=classes)
  return lambda: jl.train(config, folder / 'run', model=model, data=data, say=lambda line: None)


def _points(size: int) -> Iterator[tuple[str, int, dict[str, float]]]:
  values = {'loss': 0.5, 'task': 0.4, 'penalty': 0.1, 'lr': 1e-3, 'examples_per_second': 1234.5}
  return (('train', step, values) for step in range(1, size + 1))


def _resume(points: int, folder: Path) -> Act:
  from jaxlite.run.records import Records

  with Records(folder, length=0) as records:
    for point in _points(points):
      records.write(*point)
    kept, length = records.keep(), records.length

  def act() -> None:
    with Records(folder, length=length, kept=kept):
      pass

  return act


def _report(points: int, folder: Path) -> Act:
  from jaxlite.report import page, result
  from jaxlite.run.records import Records, read_records

  with Records(folder, length=0, tensorboard=False) as records:
    for point in _points(points):
      records.write(*point)
  page.write([result.Result('growth', {}, history=read_records(folder)[:2])], folder)  # imports

  def act() -> Any:
    found = result.Result('growth', {'accuracy': 0.5}, history=read_records(folder))
    page.write([found], folder)
    (folder / 'result.json').write_text(result.to_json(found))
    return result.from_json((folder / 'result.json').read_text())

  return act


def _examples(megabytes: int) -> tuple[np.ndarray, np.ndarray]:
  import jaxlite as jl

  inputs = np.zeros((megabytes * 1000, 1000), np.uint8)
  inputs += 1  # touched, so that it is there
  labels = np.arange(len(inputs)) % 10
  jl.data.folds((inputs[:100], labels[:100]), k=2)  # imports
  return inputs, labels


def _carve(megabytes: int, _: Path) -> Act:
  import jaxlite as jl

  inputs, labels = _examples(megabytes)
  return lambda: jl.data.from_arrays((inputs, labels))


def _folds(megabytes: int, _: Path) -> Act:
  import jaxlite as jl

  inputs, labels = _examples(megabytes)
  return lambda: jl.data.folds((inputs, labels), k=5)


def _predict(examples: int, _: Path) -> Act:
  import jax
  import jax.numpy as jnp

  import jaxlite as jl

  params = {'a': jnp.ones((16, 16_384)), 'b': jnp.ones((16_384, 10))}
  model = jl.from_function(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params)
  network = jl.Network(model, *model.init(jax.random.key(0), jnp.ones((1, 16))))
  inputs = np.ones((examples, 16), np.float32)
  np.asarray(network.predict(inputs[:512]))
  return lambda: np.asarray(network.predict(inputs))


def _state(megabytes: int) -> Any:
  import jax
  import jax.numpy as jnp

  leaf = megabytes * 1_000_000 // 4 // 10
  return jax.block_until_ready({'params': {f'w{i}': jnp.full(leaf, i, jnp.float32) for i in range(10)}})


def _save(megabytes: int, folder: Path) -> Act:
  from jaxlite.checkpoint import Checkpoints

  state, small = _state(megabytes), _state(1)
  with Checkpoints(folder / 'first') as saves:  # imports, threads
    saves.save(0, small, {}, wait=True)
  saves = Checkpoints(folder / 'checkpoints')
  return lambda: saves.save(1, state, {}, wait=True)


def _restore(megabytes: int, folder: Path) -> Act:
  import jax

  from jaxlite.checkpoint import Checkpoints

  state = _state(megabytes)
  saves = Checkpoints(folder / 'checkpoints')
  saves.save(1, state, {}, wait=True)
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
  del state
  return lambda: saves.restore(abstract)


KINDS: dict[str, tuple[Callable[[int, Path], Act], tuple[int, ...]]] = {
  'classes: metrics of a batch of 512': (_batch_of_metrics, (10, 1_000, 5_000, 20_000)),
  'classes: a whole run': (_run_of_classes, (10, 1_000, 5_000, 20_000)),
  'points: resumed': (_resume, (1_000, 100_000)),
  'points: reported': (_report, (1_000, 100_000)),
  'carving: MB of inputs': (_carve, (100, 1_000)),
  'carving: MB of inputs in 5 folds': (_folds, (100, 1_000)),
  'predict: examples at once': (_predict, (1_000, 20_000)),
  'checkpoint: MB saved': (_save, (40, 400)),
  'checkpoint: MB restored': (_restore, (40, 400)),
}


def main() -> None:
  """Prints a table; with --one, one measurement."""
  if '--one' in sys.argv:
    what, size = sys.argv[sys.argv.index('--one') + 1 :][:2]
    print(json.dumps(_measured(KINDS[what][0], int(size))))
    return
  print(f'{"what":36} {"size":>9} {"cpu seconds":>12} {"peak MiB":>9}')
  for row in rows('--short' in sys.argv):
    print(f'{row["what"]:36} {row["size"]:9,} {row["cpu seconds"]:12.3f} {row["peak MiB"]:9.0f}', flush=True)


if __name__ == '__main__':
  main()
