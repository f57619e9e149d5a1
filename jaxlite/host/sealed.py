"""JSON files that answer for a run, each with the hash of its own content: one flipped digit is no longer believed.

They bear the id of their run as well, so that those of two runs that are exchanged are told apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from jaxlite.host.files import parsed_json, read_file, write_text

_SEAL = 'sha256'
RUN = 'run'  # the name of a run's id in what it writes: two runs' files look alike


class Damaged(ValueError):  # noqa: N818  (says what is damaged; whoever reads the file says the way out)
  """A file is missing, is no JSON of ours, or is not as it was written."""


def sealed_text(content: Mapping[str, Any], *, indent: int | None = 1) -> str:
  """Returns JSON text of a dict and of its own hash; `unsealed` reads it.

  Args:
    content: JSON values.
    indent: of its lines; None writes one.

  >>> unsealed(sealed_text({'accuracy': 0.5}))
  {'accuracy': 0.5}
  """
  plain = json.loads(json.dumps(content))
  separators = (',', ':') if indent is None else None
  return json.dumps({**plain, _SEAL: _hash(plain)}, indent=indent, separators=separators) + '\n'


def unsealed(text: str | bytes) -> dict[str, Any]:
  """Returns the dict in a text that `sealed_text` made. One without a hash, of an older version, is taken as it is.

  Raises:
    Damaged: it is not as it was written.

  >>> unsealed(sealed_text({'accuracy': 0.5}).replace('0.5', '0.9'))
  Traceback (most recent call last):
    ...
  jaxlite.host.sealed.Damaged: it has another hash than was written
  """
  try:
    found = parsed_json(text)
  except ValueError:
    raise Damaged('it is no JSON') from None
  if not isinstance(found, dict):
    raise Damaged(f'it holds a {type(found).__name__} where a table of names belongs')
  seal = found.pop(_SEAL, None)
  if seal is None and found.get(RUN):
    raise Damaged('its own hash is missing')
  if seal is not None and seal != _hash(found):
    raise Damaged('it has another hash than was written')
  return found


def write_sealed(path: str | os.PathLike[str], content: Mapping[str, Any], *, indent: int | None = 1) -> None:
  """Writes a dict as a sealed JSON file, whole or not at all."""
  write_text(path, sealed_text(content, indent=indent))


def check_run(content: Mapping[str, Any], run: str | None) -> None:
  """Raises Damaged where the id of the run that wrote something is another.

  Args:
    content: what was written, its id under `RUN`; '' or none in files of older versions.
    run: the id that it should have; None: any.
  """
  if run is not None and content.get(RUN, '') != run:
    raise Damaged('it is of another run')


def read_sealed(path: str | os.PathLike[str], run: str | None = None) -> dict[str, Any]:
  """Returns what `write_sealed` wrote.

  Args:
    path: of the file.
    run: the id of the run that it must be of; None: of any.

  Raises:
    Damaged: it is missing, not as it was written, or of another run.
  """
  try:
    data = read_file(path)
  except OSError as error:
    raise Damaged(f'it cannot be read ({error.strerror or error})') from None
  found = unsealed(data)
  check_run(found, run)
  return found


def _hash(plain: Any) -> str:
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
