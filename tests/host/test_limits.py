"""Memory and cores: the least that anything allows, read so that nothing in the kernel's tables can stop a run.

A machine is a folder here, as the kernel would show it; limits of a process are set on real ones.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlite.host import groups, limits, machine, tables

MIB = 1 << 20
MEMINFO = 'MemTotal: 8192000 kB\nMemFree: 100 kB\nMemAvailable: 4096000 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n'
STATUS = (
  'Name:\tpython\nVmSize:\t  2048000 kB\nVmExe:\t100 kB\nVmLib:\t900 kB\nVmRSS:\t 204800 kB\nRssFile:\t 1000 kB\n'
  'VmData:\t 409600 kB\n'
)
MOUNTS = {
  1: '31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n'
  '35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n'
  '36 31 0:33 {top} /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n',
  2: '24 1 8:1 / / rw - ext4 /dev/sda rw\n30 24 0:27 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n',
}
OWN = {1: '9:memory:{own}\n4:cpu,cpuacct:{own}\n1:name=systemd:/\n0::/elsewhere\n', 2: '0::{own}\n'}
MEMORY = {1: 'sys/fs/cgroup/memory', 2: 'sys/fs/cgroup'}
CPU = {1: 'sys/fs/cgroup/cpu,cpuacct', 2: 'sys/fs/cgroup'}
LIMIT, USED = {1: 'memory.limit_in_bytes', 2: 'memory.max'}, {1: 'memory.usage_in_bytes', 2: 'memory.current'}


def write(root, files):
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


def linux(root, version=2, own='/', top='/', **files):
  """A machine of 8,000 MiB, 4,000 of which are free, with a process in the control group `own`."""
  tables = {
    'proc/meminfo': MEMINFO,
    'proc/self/status': STATUS,
    'proc/self/cgroup': OWN[version].format(own=own),
    'proc/self/mountinfo': MOUNTS[version].format(top=top),
  }
  write(root, {**tables, **files})
  return root


def at(version, group, **files):
  return {f'{MEMORY[version]}{group.rstrip("/")}/{name}': content for name, content in files.items()}


def test_a_machine_without_limits(tmp_path):
  found = limits.limits(linux(tmp_path))
  assert found[:5] == (8000 * MIB, 4000 * MIB, None, None, 'what the machine has')
  assert found[5:] == ((), 'what no process uses', 8000 * MIB, MIB, 8000 * MIB, 4000 * MIB)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('place', ['/', '/a', '/a/b', '/a/b/c'])
def test_every_group_above_counts(version, place, tmp_path):
  linux(tmp_path, version, own='/a/b/c')
  for group in ('', '/a', '/a/b', '/a/b/c'):
    write(tmp_path, at(version, group, **{LIMIT[version]: 3000 * MIB, USED[version]: 500 * MIB}))
  write(tmp_path, at(version, place, **{LIMIT[version]: 900 * MIB, USED[version]: 500 * MIB}))
  found = limits.limits(tmp_path)
  assert (found.memory, found.free) == (900 * MIB, 400 * MIB)
  assert found.reason == found.binds == f'{LIMIT[version]} of the control group {place}'
  assert not found.warnings


GROUP = st.fixed_dictionaries(
  {'limit': st.none() | st.integers(0, 12_000), 'used': st.integers(0, 9_000), 'dropped': st.integers(0, 500)}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
  version=st.sampled_from([1, 2]),
  chain=st.lists(GROUP, min_size=1, max_size=5),
  available=st.integers(0, 9_000),
  hidden=st.integers(0, 2),
)
def test_it_is_the_least_of_all(version, chain, available, hidden, tmp_path_factory):
  """An oracle in five lines, over chains of groups; a container shows only those below its own top."""
  root = tmp_path_factory.mktemp('machine')
  hidden = min(hidden, len(chain) - 1)
  names = [f'g{level}' for level in range(1, len(chain))]
  top = '/' + '/'.join(names[:hidden])
  linux(root, version, own='/' + '/'.join(names), top=top)
  write(root, {'proc/meminfo': f'MemTotal: {8000 * 1024} kB\nMemAvailable: {available * 1024} kB\n'})
  prefix = {1: 'total_', 2: ''}[version]
  for level, group in enumerate(chain[hidden:]):
    limit = {1: 2**63 - 4096, 2: 'max'}[version] if group['limit'] is None else group['limit'] * MIB
    where = '/' + '/'.join(names[hidden : hidden + level])
    stat = f'{prefix}active_file 0\n{prefix}inactive_file {group["dropped"] * MIB}\n'
    files = {LIMIT[version]: limit, USED[version]: group['used'] * MIB, 'memory.stat': stat}
    write(root, at(version, where, **files))
  shown = [group for group in chain[hidden:] if group['limit'] is not None]
  memory = min([8000, *(group['limit'] for group in shown)])
  rooms = [group['limit'] - max(0, group['used'] - group['dropped']) for group in shown]
  found = limits.limits(root)
  assert found.memory == memory * MIB
  assert found.free == max(0, min([available, memory, *rooms])) * MIB
  assert bool(found.warnings) == any(room <= 0 for room in rooms)


@pytest.mark.parametrize(
  'own, top, shown',
  [
    ('/docker/abc', '/docker/abc', '/'),  # a container that sees the names of its host
    ('/docker/abc/child', '/docker/abc', '/child'),
    ('/', '/', '/'),  # one with a namespace of its own
    ('/../../other', '/', '/'),  # a process that was put in from outside
    ('/', '/docker/abc', '/'),
    ('/kubepods/pod1/c', '/', '/kubepods'),  # what is below is not shown
    ('/gone (deleted)', '/', '/'),
    ('/with space', '/with\\040space', '/'),
  ],
)
def test_a_container_shows_its_top(own, top, shown, tmp_path):
  linux(tmp_path, 2, own=own, top=top)
  write(tmp_path, at(2, shown, **{'memory.max': 700 * MIB, 'memory.current': 100 * MIB}))
  found = limits.limits(tmp_path)
  assert (found.memory, found.free) == (700 * MIB, 600 * MIB)
  assert str(Path(shown)) in found.reason


def test_a_group_of_another_container_does_not_count(tmp_path):
  linux(tmp_path, 2, own='/a', top='/docker/abc')
  write(tmp_path, at(2, '/a', **{'memory.max': MIB, 'memory.current': 0}))
  assert limits.limits(tmp_path).memory == 8000 * MIB


def test_version_1_tells_of_groups_that_are_not_shown(tmp_path):
  linux(tmp_path, 1, own='/docker/abc', top='/docker/abc')
  stat = f'total_inactive_file 0\nhierarchical_memory_limit {600 * MIB}\nhierarchical_memsw_limit {2**63 - 4096}\n'
  files = {LIMIT[1]: 2**63 - 4096, USED[1]: 100 * MIB, 'memory.stat': stat}
  write(tmp_path, at(1, '/', **files))
  found = limits.limits(tmp_path)
  assert (found.memory, found.free, found.reason) == (600 * MIB, 500 * MIB, 'a control group above /')


def test_a_group_of_version_1_that_does_not_hand_down_its_limit(tmp_path):
  linux(tmp_path, 1, own='/a/b')
  write(tmp_path, at(1, '/a', **{LIMIT[1]: MIB, USED[1]: MIB, 'memory.use_hierarchy': '0\n'}))
  write(tmp_path, at(1, '/a/b', **{LIMIT[1]: 800 * MIB, USED[1]: MIB, 'memory.use_hierarchy': '0\n'}))
  assert limits.limits(tmp_path).memory == 800 * MIB


def test_what_slows_a_group_down_is_a_limit_too(tmp_path):
  linux(tmp_path, own='/a')
  files = {'memory.high': 300 * MIB, 'memory.max': 400 * MIB, 'memory.current': 50 * MIB}
  write(tmp_path, at(2, '/a', **files))
  found = limits.limits(tmp_path)
  assert (found.memory, found.free) == (300 * MIB, 250 * MIB)
  assert found.reason == 'memory.high of the control group /a, beyond which the kernel slows it down'


def test_files_that_the_kernel_can_drop_are_free_but_not_our_own_code(tmp_path):
  linux(tmp_path, own='/a')
  stat = f'inactive_file {200 * MIB}\nactive_file {100 * MIB}\nfile {999 * MIB}\n'
  write(tmp_path, at(2, '/a', **{'memory.max': 1000 * MIB, 'memory.current': 900 * MIB, 'memory.stat': stat}))
  assert limits.limits(tmp_path).free == (100 + 200 + 100) * MIB - 1000 * 1024  # RssFile


def test_swap_is_told_apart(tmp_path):
  linux(tmp_path, own='/a')
  files = {'memory.max': 500 * MIB, 'memory.current': 100 * MIB, 'memory.swap.max': 600, 'memory.swap.current': 100}
  write(tmp_path, at(2, '/a', **files))
  found = limits.limits(tmp_path)
  assert (found.free, found.swap) == (400 * MIB, 500)


def test_a_limit_below_what_is_used_already(tmp_path):
  linux(tmp_path, own='/a')
  write(tmp_path, at(2, '/a', **{'memory.max': 100 * MIB, 'memory.current': 900 * MIB}))
  found = limits.limits(tmp_path)
  assert (found.memory, found.free) == (100 * MIB, 0)
  assert found.warnings == (
    'memory.max of the control group /a allows 100 MiB, and its processes use that much already',
  )


def test_limits_of_the_process(tmp_path):
  table = 'Limit  Soft Limit  Hard Limit  Units\nMax data size  629145600  unlimited  bytes\n'
  table += 'Max address space  {} unlimited bytes\n'
  linux(tmp_path, **{'proc/self/limits': table.format('unlimited')})
  found = limits.limits(tmp_path)
  assert (found.data_segment, found.address_space) == (600 * MIB, None)
  assert (found.memory, found.free, found.reason) == (600 * MIB, 200 * MIB, '`ulimit -d`')
  assert (found.resident_memory, found.resident_free) == (8000 * MIB, 4000 * MIB)
  write(tmp_path, {'proc/self/limits': table.format(1000 * MIB)})
  found = limits.limits(tmp_path)
  assert (found.address_space, found.free, found.binds) == (1000 * MIB, 0, '`ulimit -v`')
  assert found.warnings == ('`ulimit -v` allows 1000 MiB, and this process has that much already',)


def test_a_kernel_that_promises_no_more_than_it_has(tmp_path):
  linux(tmp_path, **{'proc/sys/vm/overcommit_memory': '2\n'})
  write(tmp_path, {'proc/meminfo': f'{MEMINFO}CommitLimit: 3072000 kB\nCommitted_AS: 2048000 kB\n'})
  found = limits.limits(tmp_path)
  assert (found.memory, found.free) == (3000 * MIB, 1000 * MIB)
  assert 'overcommit_memory' in found.binds


def test_old_kernels_tell_it_by_parts(tmp_path):
  linux(tmp_path)
  write(
    tmp_path, {'proc/meminfo': 'MemTotal: 8000 kB\nMemFree: 1000 kB\nBuffers: 1 kB\nCached: 500 kB\nShmem: 101 kB\n'}
  )
  assert limits.limits(tmp_path).free == 1400 * 1024


def test_a_system_that_tells_nothing(tmp_path):
  found = limits.limits(tmp_path)
  assert (found.memory, found.free) == (0, 0)
  assert found.warnings == ('this system does not tell how much memory it has',)
  assert limits.usable_cores(tmp_path).usable == limits.allowed_cores()


def test_a_system_without_kernel_tables_still_says_what_it_has(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, '_SYSTEM', tmp_path)  # what it is asked then is the C library
  found = limits.limits(tmp_path)
  assert found.memory == found.free == os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert found.warnings == (
    'this system does not tell how much memory other processes use: all but our own counts as free',
  )


@pytest.mark.parametrize('version', [1, 2])
def test_a_group_that_is_not_shown_is_a_warning(version, tmp_path):
  linux(tmp_path, version, own='/batch/job7')
  write(tmp_path, {'proc/self/mountinfo': '24 1 8:1 / / rw - ext4 /dev/sda rw\n'})
  found = limits.limits(tmp_path)
  assert found.memory == 8000 * MIB
  assert found.warnings == ('the control group /batch/job7 is not shown here: what it allows is not known',)


MESS = st.one_of(
  st.binary(max_size=80),
  st.sampled_from(
    ['', 'max', '-1', '0', '9' * 400, 'MemTotal: x kB', ':::', ' - cgroup2', '0::/../..', '0::/a\n0::/b']
  ),
  st.text(max_size=60),
)
FILES = [
  *('proc/meminfo', 'proc/self/status', 'proc/self/cgroup', 'proc/self/mountinfo', 'proc/self/limits'),
  *('sys/fs/cgroup/memory.max', 'sys/fs/cgroup/memory.stat', 'sys/fs/cgroup/memory.current', 'sys/fs/cgroup/cpu.max'),
  *('sys/fs/cgroup/memory/memory.limit_in_bytes', 'sys/fs/cgroup/memory.high', 'proc/sys/vm/overcommit_memory'),
]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mess=st.dictionaries(st.sampled_from(FILES), MESS))
def test_garbage_in_the_tables_stops_nothing(mess, tmp_path_factory):
  root = tmp_path_factory.mktemp('machine')
  linux(root)
  write(
    root,
    {name: content.encode(errors='replace') if isinstance(content, str) else content for name, content in mess.items()},
  )
  found = limits.limits(root)
  assert 0 <= found.free <= found.memory
  assert found.memory > 0 or found.warnings or found.reason
  assert 0 < limits.usable_cores(root).usable <= limits.allowed_cores()


def test_tables_that_are_folders_pipes_or_forbidden_stop_nothing(tmp_path):
  linux(tmp_path)
  (tmp_path / 'proc/meminfo').unlink()
  os.mkfifo(tmp_path / 'proc/meminfo')  # reading it would wait for ever
  (tmp_path / 'sys/fs/cgroup/memory.max').mkdir(parents=True)
  (tmp_path / 'proc/self/status').chmod(0)
  assert limits.limits(tmp_path).memory == 0
  assert tables.text(tmp_path / 'proc/meminfo') is None


@pytest.mark.parametrize(
  'own', ['/' + 'x' * 300, '/a\0b', '/' + '/'.join('x' * 3000), '/a/../../../etc', '/ ', '/é/' * 50]
)
def test_a_name_that_is_none_stops_nothing(own, tmp_path):
  linux(tmp_path, own=own)
  write(tmp_path, at(2, '', **{'memory.max': 700 * MIB, 'memory.current': 100 * MIB}))
  assert limits.limits(tmp_path).free == 600 * MIB
  assert limits.usable_cores(tmp_path).usable == limits.allowed_cores()


@pytest.mark.parametrize(
  'version, files, usable',
  [
    (2, {'': 'max 100000', '/a': '50000 100000', '/a/b': 'max 100000'}, 0.5),
    (2, {'/a': '50000 100000', '/a/b': '20000 50000'}, 0.4),
    (2, {'/a/b': '25000'}, 0.25),
    (2, {'/a/b': '10000000 100000'}, None),
    (2, {'/a/b': 'max'}, None),
    (2, {'/a/b': '5 0'}, None),
    (1, {'/a': ('30000', '100000'), '/a/b': ('-1', '100000')}, 0.3),
    (1, {'/a': ('-1', '100000')}, None),
  ],
)
def test_a_quota_takes_cores_away(version, files, usable, tmp_path):
  linux(tmp_path, version, own='/a/b')
  for group, content in files.items():
    if version == 2:
      write(tmp_path, {f'{CPU[2]}{group}/cpu.max': content})
    else:
      quota, period = content
      write(tmp_path, {f'{CPU[1]}{group}/cpu.cfs_quota_us': quota, f'{CPU[1]}{group}/cpu.cfs_period_us': period})
  found = limits.usable_cores(tmp_path)
  assert found.usable == (usable or found.allowed)
  assert ('quota' in found.reason or 'cpu.max' in found.reason) == (usable is not None)


LIMITED = """
import mmap, resource, sys
import numpy
from jaxlite.host.limits import limits
name, size = sys.argv[1], int(sys.argv[2])
resource.setrlimit(getattr(resource, name), (size, size))
found = limits()
def takes(share):
  try:
    return len(mmap.mmap(-1, int(share * found.free), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) > 0
  except (OSError, MemoryError):
    return False
print(takes(0.9), takes(1.1), found.reason, found.data_segment, found.address_space)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='what the limits count is told by Linux')
@pytest.mark.parametrize('name, option', [('RLIMIT_DATA', '-d'), ('RLIMIT_AS', '-v')])
def test_under_a_real_limit_the_room_is_what_can_be_taken(name, option):
  command = [sys.executable, '-c', LIMITED, name, str(1500 * MIB)]
  done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
  data, space = (1500 * MIB, None) if option == '-d' else (None, 1500 * MIB)
  assert done.stdout.split('\n')[0] == f'True False `ulimit {option}` {data} {space}'


def test_a_limit_that_is_used_up_already_still_answers():
  program = 'import resource; resource.setrlimit(resource.RLIMIT_DATA, (1, 1))\n'
  program = f'from jaxlite.host.limits import limits\n{program}found = limits()\nprint(found.free, *found.warnings)'
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True, timeout=120)
  assert done.stdout.strip() == '0 `ulimit -d` allows 0 MiB, and this process has that much already'


def test_the_machines_that_are_not_linux():
  """What macOS prints, in the form of its own manual."""
  table = (
    'Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:                               12345.\n'
    'Pages active:                            200000.\nPages inactive:                          100000.\n'
  )
  assert limits.darwin_available(table) == (12345 + 100000) * 16384
  assert limits.darwin_available('no such thing') is None
  assert limits.darwin_swap('vm.swapusage: total = 3072.00M  used = 2000.50M  free = 1071.50M  (encrypted)') == int(
    1071.5 * MIB
  )
  assert limits.darwin_swap('') == 0


def test_this_machine_is_told_alike_from_all_places():
  found = limits.limits()
  assert 0 < machine.available() <= found.physical
  assert limits.usable_cores().allowed == machine.cores()
  assert all(group.folder.is_dir() for group in groups.groups('memory'))
