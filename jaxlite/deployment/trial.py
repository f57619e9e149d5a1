"""A written file on trial: loaded by its own runtime in another process, asked for real answers, and timed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_SCRIPT = Path(__file__).with_name('answer.py')


class Answers(NamedTuple):
  """What a process said.

  Attributes:
    outputs: its outputs by name: '0', '1', ... or of arrays their names.
    seconds: by batch size, how long each call took.
    memory: the most that the process held, in bytes; 0 where that is not known.
  """

  outputs: dict[str, np.ndarray]
  seconds: dict[int, np.ndarray]
  memory: int


def ask(
  kind: str,
  path: Path,
  inputs: Mapping[str, np.ndarray],
  *,
  batches: Sequence[int] = (1, 32),
  seconds: float = 0.5,
  most: int = 256,
  threads: int = 0,
  limit: float = 600.0,
  command: Sequence[str] = (),
  ends: Sequence[np.ndarray] = (),
) -> Answers:
  """Runs a file in a process of its own.

  Args:
    kind: the runtime, as `answer.py` knows it.
    path: of the file.
    inputs: raw, by name, [N, ...].
    batches: sizes that are timed.
    seconds: for each.
    most: examples at once where answers count.
    threads: of the runtime, where it takes a number; 0 leaves it to it.
    limit: seconds after which the process is ended.
    command: of a C compiler, for 'c'.
    ends: the outputs of one example, for 'c', which does not say their shapes.

  Raises:
    OSError: no room is left for what is asked and answered.
    ValueError: it cannot be run: what the process said last.
  """
  with tempfile.TemporaryDirectory(prefix='jaxlite-trial-') as folder:
    given, to = Path(folder, 'in.npz'), Path(folder, 'out.npz')
    own = {name: array for name, array in inputs.items() if array.dtype.isbuiltin == 2}  # bfloat16: no word in a file
    held: dict[str, Any] = {f'inputs/{name}': array for name, array in inputs.items() if name not in own}
    held |= {f'inputs/{name}': array.view(f'u{array.dtype.itemsize}') for name, array in own.items()}
    held |= {f'kinds/{name}': np.array(array.dtype.name) for name, array in own.items()}
    held |= {f'ends/{index:03}': array for index, array in enumerate(ends)}
    told = {'batches': batches, 'seconds': seconds, 'most': most, 'threads': threads}
    try:
      np.savez(given, command=np.array(command, str), **told, **held)
    except OSError as error:  # a full disk, most likely, which NumPy does not name
      raise OSError(error.errno, error.strerror or str(error), folder) from None
    words = [sys.executable, '-P', str(_SCRIPT), kind, str(path), str(given), str(to)]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    if kind.startswith('module:'):
      root = str(_SCRIPT.parents[2])
      environment['PYTHONPATH'] = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH', '')]))
    try:
      done = subprocess.run(words, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
      raise ValueError(f'it does not answer within {limit:g} seconds') from None
    if done.returncode or not to.exists():
      lines = [line for line in done.stderr.splitlines() if line.strip()]
      told = lines[-1].strip() if lines else f'exit code {done.returncode}'
      if os.strerror(errno.ENOSPC) in told:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)  # which is not the file's fault
      raise ValueError(f'its runtime cannot run it ({told[:300]})')
    with np.load(to) as found:
      outputs = {name.removeprefix('output/'): found[name] for name in found.files if name.startswith('output/')}
      times = {int(name.removeprefix('seconds/')): found[name] for name in found.files if name.startswith('seconds/')}
      memory = int(found['memory']) if 'memory' in found.files else 0
  return Answers(outputs, times, memory)
