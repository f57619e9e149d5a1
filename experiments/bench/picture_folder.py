"""Trains on a folder of JPEGs that does not fit into memory, under a limit, and kills the run on the way.

  python experiments/bench/picture_folder.py --count=20000 --megabytes=980 --kills=3

Makes `count` JPEGs of 256x256 by cropping, turning and relighting the photographs that come with scikit-image and
scikit-learn (a class for each photograph), then trains a small CNN on them for `steps` steps in a process of its own
whose data segment is limited (RLIMIT_DATA). It prints what a step waits for input at most (the time in which the loop
stands in `take`: an upper bound, since the device may be at work then), how busy the processor is, the same without
decoding, the peak of the process, and, with `kills`, whether a run that was killed so many times ends with the same
bits. Other processes on the machine make the figures worse: the load is printed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

FLAGS = flags.FLAGS
flags.DEFINE_integer('count', 20_000, 'pictures')
flags.DEFINE_integer('megabytes', 980, "limit of the process's data segment; 0 sets none")
flags.DEFINE_integer('steps', 300, 'of training')
flags.DEFINE_integer('batch', 32, 'examples a step')
flags.DEFINE_integer('kills', 0, 'by SIGKILL, at random moments')
flags.DEFINE_integer('threads', 0, 'that decode; 0: one a core')
flags.DEFINE_enum('keep', 'folder', ['folder', 'pixels', 'jpeg'], 'where pictures are decoded from')
flags.DEFINE_string('folder', '', 'of the pictures; made where it is not there; empty: a temporary one')
flags.DEFINE_string('worker', '', 'the workdir of a run: train it, and print what was measured (for itself)')
flags.DEFINE_bool('repeated', False, 'of a worker: the first batch again and again, so that nothing is decoded')


def photographs():
  """The packaged photographs by name, uint8 [H, W, 3]."""
  import skimage.data
  from sklearn.datasets import load_sample_images

  found = {name: getattr(skimage.data, name)() for name in ('astronaut', 'chelsea', 'coffee', 'rocket')}
  return {**found, **dict(zip(('china', 'flower'), load_sample_images().images, strict=True))}


def make(folder, count, size=256):
  """Writes the pictures; the same ones for the same count, and none twice."""
  import numpy as np
  from PIL import Image

  photos = list(photographs().items())
  for number in range(count):
    name, photo = photos[number % len(photos)]
    place = folder / name / f'{number:06d}.jpg'
    if place.exists():
      continue
    place.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    side = int(rng.integers(size * 3 // 5, min(photo.shape[:2])))
    top, left = (int(rng.integers(0, most - side + 1)) for most in photo.shape[:2])
    image = Image.fromarray(photo[top : top + side, left : left + side]).resize((size, size), Image.Resampling.BILINEAR)
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image
    lit = np.clip(np.asarray(image, np.float32) * rng.uniform(0.5, 1.4) + rng.normal(0, 6, (size, size, 1)), 0, 255)
    out = io.BytesIO()
    Image.fromarray(lit.astype(np.uint8)).save(out, 'JPEG', quality=85)
    place.write_bytes(out.getvalue())


def train(workdir):
  """Trains one run, or on from where it was killed; prints a line of JSON."""
  import flax.linen as nn

  import jaxlite as jl
  from jaxlite import checkpoint

  class Net(nn.Module):
    """Strided convolutions: a step of some tens of milliseconds on two cores."""

    @nn.compact
    def __call__(self, x):
      x = x.astype('float32')
      for width in (16, 32, 64, 64):
        x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
      return nn.Dense(6)(x.mean((1, 2)))

  began = time.monotonic()
  data = jl.data.pictures(
    FLAGS.folder, 256, keep=FLAGS.keep, threads=FLAGS.threads or None, validation=0.005, test=0.005
  )
  made = time.monotonic() - began
  base = data.train.inputs.base
  take, spent, first = base.take, [], []

  def timed(rows, axis=0):
    if FLAGS.repeated and first and len(first[0]) == len(rows):
      return first[0]
    start = time.monotonic()
    found = take(rows, axis)
    spent.append((time.monotonic(), time.monotonic() - start))
    first[:] = first or [found]
    return found

  base.take = timed
  config = jl.Config(name='folder', train=jl.Duration(steps=FLAGS.steps))
  config.data.batch_size, config.eval.batch_size = FLAGS.batch, FLAGS.batch
  config.eval.every = jl.Duration(steps=max(1, FLAGS.steps // 2))
  config.log.every = config.checkpoint.every = jl.Duration(steps=max(1, FLAGS.steps // 10))
  config.machine.force, config.log.tensorboard = True, False
  seen = []

  def say(line):
    print(line, flush=True)
    if line.startswith('step '):
      seen.append((time.monotonic(), time.process_time(), len(spent)))

  result = jl.train(config, workdir, model=Net(), data=data, say=say)
  names = ('params', 'opt_state', 'model_state', 'step', 'key')
  found = checkpoint.load_arrays(pathlib.Path(workdir) / 'checkpoints', names, which='latest').state
  told = {'digest': checkpoint.fingerprint(found), 'accuracy': result.metrics['accuracy'], 'looked': made}
  if len(seen) > 3:  # from the second point to the last: compiling is behind
    (start, busy, at), (end, later, until) = seen[1], seen[-1]
    told |= {
      'waited': sum(one for when, one in spent if start <= when <= end) / (end - start),
      'busy': (later - busy) / (end - start),
      'cores': os.cpu_count(),
      'a_step': (end - start) / max(1, len(seen[1:-1]) * config.log.every.steps),
      'decoded': until - at,
    }
  told['peak_mib'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print('RESULT ' + json.dumps(told), flush=True)


def start(workdir, folder, *more):
  """Starts a worker under the limit."""
  command = [sys.executable, __file__, f'--worker={workdir}', f'--folder={folder}', *more]
  command += [f'--{name}={getattr(FLAGS, name)}' for name in ('steps', 'batch', 'threads', 'keep')]
  limit = (
    [] if not FLAGS.megabytes else ['sh', '-c', f'ulimit -d {FLAGS.megabytes * 1000 * 1000 // 1024}; exec "$@"', 'sh']
  )
  return subprocess.Popen([*limit, *command], stdout=subprocess.PIPE, text=True)


def answer(process):
  """What a worker measured."""
  lines = process.communicate()[0].splitlines()
  found = [json.loads(line.removeprefix('RESULT ')) for line in lines if line.startswith('RESULT ')]
  if process.returncode or not found:
    raise RuntimeError(f'a worker ended with {process.returncode}: {lines[-5:]}')
  return found[0]


def main(_):
  logging.set_verbosity(logging.WARNING)
  if FLAGS.worker:
    return train(FLAGS.worker)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(FLAGS.folder or f'{scratch}/pictures')
    began = time.monotonic()
    make(folder, FLAGS.count)
    size = sum(path.stat().st_size for path in folder.rglob('*.jpg'))
    print(
      f'{FLAGS.count:,} JPEGs, {size / 1e6:,.0f} MB, {FLAGS.count * 256 * 256 * 3 / 1e6:,.0f} MB decoded; made in '
      f'{time.monotonic() - began:.0f} s; load of the machine {os.getloadavg()[0]:.1f}',
      flush=True,
    )
    began = time.monotonic()
    straight = answer(start(f'{scratch}/straight', folder))
    took = time.monotonic() - began - straight['looked']
    plain = answer(start(f'{scratch}/repeated', folder, '--repeated'))
    print(
      f'limit {FLAGS.megabytes} MB of data, peak {straight["peak_mib"]:.0f} MiB resident; looked at in '
      f'{straight["looked"]:.1f} s; {FLAGS.steps} steps of {FLAGS.batch}, accuracy {straight["accuracy"]:.3f}'
    )
    if 'waited' in straight and 'waited' in plain:
      print(
        f'a step {straight["a_step"] * 1e3:.0f} ms, with nothing to decode {plain["a_step"] * 1e3:.0f} ms; in take at '
        f'most {straight["waited"]:.1%} of the time; processor busy {straight["busy"]:.2f} of {straight["cores"]} '
        f'cores ({plain["busy"]:.2f} with nothing to decode); load now {os.getloadavg()[0]:.1f}'
      )
    rng, sent, same, began, round_ = random.Random(0), 0, True, time.monotonic(), 0
    while same and sent < FLAGS.kills:  # a run that ends before its kill is followed by another
      workdir, before = f'{scratch}/killed{round_}', sent
      while True:
        process = start(workdir, folder)
        try:
          process.wait(timeout=rng.uniform(0.2, 1) * took / 2 if sent < FLAGS.kills else None)
        except subprocess.TimeoutExpired:
          process.send_signal(signal.SIGKILL)
          process.communicate()
          sent += 1
          continue
        break
      same, round_ = answer(process)['digest'] == straight['digest'], round_ + 1
      print(f'killed {sent - before} times: {"the same bits" if same else "OTHER BITS"}', flush=True)
    if FLAGS.kills:
      print(f'killed {sent} times in {time.monotonic() - began:.0f} s: {"the same bits" if same else "OTHER BITS"}')
    print(f'bits {hashlib.sha256(straight["digest"].encode()).hexdigest()[:16]}')
    return 0 if same else 1


if __name__ == '__main__':
  app.run(main)
