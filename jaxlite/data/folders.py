"""What lies in a folder of examples: which files, in which class, in which split. Nothing is opened here.

Hidden files and what systems leave behind are passed over; links are followed, and a circle of them is refused. The
order is that of the names, by code point, so it is the same on every machine.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxlite.errors import counted, nearest
from jaxlite.host.files import expanded

SPLITS = {
  'train': ('train', 'training'),
  'validation': ('val', 'valid', 'validation', 'dev'),
  'test': ('test', 'testing'),
}
_LEFT_BEHIND = frozenset({'thumbs.db', 'desktop.ini', '__macosx', 'lost+found', '@eadir', 'icon\r'})


class Listing(NamedTuple):
  """Files of a folder.

  Attributes:
    root: the folder.
    files: relative paths, '/' between parts, sorted within a split; training first.
    splits: of each file, 'train', 'validation' or 'test'; all 'train' where the folder has no such folders.
    labels: of each file, its class folder; '' where there are none.
    notes: what was passed over.
  """

  root: pathlib.Path
  files: tuple[str, ...]
  splits: tuple[str, ...]
  labels: tuple[str, ...]
  notes: tuple[str, ...] = ()


def list_classes(folder: Any, reads: Callable[[str], bool], what: str) -> Listing:
  """Returns the files of a folder whose folders are classes, or splits of classes.

  Args:
    folder: holds a folder for each class, which may hold others; or folders train, val and test that do so.
    reads: whether a file is an example, by its name.
    what: the examples are called, for errors: 'picture'.

  Raises:
    ValueError: no such folder, examples outside of a class, an empty class, a class that training does not have.
  """
  root = as_folder(folder, what)
  parts, notes, found = split_folders(root), [], []
  for where, part in parts.items():
    folders = [entry for entry in _entries(part) if entry.is_dir()]
    loose = [entry.name for entry in _entries(part) if not entry.is_dir() and reads(entry.name)]
    if loose:
      raise ValueError(
        f'every {what} lies in the folder of its class; {part} holds {counted(len(loose), what)} beside them, such as '
        f'{loose[0]!r}: move each into a class folder, or give labels= (a table of file and label)'
      )
    if not folders:
      raise ValueError(f'a class is a folder of {what}s; {part} has no folder in it: is it the right one?')
    for entry in folders:
      files, other = list_files(part / entry.name, reads)
      notes += [f'{entry.name}/{one}' for one in other]
      if not files:
        told = f'; its {counted(len(other), "file")} are none by their names, such as {other[0]!r}' if other else ''
        raise ValueError(
          f'every class has a {what} at least; {part / entry.name} is empty{told}: fill it, or remove the folder'
        )
      prefix = (part / entry.name).relative_to(root).as_posix()
      found += [(where, f'{prefix}/{one}', entry.name) for one in files]
  _check_classes(root, parts, found)
  told = [_passed_over(root, notes, what)] if notes else []
  return Listing(root, *(tuple(one[place] for one in found) for place in (1, 0, 2)), tuple(told))


def list_all(folder: Any, reads: Callable[[str], bool], what: str) -> Listing:
  """Returns all files of a folder that are examples, whatever folder they lie in, by the splits that it has."""
  root = as_folder(folder, what)
  files, splits, notes = [], [], []
  for where, part in split_folders(root).items():
    found, other = list_files(part, reads)
    if not found:
      raise ValueError(f'a folder of {what}s holds one at least; {part} has none: is it the right one?')
    prefix = '' if part == root else f'{part.name}/'
    files += [f'{prefix}{one}' for one in found]
    splits += [where] * len(found)
    notes += [f'{prefix}{one}' for one in other]
  told = (_passed_over(root, notes, what),) if notes else ()
  return Listing(root, tuple(files), tuple(splits), ('',) * len(files), told)


def as_folder(folder: Any, what: str) -> pathlib.Path:
  """Returns a folder that is there, or raises."""
  root = expanded(folder)
  if not root.is_dir():
    near = ''
    if root.parent.is_dir():
      names = [path.name for path in root.parent.iterdir() if path.is_dir()]
      near = f' (nearest: {nearest(root.name, names)})' if names else ''
    kind = 'a file' if root.is_file() else 'not there'
    raise ValueError(f'{what}s are read from a folder; {root} is {kind}{near}')
  return root


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folders of the splits that a folder has, else {'train': the folder itself}.

  Raises:
    ValueError: splits and something else stand side by side, or one split twice.
  """
  names = {name: split for split, group in SPLITS.items() for name in group}
  folders = [entry.name for entry in _entries(root) if entry.is_dir()]
  there = [name for name in folders if name.lower() in names]
  if not any(names[name.lower()] == 'train' for name in there):
    return {'train': root}  # classes may be called 'test'
  other = [name for name in folders if name not in there]
  if other:
    raise ValueError(
      f'beside a folder of training stand folders of other splits; {root} also has {other[0]!r}: move it elsewhere, '
      f'or name it as one of {", ".join(sorted(names))}'
    )
  found: dict[str, pathlib.Path] = {}
  for split in SPLITS:
    mine = [name for name in there if names[name.lower()] == split]
    if len(mine) > 1:
      raise ValueError(f'each split has one folder; {root} has {" and ".join(mine)} for {split}: join them')
    if mine:
      found[split] = root / mine[0]
  return found


def list_files(folder: pathlib.Path, reads: Callable[[str], bool]) -> tuple[list[str], list[str]]:
  """Returns (examples, other files) below a folder, as relative paths, sorted; hidden ones are in neither."""
  files: list[str] = []
  other: list[str] = []
  for path in _walk(folder, '', ()):
    (files if reads(path.rsplit('/', 1)[-1]) else other).append(path)
  return sorted(files), sorted(other)


def _walk(folder: pathlib.Path, prefix: str, above: Sequence[str]) -> Iterator[str]:
  real = os.path.realpath(folder)
  if real in above:
    raise ValueError(f'links lead in a circle: {folder} is {real}, which it lies in: remove the link')
  for entry in _entries(folder):
    if entry.is_dir():
      yield from _walk(folder / entry.name, f'{prefix}{entry.name}/', (*above, real))
    else:
      yield f'{prefix}{entry.name}'  # a link that leads nowhere is an example that cannot be read


def _entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
  try:
    found = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
  except OSError as error:
    raise ValueError(f'cannot read the folder {folder}: {error.strerror or error}') from None
  return sorted(found, key=lambda entry: entry.name)


def is_hidden(name: str) -> bool:
  """Whether a name is one that a person does not mean.

  >>> is_hidden('.DS_Store'), is_hidden('Thumbs.db'), is_hidden('cat.jpg')
  (True, True, False)
  """
  return name.startswith('.') or name.lower() in _LEFT_BEHIND


def _check_classes(root: pathlib.Path, parts: dict[str, pathlib.Path], found: list[tuple[str, str, str]]) -> None:
  of_train = sorted({label for where, _, label in found if where == 'train'})
  for where in parts:
    for label in sorted({label for split, _, label in found if split == where}):
      if label not in of_train:
        raise ValueError(
          f'training has every class; {parts[where]} has {label!r}, which {parts["train"]} has not '
          f'(nearest: {nearest(label, of_train)})'
        )
  if len(of_train) < 2:
    raise ValueError(f'two classes at least are told apart; {root} has the folder {of_train[0]!r} alone')


def _passed_over(root: pathlib.Path, names: list[str], what: str) -> str:
  shown = ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
  return f'{counted(len(names), "file")} in {root} {"is" if len(names) == 1 else "are"} no {what} by name: {shown}'
