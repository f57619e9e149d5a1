"""jaxlite beside its peers on the same work: accuracy, time to train, bytes of the file, latency, memory; one table.

  python experiments/bench/peers.py --workdir=runs/peers --python=torch:PATH --python=qwix:PATH ...

LeNet-300-100 on Fashion-MNIST, five times over: as it is, with nine weights in ten zero, in 8 bits, taught by a wider
network, and all three together. Every side gets the same arrays, first weights (scikit-learn has its own), order of
examples, batch size, epochs, Adam with a cosine (scikit-learn's has none), and does the work by its own means as its
documentation has it. Nothing is tuned or chosen on any side. What is scored is the file that it wrote and opened again;
labels of the test stay here.

Each side runs in a process of its own, one after the other, in the Python that `--python=NAME:PATH` names, by default
this one. What is not installed or fails is a row that says why. What is finished is kept in the workdir, so the same
command goes on where it was stopped. JaxPruner needs an old JAX (0.4.30 does) and is installed from its repository.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peers_tables
import serving
from absl import app, flags
from peers_course import WORKS
from peers_tables import SIDES

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/peers', 'where what is finished is kept')
flags.DEFINE_multi_string('python', [], f'NAME:PATH, the Python that has {", ".join(SIDES)}')
flags.DEFINE_list('only', [], 'sides by name; all when empty')
flags.DEFINE_list('works', list(WORKS), 'which works')
flags.DEFINE_integer('seeds', 5, 'runs behind each mean', lower_bound=1)
flags.DEFINE_integer('epochs', 3, 'of each run', lower_bound=1)
flags.DEFINE_enum('data', 'fashion_mnist', ['fashion_mnist', 'digits'], 'digits come with scikit-learn')
flags.DEFINE_string('fashion', '/usr/share/datasets/fashion-mnist', 'the folder of the four published files')
flags.DEFINE_integer('limit', 1800, 'seconds that one side may take for one work, all seeds')
flags.DEFINE_bool('smoke', False, 'digits, one seed, a small network and two epochs: to see that it runs')

TEACHER, TEACHER_SEED = (1000, 1000), 1
GIVEN = {'batch': 128, 'rate': 1e-3, 'sparsity': 0.9, 'temperature': 4.0, 'alpha': 0.9}


def settings() -> dict[str, Any]:
  """What a run is: kept results of other settings do not count."""
  if FLAGS.smoke:
    small = {'widths': [64, 32, 10], 'teacher': [64, 32, 10], 'data': 'digits', 'seconds': 0.01}
    return {**GIVEN, **small, 'epochs': 2, 'seeds': [0], 'batch': 64}
  inputs = 784 if FLAGS.data == 'fashion_mnist' else 64
  return {
    **GIVEN,
    'widths': [inputs, 300, 100, 10],
    'teacher': [inputs, *TEACHER, 10],
    'data': FLAGS.data,
    'seconds': 0.6,
    'epochs': FLAGS.epochs,
    'seeds': list(range(FLAGS.seeds)),
  }


def arrays(data: str) -> tuple[np.ndarray, ...]:
  """Inputs of about unit scale and labels: of training, of the test."""
  if data == 'digits':
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    parts = x[order[:1437]], y[order[:1437]], x[order[1437:]], y[order[1437:]]
  else:

    def read(name: str, skip: int) -> np.ndarray:
      if not Path(FLAGS.fashion, f'{name}-ubyte.gz').exists():
        told = f'{FLAGS.fashion} lacks {name}-ubyte.gz: apt-get install dataset-fashion-mnist, or --data=digits'
        raise app.UsageError(told)
      return np.frombuffer(gzip.decompress(Path(FLAGS.fashion, f'{name}-ubyte.gz').read_bytes()), np.uint8)[skip:]

    parts = tuple(
      one
      for which in ('train', 't10k')
      for one in (read(f'{which}-images-idx3', 16).reshape(-1, 784), read(f'{which}-labels-idx1', 8))
    )
  train_x, train_y, test_x, test_y = parts
  mean, std = train_x.mean(dtype=np.float64), train_x.std(dtype=np.float64)
  scaled = [((one - mean) / std).astype(np.float32) for one in (train_x, test_x)]
  return scaled[0], train_y.astype(np.int32), scaled[1], test_y.astype(np.int64)


def prepare(folder: Path, given: dict[str, Any]) -> np.ndarray:
  """Writes what all sides read, and the teacher where a work asks for it; returns the labels of the test."""
  train_x, train_y, test_x, test_y = arrays(given['data'])
  np.savez(folder / 'data.npz', train_x=train_x, train_y=train_y, test_x=test_x)
  if not {'distilled', 'all'} & set(FLAGS.works):
    return test_y
  about = folder / 'teacher.json'
  asked = {name: given[name] for name in ('data', 'teacher', 'epochs', 'batch', 'rate')}
  if not (about.exists() and json.loads(about.read_text())['settings'] == asked):
    spec = {**given, 'side': 'teacher', 'work': 'dense', 'seeds': [TEACHER_SEED], 'folder': str(folder)}
    told = answer(python_of('jaxlite'), 'jaxlite', spec)
    if 'why' in told:
      raise RuntimeError(f'the teacher could not be trained: {told["why"]}')
    score = 100 * float(np.mean(np.array(told['seeds'][0]['labels']) == test_y))
    about.write_text(json.dumps({'settings': asked, 'test': score}))
  print(f'the teacher: {json.loads(about.read_text())["test"]:.2f} % of the test', flush=True)
  return test_y


def python_of(name: str) -> str:
  """The interpreter of a side."""
  if shapeless := [one for one in FLAGS.python if ':' not in one]:
    raise app.UsageError(f'--python takes NAME:PATH; got {shapeless[0]}')
  found = dict(one.split(':', 1) for one in FLAGS.python)
  unknown = set(found) - set(SIDES)
  if unknown:
    raise app.UsageError(f'--python takes {", ".join(SIDES)}; got {", ".join(sorted(unknown))}')
  return found.get(name, sys.executable)


def answer(python: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
  """What a worker told, {'seeds': [...]}; or {'why': ...}."""
  side = SIDES[name]
  for module in side.modules:
    if serving.missing(python, module):
      return {'why': f'{module} is not installed; --python={name}:PATH names a Python that has it'}
  path = os.pathsep.join(filter(None, [str(serving.HERE.parent.parent), os.environ.get('PYTHONPATH')]))
  environment = {**os.environ, 'PYTHONPATH': path} if name == 'jaxlite' else dict(os.environ)
  command = [python, str(serving.HERE / side.script), json.dumps(spec)]
  try:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=FLAGS.limit)
  except subprocess.TimeoutExpired:
    return {'why': f'not done within {FLAGS.limit} seconds (--limit)'}
  if done.returncode:
    print(done.stderr[-4000:], file=sys.stderr, flush=True)
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), 'no word')
    return {'why': f'failed with code {done.returncode}: {last.strip()[:160]}'}
  told = [json.loads(line) for line in done.stdout.splitlines()]
  return {'seeds': told} if told else {'why': 'it ended well and said nothing'}


def kept(folder: Path, name: str, work: str, given: dict[str, Any], test: np.ndarray) -> dict[str, Any]:
  """What one side made of one work, made once."""
  path = folder / f'{name}-{work}.json'
  if path.exists():
    held = json.loads(path.read_text())
    if held['settings'] == given and 'why' not in held:
      return held
  told = answer(python_of(name), name, {**given, 'side': name, 'folder': str(folder), 'work': work})
  for one in told.get('seeds', ()):
    one['accuracy'] = 100 * float(np.mean(np.array(one.pop('labels')) == test))
  held = {'settings': given, **told}
  scratch = path.with_suffix('.part')
  scratch.write_text(json.dumps(held))
  scratch.rename(path)
  return held


def main(_: list[str]) -> None:
  """Runs what is not finished, prints and writes the table."""
  for wanted, known, flag in ((FLAGS.only, SIDES, '--only'), (FLAGS.works, WORKS, '--works')):
    if unknown := set(wanted) - set(known):
      raise app.UsageError(f'{flag} takes {", ".join(known)}; got {", ".join(sorted(unknown))}')
  given = settings()
  folder = Path(FLAGS.workdir).expanduser().absolute() / ('smoke' if FLAGS.smoke else '')
  folder.mkdir(parents=True, exist_ok=True)
  test, found = prepare(folder, given), {}
  for work in (one for one in WORKS if one in FLAGS.works):
    for name, side in SIDES.items():
      if work in side.works and (not FLAGS.only or name in FLAGS.only):
        found[work, name] = kept(folder, name, work, given, test)
        print(peers_tables.brief(work, side, found[work, name]), flush=True)
  lines = peers_tables.table(found, given, len(test))
  (folder / 'peers.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(['', *lines]))


if __name__ == '__main__':
  app.run(main)
