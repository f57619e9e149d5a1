"""Control groups: what the one that this process is in, and each one above it, lets it use (versions 1 and 2).

A container, a batch system or systemd puts a process into a group, and the least of its limits and of those above it
counts. Which group that is stands in /proc/self/cgroup, and where its files lie in /proc/self/mountinfo: in a container
the first may name a place that the second does not show, and then the top of what is shown is the nearest there is.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import NamedTuple

from jaxlite.host.tables import counts, number, text


class Group(NamedTuple):
  """A control group's folder.

  Attributes:
    version: 1 or 2.
    folder: where its files lie.
    name: as it is shown inside the mount: '/', '/user.slice/...'.
    own: whether the process itself is in it, and not in one below.
  """

  version: int
  folder: Path
  name: str
  own: bool


class MemoryLimit(NamedTuple):
  """One limit of one control group.

  Attributes:
    limit: bytes.
    room: bytes that its processes may still take together: what the kernel can drop at once is free.
    swap: bytes that it may still swap out; None where it does not say.
    what: the limit in words.
  """

  limit: int
  room: int
  swap: int | None
  what: str


def groups(controller: str, root: Path = Path('/')) -> list[Group]:
  """Returns the control groups that this process is in: its own first, then each one above; of every hierarchy.

  Args:
    controller: 'memory' or 'cpu'.
    root: where the kernel's tables lie.
  """
  found = []
  own = _own(controller, root)
  for version in (2, 1):
    chains = [
      _chain(_folder(root, point), _inside(top, own.get(version, '/')))
      for point, top in _mounts(controller, version, root)
    ]
    for place, (folder, name) in enumerate(max(chains, key=len, default=[])):
      found.append(Group(version, folder, name, place == 0))
  return found


def hidden(controller: str, root: Path = Path('/')) -> str | None:
  """Returns the name of this process's control group where its files are not shown; None where they are.

  Args:
    controller: 'memory' or 'cpu'.
    root: where the kernel's tables lie.
  """
  own = _own(controller, root)
  version = min(own, default=0)  # version 1 names its controllers; what it does not name is in version 2
  shown = own and any(group.version == version for group in groups(controller, root))
  return None if shown or own.get(version, '/') == '/' else own[version]


def memory_limits(root: Path = Path('/'), files: int = 0, resident: int = 0) -> list[MemoryLimit]:
  """Returns every limit on memory of the groups that this process is in.

  Args:
    root: where the kernel's tables lie.
    files: bytes of files (code above all) that this process has mapped and uses: the kernel could drop them, but they
      would be read again and again.
    resident: bytes that this process has in use, for a group that does not tell its own.
  """
  found = []
  for group in groups('memory', root):
    read = _version_2 if group.version == 2 else _version_1
    found += read(group, files, resident)
  return found


def quota(root: Path = Path('/')) -> tuple[float, str] | None:
  """Returns the least share of the processor, in cores, that the groups of this process give, and whose it is.

  Args:
    root: where the kernel's tables lie.
  """
  found = []
  for group in groups('cpu', root):
    if group.version == 2:
      words = (text(group.folder / 'cpu.max') or '').split()
      most, period = number(words[0] if words else None), number(words[1] if len(words) > 1 else '100000')
      file = 'cpu.max'
    else:
      most = number(text(group.folder / 'cpu.cfs_quota_us'))
      period = number(text(group.folder / 'cpu.cfs_period_us'))
      file = 'cpu.cfs_quota_us'
    if most and period:
      found.append((most / period, f'{file} of the control group {group.name}'))
  return min(found, default=None)


def _version_2(group: Group, files: int, resident: int) -> list[MemoryLimit]:
  folder = group.folder
  used = _used(folder / 'memory.current', counts(folder / 'memory.stat'), '', files, resident)
  swap = number(text(folder / 'memory.swap.max'))
  if swap is not None:
    swap = max(0, swap - (number(text(folder / 'memory.swap.current')) or 0))
  found = []
  for file, effect in (('memory.max', ''), ('memory.high', ', beyond which the kernel slows it down')):
    limit = number(text(folder / file))
    if limit is not None:
      found.append(MemoryLimit(limit, limit - used, swap, f'{file} of the control group {group.name}{effect}'))
  return found


def _version_1(group: Group, files: int, resident: int) -> list[MemoryLimit]:
  folder, found = group.folder, []
  if not group.own and (text(folder / 'memory.use_hierarchy') or '1').strip() == '0':
    return []  # its limit is for its own processes only
  stat = counts(folder / 'memory.stat')
  used = _used(folder / 'memory.usage_in_bytes', stat, 'total_', files, resident)
  limit = number(text(folder / 'memory.limit_in_bytes'))
  both = number(text(folder / 'memory.memsw.limit_in_bytes'))
  swap = None
  if both is not None and limit is not None:
    swap = max(0, both - limit)
  if limit is not None:
    what = f'memory.limit_in_bytes of the control group {group.name}'
    found.append(MemoryLimit(limit, limit - used, swap, what))
  above = number(str(stat.get('hierarchical_memory_limit', '')))
  if above is not None and (limit is None or above < limit):  # a container does not show the groups above its own
    found.append(MemoryLimit(above, above - used, swap, f'a control group above {group.name}'))
  return found


def _used(current: Path, stat: dict[str, int], prefix: str, files: int, resident: int) -> int:
  """What a group has in use that the kernel cannot drop without harm."""
  used = number(text(current))
  if used is None:
    return resident
  inactive, active = (stat.get(f'{prefix}{name}_file', 0) for name in ('inactive', 'active'))
  return max(0, used - inactive - max(0, active - files))


def _own(controller: str, root: Path) -> dict[int, str]:
  """Where /proc/self/cgroup puts this process, by version of the hierarchy."""
  found = {}
  for line in (text(root / 'proc/self/cgroup') or '').splitlines():
    parts = line.split(':', 2)
    if len(parts) == 3:
      hierarchy, controllers, path = parts
      path = path.removesuffix(' (deleted)')
      if controller in controllers.split(','):
        found[1] = path
      elif hierarchy == '0' and not controllers:
        found[2] = path
  return found


def _mounts(controller: str, version: int, root: Path) -> list[tuple[str, str]]:
  """Where a hierarchy is mounted: pairs of the mount point and the group that is shown there as its top."""
  table = text(root / 'proc/self/mountinfo')
  if table is None:  # where systems put them
    point = '/sys/fs/cgroup' if version == 2 else f'/sys/fs/cgroup/{controller}'
    return [(point, '/')]
  found = []
  for line in table.splitlines():
    left, _, right = line.partition(' - ')
    before, after = left.split(), right.split()
    if len(before) < 5 or not after:
      continue
    options = after[-1].split(',')
    if after[0] == 'cgroup2' if version == 2 else after[0] == 'cgroup' and controller in options:
      found.append((_plain(before[4]), _plain(before[3])))
  return found


def _plain(word: str) -> str:
  """A path of the table of mounts, in which a space is written as its number."""
  return re.sub(r'\\([0-7]{3})', lambda match: chr(int(match[1], 8)), word)


def _inside(top: str, own: str) -> tuple[str, ...]:
  """The way from the top of what is mounted to this process's group, as far as it is shown."""
  own, top = posixpath.normpath(own), posixpath.normpath(top)
  if any('..' in path.split('/') for path in (own, top)):  # outside of what a container is shown
    return ()
  if top != '/':
    if own != top and not own.startswith(f'{top}/'):
      return ()
    own = own[len(top) :]
  return tuple(part for part in own.split('/') if part)


def _chain(mount: Path, inside: tuple[str, ...]) -> list[tuple[Path, str]]:
  """The folders on that way, the deepest first, with their names. A group may be gone before its process."""
  found = [(mount, '/')]
  for count, part in enumerate(inside, 1):
    found.append((found[-1][0] / part, '/' + '/'.join(inside[:count])))
    if not os.path.isdir(found[-1][0]):
      found.pop()
      break
  return found[::-1] if os.path.isdir(mount) else []


def _folder(root: Path, point: str) -> Path:
  return root.joinpath(*(part for part in point.split('/') if part not in ('', '.', '..')))
