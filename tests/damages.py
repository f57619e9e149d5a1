"""Damages to the files of a run and of caches: what happens to disks, by hands, and by strangers. From a seed."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

KINDS = ('flip', 'cut', 'empty', 'delete', 'exchange', 'link', 'wrong shape', 'too deep')
# What came later: the generator's order is that of its kinds, so each list has its own.
MORE_KINDS = ('pipe', 'folder', 'zeros', 'grown', 'rewritten', 'repeated')


@dataclasses.dataclass(frozen=True)
class Damage:
  """What is done to one file.

  Attributes:
    kind: one of KINDS.
    name: of the file, below the folder.
    seed: of what is left to chance.
  """

  kind: str
  name: str
  seed: int

  def __str__(self) -> str:
    return f'{self.kind} {self.name} ({self.seed})'


def files(folder: Path) -> list[str]:
  """The files of a folder, in an order of their own."""
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def drawn(folder: Path, count: int, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Damage]:
  """As many damages to the files of a folder, the kinds and files by turns: each kind of each file comes once first."""
  draw = random.Random(seed)
  names = files(folder)
  order = [(kind, name) for kind in kinds for name in names]
  draw.shuffle(order)
  for at in range(count):
    kind, name = order[at % len(order)]
    yield Damage(kind, name, draw.randrange(1 << 30))


def inflict(damage: Damage, folder: Path, aside: Path, other: Path | None = None) -> None:
  """Does it.

  Args:
    damage: what.
    folder: is changed.
    aside: a folder with a file or two that a link may point to: nothing in it may change.
    other: another run's folder, of the same files; half of what is exchanged is exchanged with it.
  """
  draw, path = random.Random(damage.seed), folder / damage.name
  data = path.read_bytes()
  if damage.kind == 'flip':
    bits = bytearray(data or b'\0')
    bits[draw.randrange(len(bits))] ^= 1 << draw.randrange(8)
    path.write_bytes(bits)
  elif damage.kind == 'cut':
    path.write_bytes(data[: draw.randrange(len(data) + 1)])
  elif damage.kind == 'empty':
    path.write_bytes(b'')
  elif damage.kind == 'delete':
    path.unlink()
  elif damage.kind == 'exchange':
    if other is not None and (other / damage.name).exists() and draw.random() < 0.5:
      path.write_bytes((other / damage.name).read_bytes())
      return
    second = folder / draw.choice([name for name in files(folder) if Path(name).suffix == path.suffix])
    path.write_bytes(second.read_bytes())
    second.write_bytes(data)
  elif damage.kind == 'link':
    target = draw.choice(['itself', 'a file', 'nothing', 'a folder', 'zeros', 'a copy'])
    path.unlink()
    (aside / 'precious').write_bytes(b'precious')
    if target == 'a copy':
      (aside / 'copy').write_bytes(data)
    path.symlink_to(
      {
        'itself': path,
        'a file': aside / 'precious',
        'nothing': aside / 'nowhere' / 'at all',
        'a folder': aside,
        'zeros': Path('/dev/zero'),
        'a copy': aside / 'copy',
      }[target]
    )
  elif damage.kind == 'wrong shape':
    path.write_bytes(_misshapen(data, draw))
  elif damage.kind == 'too deep':
    path.write_bytes(draw.choice([b'[' * 100_000, b'{"a":' * 100_000, b'[' * 5_000 + b']' * 5_000]))
  elif damage.kind == 'pipe':  # whoever opens it as a file waits for ever
    path.unlink()
    os.mkfifo(path)
  elif damage.kind == 'folder':
    path.unlink()
    path.mkdir()
    if draw.random() < 0.5:
      (path / 'inside').write_bytes(data)
  elif damage.kind == 'zeros':  # what a power cut leaves: the length was written, the content was not
    start = draw.choice([0, draw.randrange(len(data) + 1)])
    path.write_bytes(data[:start] + bytes(len(data) - start))
  elif damage.kind == 'grown':
    path.write_bytes(data + draw.choice([b'\0', b'\n', b'{}\n', b'garbage', bytes(1 << 20), data]))
  elif damage.kind == 'rewritten':  # by an editor, or on another system
    path.write_bytes(_by_an_editor(data, draw))
  elif damage.kind == 'repeated':  # a line, twice
    lines = data.split(b'\n')
    at = draw.randrange(len(lines))
    path.write_bytes(b'\n'.join([*lines[: at + 1], *lines[at:]]))
  else:
    raise ValueError(damage.kind)


def _by_an_editor(data: bytes, draw: random.Random) -> bytes:
  how = draw.choice(['crlf', 'mark', 'utf-16', 'indented', 'stripped'])
  try:
    text = data.decode()
  except UnicodeDecodeError:
    return data.replace(b'\n', b'\r\n')
  if how == 'indented':
    try:
      return json.dumps(json.loads(text), indent=7, sort_keys=draw.random() < 0.5).encode()
    except ValueError:
      how = 'crlf'
  return {
    'crlf': lambda: text.replace('\n', '\r\n').encode(),
    'mark': lambda: text.encode('utf-8-sig'),
    'utf-16': lambda: text.encode('utf-16'),
    'stripped': lambda: text.strip().encode(),
  }[how]()


_OTHERS = (None, [], {}, '', 'text', -1, 0, 1e999, True, [[]], {'a': {'b': []}}, 10**30)


def _misshapen(data: bytes, draw: random.Random) -> bytes:
  """The same JSON with one value of another kind (of lines one of them); of what is none, some JSON."""
  lines = data.split(b'\n')
  try:
    found, at = json.loads(data), None
  except ValueError:
    at = draw.randrange(len(lines))
    try:
      found = json.loads(lines[at])
    except ValueError:
      return json.dumps(draw.choice(_OTHERS)).encode()
  changed = json.dumps(_with_another(found, draw), indent=1 if at is None else None).encode()
  return changed if at is None else b'\n'.join([*lines[:at], changed, *lines[at + 1 :]])


def _with_another(found: object, draw: random.Random) -> object:
  """One value, anywhere, replaced, or one name left out."""
  if isinstance(found, dict) and found and draw.random() < 0.8:
    name = draw.choice(list(found))
    if draw.random() < 0.2:
      return {key: value for key, value in found.items() if key != name}
    return {**found, name: _with_another(found[name], draw)}
  if isinstance(found, list) and found and draw.random() < 0.8:
    at = draw.randrange(len(found))
    return [*found[:at], _with_another(found[at], draw), *found[at + 1 :]]
  return draw.choice(_OTHERS)


def sealed_anew(path: Path, seed: int) -> bool:
  """Changes one value of a sealed JSON file, as 'wrong shape' does, and its hash with it; False where it is none."""
  found, draw = json.loads(path.read_bytes()), random.Random(seed)
  if not isinstance(found, dict) or 'sha256' not in found:
    return False
  if 'content' in found:  # of a checkpoint
    content = _with_another(found['content'], draw)
    text = json.dumps([found['format'], content], sort_keys=True)
    found = {**found, 'content': content}
  else:
    del found['sha256']
    found = _with_another(found, draw)
    text = json.dumps(found, sort_keys=True)
  if isinstance(found, dict):
    found['sha256'] = hashlib.sha256(text.encode()).hexdigest()
  path.write_text(json.dumps(found))
  return True


def restore(folder: Path, sound: Path) -> None:
  """Makes a folder equal to a sound copy again, and writes only what differs."""
  wanted = {path.relative_to(sound): path for path in sound.rglob('*')}
  for path in sorted(folder.rglob('*'), reverse=True):
    name = path.relative_to(folder)
    if (
      path.is_symlink()
      or not (path.is_dir() or path.is_file())
      or (name not in wanted and path.is_file())
      or (name in wanted and path.is_dir() != wanted[name].is_dir())
    ):
      shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif name not in wanted:
      path.rmdir()
  for name, source in sorted(wanted.items()):
    path = folder / name
    if source.is_dir():
      path.mkdir(exist_ok=True)
    elif not path.exists() or path.read_bytes() != source.read_bytes():
      path.write_bytes(source.read_bytes())
