"""What a run hands back as evidence: the table on the terminal, `report.md`, and pictures beside it.

A `Result` is plain values, so it is saved as JSON and shown again without the run. matplotlib is imported when
pictures are drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKED = 'weights packed: the nonzero values at their bits, one mask bit a weight, float32 scales'


class Layer(NamedTuple):
  """One parameter array, as it would be stored.

  Attributes:
    path: its path in the params.
    size: number of values.
    nonzero: how many are not exactly zero.
    bits: of a stored value: 8 where it is quantized, 32 for float32.
    weight: it enters a contraction (biases and norms do not); sparsity is counted over these.
    scales: float32 scales that decode it.
  """

  path: str
  size: int
  nonzero: int
  bits: int = 32
  weight: bool = True
  scales: int = 0


@dataclasses.dataclass
class Result:
  """One finished run.

  Attributes:
    name: the run's name.
    metrics: on the test split, as `metrics.classification` names them, without the confusion matrix.
    layers: every parameter array.
    seconds: spent training, over all starts.
    history: the points of metrics.jsonl: 'kind' ('train' or 'validation'), 'step', and numbers.
    confusion: [classes, classes] on the test split, labels in rows; empty where there is none.
    class_names: one a class, or empty.
    command: the command line that made it.
    versions: package -> version.
    machine: what it ran on.
    notes: lines that the reader of the report should know.
    best_step: the step whose model was tested, the best by validation once its sparsity target was met.
    parts: what each part of the recipe did, [part, when, what it touched, what it could not] each (`parts.account`).
  """

  name: str
  metrics: dict[str, float]
  layers: list[Layer] = dataclasses.field(default_factory=list)
  seconds: float = 0.0
  history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  confusion: list[list[float]] = dataclasses.field(default_factory=list)
  class_names: list[str] = dataclasses.field(default_factory=list)
  command: str = ''
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  machine: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  best_step: int | None = None
  parts: list[list[str]] = dataclasses.field(default_factory=list)

  @property
  def parameters(self) -> int:
    """Number of parameters, zeros included."""
    return sum(layer.size for layer in self.layers)

  @property
  def sparsity(self) -> float:
    """The share of weights that are exactly zero; 0 where there is no weight."""
    weights = [layer for layer in self.layers if layer.weight]
    size = sum(layer.size for layer in weights)
    return sum(layer.size - layer.nonzero for layer in weights) / size if size else 0.0

  @property
  def bits(self) -> str:
    """Bits of a stored weight, '4 and 8' where they differ."""
    return ' and '.join(map(str, sorted({layer.bits for layer in self.layers if layer.weight})))

  @property
  def bytes(self) -> int:
    """Bytes of all parameters, packed (see `stored_bytes`)."""
    return sum(stored_bytes(layer.size, layer.nonzero, layer.bits, layer.scales) for layer in self.layers)


def stored_bytes(size: int, nonzero: int, bits: int, scales: int = 0) -> int:
  """Returns the bytes of one array in the smaller of two plain forms; no entropy coding, no file header.

  Dense: ceil(size * bits / 8). Sparse: ceil(nonzero * bits / 8) + ceil(size / 8), values and a mask bit for each
  place. Either adds 4 bytes a scale.

  Args:
    size: number of values.
    nonzero: how many are not zero.
    bits: of a stored value.
    scales: float32 scales that decode it.

  >>> stored_bytes(800, 80, 8), stored_bytes(800, 800, 32)
  (180, 3200)
  """
  dense = math.ceil(size * bits / 8)
  sparse = math.ceil(nonzero * bits / 8) + math.ceil(size / 8)
  return min(dense, sparse) + 4 * scales


def to_json(result: Result) -> str:
  """Writes a Result as JSON; NaN stays NaN. `from_json` reads it."""
  plain = dataclasses.asdict(result)
  plain['layers'] = [layer._asdict() for layer in result.layers]
  plain['confusion'] = np.asarray(result.confusion, np.float64).tolist()
  return json.dumps(plain, default=float)


def from_json(text: str) -> Result:
  """Reads what `to_json` wrote.

  >>> result = Result('mine', {'accuracy': 0.5}, [Layer('w', 4, 2)])
  >>> from_json(to_json(result)) == result
  True
  """
  plain = json.loads(text)
  return Result(**{**plain, 'layers': [Layer(**layer) for layer in plain['layers']]})


def rows(results: Sequence[Result]) -> list[list[str]]:
  """Returns the cells of the table: a row a measure, a column a run; first row and column name them."""
  cells = [['', *(result.name for result in results)]]

  def add(label: str, values: list[str]) -> None:
    if any(values):
      cells.append([label, *(value or '-' for value in values)])

  def metric(label: str, name: str, write: Any) -> None:
    add(label, [write(result.metrics[name]) if name in result.metrics else '' for result in results])

  metric('test accuracy', 'accuracy', _percent)
  add('  95 % interval', [_interval(result) for result in results])
  for name in dict.fromkeys(name for result in results for name in result.metrics):
    if found := re.fullmatch(r'top(\d+)_accuracy', name):
      metric(f'top-{found[1]} accuracy', name, _percent)
  metric('loss', 'loss', '{:.4f}'.format)
  for name, label in (('precision', 'precision'), ('recall', 'recall'), ('f1', 'F1')):
    metric(f'{label}, macro', f'{name}_macro', _percent)
  metric('test outputs that are NaN', 'nan_outputs', '{:g}'.format)
  sized = [bool(result.layers) for result in results]
  for label, values in (
    ('parameters', [f'{result.parameters:,}' for result in results]),
    ('sparsity of weights', [_percent(result.sparsity, 1) for result in results]),
    ('bits a weight', [result.bits for result in results]),
    ('bytes as float32', [f'{4 * result.parameters:,}' for result in results]),
    ('bytes packed', [f'{result.bytes:,}' for result in results]),
    ('times smaller than float32', [f'{4 * result.parameters / max(1, result.bytes):.1f}' for result in results]),
  ):
    add(label, [value if shown else '' for value, shown in zip(values, sized, strict=True)])
  add('seconds', [f'{result.seconds:.1f}' for result in results])
  return cells


def spread(results: Sequence[Result], name: str = 'accuracy') -> str:
  """Returns a line: the mean of a metric over runs that differ by chance, and the interval that holds it.

  Args:
    results: at least two runs.
    name: the metric, a share.

  Returns:
    The mean and its 95 % interval by Student's t.

  References:
    Student, The probable error of a mean, 1908, https://doi.org/10.2307/2331554

  >>> spread([Result(str(i), {'accuracy': value}) for i, value in enumerate((0.90, 0.91, 0.92))])
  'test accuracy over 3 runs: mean 91.00 %, 95 % interval 88.52 to 93.48 %'
  """
  from scipy import stats

  values = np.array([result.metrics[name] for result in results])
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
  low, high = _percent(values.mean() - half).removesuffix(' %'), _percent(values.mean() + half)
  return f'test {name} over {len(values)} runs: mean {_percent(values.mean())}, 95 % interval {low} to {high}'


def table(results: Sequence[Result]) -> str:
  """Returns the runs side by side, aligned for a terminal.

  >>> print(table([Result('mine', {'accuracy': 0.5, 'loss': 0.25}, seconds=3)]))
                    mine
  test accuracy  50.00 %
  loss            0.2500
  seconds            3.0
  """
  return '\n'.join(''.join(parts).rstrip() for parts in _aligned(rows(results)))


def markdown(cells: Sequence[Sequence[str]]) -> str:
  """Returns cells as a Markdown table that also reads as plain text."""
  escaped = [[cell.strip().replace('|', '\\|') for cell in row] for row in cells]
  widths = [max(3, *(len(cell) for cell in column)) for column in zip(*escaped, strict=True)]
  lines = [
    '| ' + ' | '.join(f'{cell:{"<" if place == 0 else ">"}{widths[place]}}' for place, cell in enumerate(row)) + ' |'
    for row in escaped
  ]
  rule = '|' + '|'.join(
    '-' * (width + 2) if place == 0 else '-' * (width + 1) + ':' for place, width in enumerate(widths)
  )
  return '\n'.join([lines[0], f'{rule}|', *lines[1:]])


def write(results: Sequence[Result], directory: str | os.PathLike[str]) -> Path:
  """Writes report.md and its pictures.

  Args:
    results: runs to show side by side, in order.
    directory: an existing folder.

  Returns:
    The path of report.md.

  Raises:
    ValueError: no result, or two of one name.
  """
  names = [result.name for result in results]
  if not results or len({_slug(name) for name in names}) < len(names):
    raise ValueError(f'a report shows at least one run, each with a name of its own; got {", ".join(names) or "none"}')
  from jaxlite import plots

  folder = Path(directory)
  text = [f'# {" / ".join(names)}', markdown(rows(results)), f'`bytes packed`: {PACKED}.']
  text += [f'- {result.name}: {note}' for result in results for note in result.notes]

  def picture(figure: Any, file: str, caption: str) -> None:
    if figure is not None:
      plots.save(figure, folder / file)
      text.append(f'![{caption}]({file})\n\n{caption}.')

  tested = {result.name: result.best_step for result in results}
  curves = plots.curves({result.name: result.history for result in results}, tested)
  picture(curves, 'curves.png', 'Learning curves; the training loss includes what the recipe adds to it')
  for result in results:
    file = 'confusion.png' if len(results) == 1 else f'confusion-{_slug(result.name)}.png'
    matrix = np.asarray(result.confusion, np.float64)
    figure = plots.confusion(matrix, result.class_names, result.name) if matrix.size else None
    picture(figure, file, f'Confusion matrix of {result.name} on the test split')
  layers = {result.name: [layer for layer in result.layers if layer.weight] for result in results}
  picture(plots.sparsity(layers), 'sparsity.png', 'Weights that are left, layer by layer')

  for result in results:
    text += _details(result)
  text += ['## Made by', *_provenance(results)]
  path = folder / 'report.md'
  part = folder / 'report.md.part'
  part.write_text('\n\n'.join(text) + '\n', encoding='utf-8')
  os.replace(part, path)  # a run killed here leaves the old report or the new one
  return path


def versions() -> dict[str, str]:
  """Returns the versions that the numbers of a run may depend on."""
  found = {'python': platform.python_version()}
  for name in ('jaxlite', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scikit-learn'):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def machine() -> dict[str, str]:
  """Returns what this process runs on: system, processor, cores, memory, and JAX's devices where JAX is loaded."""
  found = {'system': f'{platform.system()} {platform.release()} {platform.machine()}', 'processor': _processor()}
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  found['cores'] = str(cores)
  with contextlib.suppress(AttributeError, ValueError, OSError):  # no such call on this system
    found['memory'] = f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.1f} GiB'
  if 'jax' in sys.modules:
    devices = sys.modules['jax'].devices()
    found['devices'] = f'{len(devices)} x {devices[0].platform} ({devices[0].device_kind})'
  return found


def _processor() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError:
    lines = []
  named = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return named[0] if named else platform.processor() or 'unknown'


def _aligned(cells: Sequence[Sequence[str]]) -> list[list[str]]:
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    [
      f'{cell:<{width}}' if place == 0 else f'  {cell:>{width}}'
      for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    for row in cells
  ]


def _percent(share: float, digits: int = 2) -> str:
  return f'{100 * share:.{digits}f} %'


def _interval(result: Result) -> str:
  """Wilson's 95 % interval: a few hundred test examples leave the second digit open, and a reader should see it."""
  total = float(np.sum(result.confusion)) if len(result.confusion) else 0.0
  share = result.metrics.get('accuracy', math.nan)
  if total < 1 or not math.isfinite(share):
    return ''
  z = 1.959964
  middle = (share + z * z / (2 * total)) / (1 + z * z / total)
  half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
  return f'{100 * (middle - half):.1f} to {100 * (middle + half):.1f} %'


def _slug(name: str) -> str:
  return re.sub(r'[^\w.-]+', '-', name).strip('-.') or 'run'


def _details(result: Result) -> list[str]:
  text = [f'## {result.name}']
  averages = ('micro', 'macro', 'weighted')
  scores = [
    [label, *(_percent(result.metrics[f'{name}_{average}']) for average in averages)]
    for name, label in (('precision', 'precision'), ('recall', 'recall'), ('f1', 'F1'))
    if all(f'{name}_{average}' in result.metrics for average in averages)
  ]
  if scores:
    text.append(markdown([['', *averages], *scores]))
  if len(result.confusion):
    text.append(markdown(_classes(np.asarray(result.confusion, np.float64), result.class_names)))
  if result.layers:
    named = [
      [
        f'`{layer.path}`',
        f'{layer.size:,}',
        f'{layer.nonzero:,}',
        _percent(1 - layer.nonzero / max(1, layer.size), 1),
        str(layer.bits),
        f'{stored_bytes(layer.size, layer.nonzero, layer.bits, layer.scales):,}',
      ]
      for layer in result.layers
    ]
    text.append(markdown([['parameters', 'values', 'not zero', 'sparsity', 'bits', 'bytes packed'], *named]))
  if result.parts:
    text.append('### What each part did')
    text.append(markdown([['part', 'when', 'what it touched', 'what it could not'], *result.parts]))
  return text if len(text) > 1 else []


def _classes(matrix: np.ndarray, names: Sequence[str], most: int = 20) -> list[list[str]]:
  """A row a class; of more than `most` classes those with the lowest F1."""
  actual, predicted, hits = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
  f1 = 2 * hits / np.maximum(actual + predicted, 1e-300)
  shown = range(len(matrix)) if len(matrix) <= most else np.sort(np.argsort(f1, kind='stable')[:most])
  title = 'class' if len(matrix) <= most else f'class (the {most} lowest F1)'
  body = []
  for index in shown:
    precision, recall = hits[index] / max(predicted[index], 1e-300), hits[index] / max(actual[index], 1e-300)
    name = names[index] if len(names) else str(index)
    body.append([name, f'{actual[index]:g}', _percent(precision), _percent(recall), _percent(f1[index])])
  return [[title, 'examples', 'precision', 'recall', 'F1'], *body]


def _provenance(results: Sequence[Result]) -> list[str]:
  """Command, versions and machine: once where all runs share them."""
  text = []
  for title, facts in (
    ('Command', [result.command for result in results]),
    ('Versions', [_listed(result.versions) for result in results]),
    ('Machine', [_listed(result.machine) for result in results]),
  ):
    shared = len(set(facts)) == 1
    for result, fact in list(zip(results, facts, strict=True))[: 1 if shared else None]:
      if fact:
        text.append(f'{title}{"" if shared else f" of {result.name}"}: {f"`{fact}`" if title == "Command" else fact}')
  return text


def _listed(facts: Mapping[str, str]) -> str:
  return ', '.join(f'{name} {value}' for name, value in facts.items())
