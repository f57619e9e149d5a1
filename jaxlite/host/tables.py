"""The kernel's tables, read so that nothing in them can stop a run: what is missing or garbage is not told."""

from __future__ import annotations

from pathlib import Path

from jaxlite.host.files import read_file

UNLIMITED = 1 << 60  # version 1 of control groups writes "no limit" as a number near 2^63


def text(path: Path) -> str | None:
  """Returns what a table says; None where it cannot be read."""
  try:
    return read_file(path).decode(errors='replace')
  except (OSError, ValueError):
    return None


def number(words: str | None) -> int | None:
  """Returns the whole number, at least 0, that a text begins with; None where it is another word, or no limit.

  >>> number('4096 bytes'), number('max'), number('-1'), number(''), number(None)
  (4096, None, None, None, None)
  """
  first = (words or '').split(maxsplit=1)[:1]
  if not first or not (first[0].isascii() and first[0].isdigit()) or len(first[0]) > 20:
    return None
  found = int(first[0])
  return found if found < UNLIMITED else None


def counts(path: Path) -> dict[str, int]:
  """Returns the numbers of a table by the words before them ('MemTotal:   8 kB', 'inactive_file 4096').

  A unit of kB is multiplied out; lines of another form are left out.
  """
  found: dict[str, int] = {}
  for line in (text(path) or '').splitlines():
    name, _, rest = line.partition(':') if ':' in line else line.partition(' ')
    value = number(rest)
    if value is not None:
      found[name.strip()] = value * 1024 if rest.split()[1:2] == ['kB'] else value
  return found


def kibibytes(path: Path, name: str) -> int:
  """Returns one line of a table, in bytes; 0 where there is none, so that memory is spared."""
  return counts(path).get(name, 0)
