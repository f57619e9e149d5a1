"""What became of each array when weights were put into a model, as a table that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxlite.errors import counted

_SHOWN = 12


class Row(NamedTuple):
  """One array.

  Attributes:
    path: in the model; '' of what was left out.
    source: its name in the file; '' of what keeps its first value.
    how: what was done: 'as stored', or some of 'renamed by rule', 'by order', 'transposed', 'reshaped', 'converted by
      rule', 'cast'; 'new' and 'left out' say why beside.
    shape: in the file, of a new one in the model.
  """

  path: str
  source: str
  how: str
  shape: tuple[int, ...]


class Report(NamedTuple):
  """What was matched, and how; printed, it is a summary and the rows that are not as stored.

  Attributes:
    where: the file.
    rows: one for each leaf of the model, then one for each array that was left out.
  """

  where: str
  rows: tuple[Row, ...]

  def _having(self, word: str) -> tuple[str, ...]:
    return tuple(row.path or row.source for row in self.rows if word in row.how)

  @property
  def matched(self) -> tuple[str, ...]:
    """Paths that took a value of the file."""
    return tuple(row.path for row in self.rows if row.path and row.source)

  @property
  def new(self) -> tuple[str, ...]:
    """Paths that keep their first values: nothing in the file is for them, or a new head was asked for."""
    return tuple(row.path for row in self.rows if row.path and not row.source)

  @property
  def left_out(self) -> tuple[str, ...]:
    """Names in the file that the model has no place for."""
    return tuple(row.source for row in self.rows if not row.path)

  @property
  def transposed(self) -> tuple[str, ...]:
    """Paths whose axes stood in another order in the file."""
    return self._having('transposed')

  @property
  def reshaped(self) -> tuple[str, ...]:
    """Paths whose axes were split or joined."""
    return self._having('reshaped')

  @property
  def renamed(self) -> tuple[str, ...]:
    """Paths that a rule named."""
    return self._having('by rule')

  @property
  def cast(self) -> tuple[str, ...]:
    """Paths whose dtype was another in the file."""
    return self._having('cast')

  def __str__(self) -> str:
    parts = [('matched', self.matched), ('transposed', self.transposed), ('reshaped', self.reshaped)]
    parts += [('renamed by rule', self.renamed), ('cast', self.cast), ('new', self.new), ('left out', self.left_out)]
    head = f'{self.where}: ' + ', '.join(
      f'{len(found):,} {word}' for word, found in parts if found or word == 'matched'
    )
    lines = [head]
    for word, rows in self._groups():
      lines.append(f'  {word} ({counted(len(rows), "array")})')
      lines += [f'    {row.source or "-"} {list(row.shape)} -> {row.path or "-"}' for row in rows[:_SHOWN]]
      if len(rows) > _SHOWN:
        lines.append(f'    and {len(rows) - _SHOWN:,} more: report.rows')
    return '\n'.join(lines)

  def _groups(self) -> Sequence[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in self.rows:
      groups.setdefault(row.how, []).append(row)
    return list(groups.items())
