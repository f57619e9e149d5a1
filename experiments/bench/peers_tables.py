"""The table of `peers` in Markdown: who takes part in what, the rows, and in words where jaxlite is not the best."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import evidence
import numpy as np
import serving
import task_tables
from peers_course import WORKS


class Side(NamedTuple):
  """A peer, as the parent knows it.

  Attributes:
    title: how the table calls it.
    script: its worker.
    modules: what its Python must have.
    works: in which it takes part.
    lacks: why not in the others.
  """

  title: str
  script: str
  modules: tuple[str, ...]
  works: tuple[str, ...]
  lacks: str = ''


SIDES = {
  'jaxlite': Side('jaxlite', 'peers_jaxlite.py', ('jax',), WORKS),
  'flax': Side('Flax + Optax', 'peers_flax.py', ('flax',), ('dense', 'distilled'), 'neither prunes nor quantizes'),
  'qwix': Side('Qwix', 'peers_flax.py', ('qwix',), ('int8',), 'quantizes only; trains as Flax + Optax'),
  'jaxpruner': Side('JaxPruner', 'peers_flax.py', ('jaxpruner',), ('dense', 'pruned'), 'prunes only'),
  'keras': Side(
    'Keras on JAX', 'peers_keras.py', ('keras', 'jax'), ('dense', 'int8', 'distilled', 'all'), 'does not prune'
  ),
  'scikit': Side('scikit-learn', 'peers_scikit.py', ('sklearn',), ('dense',), 'compresses nothing'),
  'torch': Side('PyTorch, torchao', 'peers_torch.py', ('torch', 'torchao'), WORKS),
  'tfmot': Side(
    'tfmot',
    'peers_tfmot.py',
    ('tensorflow', 'tf_keras', 'tensorflow_model_optimization'),
    ('dense', 'pruned', 'int8', 'all'),
    'does not distill',
  ),
}
TITLES = {
  'dense': 'dense, float32',
  'pruned': '90 % zeros',
  'int8': '8 bits',
  'distilled': 'distilled',
  'all': 'all three',
}
_HEAD = (
  '| work: side | by | zeros, % | test accuracy, % | jaxlite minus it | s | processor, s | peak MiB | file | bytes '
  '| after gzip | ms, 1 example | ms, 32 |'
)


def brief(work: str, side: Side, held: Mapping[str, Any]) -> str:
  """A line while it runs."""
  if 'why' in held:
    return f'{work}: {side.title}: {held["why"]}'
  runs, file = held['seeds'], held['seeds'][0]['files'][0]
  accuracy = task_tables.shown([one['accuracy'] for one in runs], '.2f')
  return (
    f'{work}: {side.title}: {accuracy} %, {_median(runs, "clock"):.1f} s, {file["kind"]} {file["bytes"]:,} bytes, '
    f'{file["latency"][0]:.3f} ms'
  )


def table(found: Mapping[tuple[str, str], dict[str, Any]], given: Mapping[str, Any], test: int) -> list[str]:
  """Returns the lines.

  Args:
    found: by work and side what `peers.kept` returns.
    given: the settings.
    test: examples of the test.
  """
  network = '-'.join(map(str, given['widths']))
  lines = [
    f'{network}, {given["data"]}, {given["epochs"]} epochs, batches of {given["batch"]}, {len(given["seeds"])} seeds; '
    f'{test:,} test examples. Mean ± half of the 95 % interval; the difference seed by seed. Seconds are medians of '
    'training, compiling in them; bytes and latency are those of the first seed, the quietest of five turns.',
    '',
    _HEAD,
    '|---|---|--:|--:|---|--:|--:|--:|---|--:|--:|--:|--:|',
  ]
  for (work, name), held in found.items():
    lines += rows(work, name, held, found.get((work, 'jaxlite')))
  lines += ['', *(f'- {line}' for line in verdicts(found))]
  lines += [f'- Not asked: {line}.' for line in left_out(found)]
  versions = {held['seeds'][0]['versions'] for held in found.values() if 'seeds' in held}
  lines += ['', f'{"; ".join(sorted(versions))}. {serving.cores()} cores of {evidence.processor() or "a processor"}, ']
  lines[-1] += f'load of the machine at the end {os.getloadavg()[0]:.1f}.'
  return lines


def rows(work: str, name: str, held: Mapping[str, Any], ours: Mapping[str, Any] | None) -> Iterator[str]:
  """Yields a side's row, and one more for each further file."""
  title = f'{TITLES[work]}: {SIDES[name].title}'
  if 'why' in held:
    yield f'| {title} | not run: {held["why"].replace("|", "/")} |' + ' |' * 11
    return
  runs = held['seeds']
  scores = [one['accuracy'] for one in runs]
  apart = ''
  if name != 'jaxlite' and ours is not None and 'seeds' in ours:
    apart = task_tables.difference([one['accuracy'] for one in ours['seeds']], scores, 1, '.2f')
  cells = [title, runs[0]['how'], f'{100 * np.mean([one["zeros"] for one in runs]):.1f}']
  cells += [
    task_tables.shown(scores, '.2f'),
    apart,
    f'{_median(runs, "clock"):.1f}',
    f'{_median(runs, "processor"):.1f}',
  ]
  cells.append(f'{runs[0]["peak"] / 2**20:,.0f}')
  for at, file in enumerate(runs[0]['files']):
    if at:
      cells = [f'{title}, another file', *[''] * 7]
    latency = [f'{one:.3f}' for one in file['latency']]
    yield '| ' + ' | '.join([*cells, file['kind'], f'{file["bytes"]:,}', f'{file["gzip"]:,}', *latency]) + ' |'


def verdicts(found: Mapping[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
  """Yields where a peer is better than jaxlite, work by work; each side's best file counts.

  Accuracy differs where the interval says so, what is measured in seconds and bytes from 5 % on.
  """
  measures: dict[str, Callable[[Any], float]] = {
    'seconds to train': lambda held: _median(held['seeds'], 'clock'),
    'processor seconds': lambda held: _median(held['seeds'], 'processor'),
    'peak memory': lambda held: held['seeds'][0]['peak'],
    'bytes after gzip': lambda held: min(file['gzip'] for file in held['seeds'][0]['files']),
    'latency of 1': lambda held: min(file['latency'][0] for file in held['seeds'][0]['files']),
    'latency of 32': lambda held: min(file['latency'][1] for file in held['seeds'][0]['files']),
  }
  for work in WORKS:
    ours = found.get((work, 'jaxlite'), {})
    if 'seeds' not in ours:
      continue
    others = {name: held for (of, name), held in found.items() if of == work and name != 'jaxlite' and 'seeds' in held}
    lost = []
    for name, held in others.items():
      values = [[one['accuracy'] for one in side['seeds']] for side in (ours, held)]
      if 'we lose' in task_tables.difference(*values, 1, '.2f'):
        lost.append(f'accuracy ({SIDES[name].title})')
    for what, measure in measures.items():
      better = [SIDES[name].title for name, held in others.items() if measure(held) < 0.95 * measure(ours)]
      if better:
        lost.append(f'{what} ({", ".join(better)})')
    if others:
      yield (
        f'{TITLES[work]}: jaxlite loses in {"; ".join(lost)}.' if lost else f'{TITLES[work]}: jaxlite loses in nothing.'
      )


def left_out(found: Mapping[tuple[str, str], Any]) -> Iterator[str]:
  """Yields what a side was not asked, and why."""
  works = {work for work, _ in found}
  for name in {name: None for _, name in found}:
    absent = [TITLES[work] for work in WORKS if work in works and work not in SIDES[name].works]
    if absent:
      yield f'{SIDES[name].title} ({", ".join(absent)}): {SIDES[name].lacks}'


def _median(runs: list[dict[str, Any]], what: str) -> float:
  return statistics.median(one[what] for one in runs)
