"""Files: written whole or not at all, and where a user keeps what may be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def write_text(path: Path, text: str) -> None:
  """Writes a small file so that a kill leaves the old one or the new one."""
  part = path.with_name(f'.{path.name}.part')
  part.write_text(text)
  os.replace(part, path)


def user_cache() -> Path:
  """Returns jaxlite's folder among the user's caches, where the system keeps such things."""
  if sys.platform == 'darwin':
    base = Path('~/Library/Caches')
  elif sys.platform == 'win32':
    base = Path(os.environ.get('LOCALAPPDATA', '~/AppData/Local'))
  else:
    base = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  return base.expanduser() / 'jaxlite' / 'programs'
