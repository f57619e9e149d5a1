"""What costs more as a program or its data grow, in one table.

  python experiments/bench/growth.py [--short]

Joins `growth_programs.py` (depth, leaves; beside plain JAX) and `growth_data.py` (classes, long records, checkpoints,
splits). Each row is measured in a fresh process; seconds are of processor time, which other work on the machine
disturbs little.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Any

PARTS = ('growth_programs', 'growth_data')


def rows(short: bool = False) -> Iterator[dict[str, Any]]:
  """Yields the rows of both parts; of one that is not there, none, and a line says so."""
  for name in PARTS:
    try:
      part = importlib.import_module(name)
    except ModuleNotFoundError as error:
      if error.name != name:
        raise
      print(f'{name}.py is not there: its rows are left out', flush=True)
      continue
    yield from part.rows(short)


def main() -> None:
  """Prints the table, a row as soon as it is measured."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--short', action='store_true', help='the smallest sizes of each')
  args = parser.parse_args()
  print(f'{"what":36} {"size":>10}  figures')
  for row in rows(args.short):
    what, size = row.pop('what'), row.pop('size')
    figures = '  '.join(f'{name} {value:,}' for name, value in row.items() if value is not None)
    print(f'{what:36} {size:>10,}  {figures}', flush=True)


if __name__ == '__main__':
  main()
