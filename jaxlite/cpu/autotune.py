"""Which form of a site is fastest on this machine: timed once, kept in the user's cache, written down with the run.

A choice moves the last bits of a gradient, so a run keeps its own: what was chosen at its first step stands in its
folder and is read back. What the cache knows is never timed again, so a second run takes what the first one took.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxlite.cpu.kernels import choose as kernels
from jaxlite.cpu.kernels import compiler, direct, onednn, onednn_c
from jaxlite.cpu.site import XLA_FORM, Site
from jaxlite.host.files import read_json, user_cache, write_text
from jaxlite.host.machine import cores, processor_lines

SECONDS = 1.5  # for all sites of a program, compilation included
_SMALL = 20e6  # FLOPs below which no form can gain or lose much: about a quarter of a millisecond
_CLEARLY = 0.9  # of the default's time: what a form must beat, so that noise does not choose
_LARGE = 256 << 20  # bytes of operands and result that a measurement may take beside the run; a default is safe
_RENAMED = {'native': XLA_FORM}  # as tables of jaxlite 0.1 call it
_ROUNDS, _LONG = 4, 0.5  # seconds after which no further round begins: where a form takes long, noise is small


class Table(NamedTuple):
  """What was chosen, and where.

  Attributes:
    choices: the name of a form by the key of its site.
    machine: what the times depend on.
  """

  choices: dict[str, str]
  machine: str


class Chosen(NamedTuple):
  """What a program takes.

  Attributes:
    table: for every site of the program that has a choice.
    why: one line for a log.
  """

  table: Table
  why: str


def choose(
  sites: Iterable[Site], known: Mapping[str, str] | None = None, *, folder: Path | None = None, seconds: float = SECONDS
) -> Chosen:
  """Chooses the form of every site: what is known already, else what the cache knows, else by time.

  The largest sites are timed first; when the time is up, for small ones and for those that would take much memory, the
  shape decides.

  Args:
    sites: of a program, as `replace.sites` finds them.
    known: choices that stand, by key: those of the run that goes on.
    folder: of the cache; None is the user's own.
    seconds: for all measurements together.

  Returns:
    The Chosen.

  >>> choose([]).why
  'rewrites: the step has none'
  """
  path = _file(folder)
  cached = read(path).choices
  choices: dict[str, str] = {}
  timed, ends = 0, time.monotonic() + seconds
  ordered = sorted(sites, key=lambda site: (-site.flops, site.key))
  for site in ordered:
    if site.exact:
      continue
    names = tuple(site.forms) if site.looped and site.default != XLA_FORM else (*site.forms, XLA_FORM)
    found = next((one[site.key] for one in (known or {}, cached) if one.get(site.key) in names), None)
    worth = site.flops >= _SMALL and len(names) > 1 and _bytes(site) <= _LARGE
    if found is None and worth and time.monotonic() < ends:
      found, timed = _fastest(site, names), timed + 1
    choices[site.key] = found or site.default
  if timed:
    _remember(path, choices)
  return Chosen(Table(choices, machine()), _why(ordered, choices, timed))


def settle(path: Path, sites: Iterable[Site], say: Callable[[str], None]) -> dict[str, str]:
  """Chooses for a run: what its file says stands, what is new is chosen and written before it is used.

  Args:
    path: of the run's own table.
    sites: of its step.
    say: is given a line on what was chosen, and one where the file comes from another machine.

  Returns:
    The choices.
  """
  saved = read(path)
  if saved.machine not in ('', machine()):
    say(
      'note: the rewrites for CPU were chosen on another machine, jaxlib or with other kernels: they are kept, others '
      'may be faster'
    )
  sites = list(sites)
  here = {site.key: (*site.forms, XLA_FORM) for site in sites}
  lost = [name for key, name in saved.choices.items() if name not in here.get(key, (XLA_FORM,))]
  if lost:
    names = ', '.join(sorted(set(lost)))
    say(f'note: {len(lost)} operations ran by {names} and do no more: the last bits will differ. {without()}')
  found = choose(sites, saved.choices)
  say(found.why)
  write(path, Table(found.table.choices, saved.machine or found.table.machine))
  return found.table.choices


def read(path: Path) -> Table:
  """Returns a table from a file; an empty one where there is none, or a damaged one."""
  try:
    found = read_json(path)
    choices = {str(key): _RENAMED.get(name, str(name)) for key, name in found['choices'].items()}
    return Table(choices, str(found['machine']))
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return Table({}, '')


def recorded(path: Path) -> dict[str, str]:
  """Returns the choices of a run's table that hold here: without those of kernels that this machine does not have."""
  choices = read(path).choices
  return {key: name for key, name in choices.items() if not kernels.is_kernel(name) or name in kernels.names()}


def write(path: Path, table: Table) -> None:
  """Writes a table whole or not at all."""
  write_text(path, json.dumps(table._asdict(), indent=1))


def machine() -> str:
  """Returns a name for what times depend on: the processor, its count, jaxlib, the kernels there are."""
  about = '|'.join(processor_lines('model name', 'flags', 'Features', 'cpu cores')) or platform.processor()
  parts = (platform.machine(), about, str(cores()), os.environ.get('XLA_FLAGS', ''))
  with_it = '-direct' if compiler.compiler() else ''
  with_it += '' if onednn.missing() else f'-onednn-{onednn_c.version()}'
  return f'jaxlib-{jax.lib.__version__}{with_it}-{hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]}'


def _file(folder: Path | None) -> Path:
  return (user_cache() / 'rewrites' if folder is None else folder) / f'{machine()}.json'


def _remember(path: Path, choices: Mapping[str, str]) -> None:
  """Adds to the cache. Two runs at once may lose each other's lines, never tear the file."""
  with contextlib.suppress(OSError):  # a cache that cannot be written costs the next start its time, no more
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, Table({**choices, **read(path).choices}, machine()))


def _fastest(site: Site, names: Iterable[str]) -> str:
  """Least time of a few, taken in turns: other work on the machine only ever adds."""
  rng = np.random.default_rng(0)
  cpu = jax.devices('cpu')[0]
  drawn = (rng.standard_normal(one.shape, np.float32).astype(one.dtype) for one in site.operands)  # NumPy draws no half
  operands = [jax.device_put(one, cpu) for one in drawn]
  with jax.default_device(cpu):
    programs = {name: jax.jit(_as_read(site, name)).lower(*operands).compile() for name in names}
    times, enough = dict.fromkeys(programs, float('inf')), time.monotonic() + _LONG
    for turn in range(_ROUNDS):
      if turn and time.monotonic() > enough:
        break
      for name, program in programs.items():
        began = time.perf_counter()
        jax.block_until_ready(program(*operands))
        times[name] = min(times[name], time.perf_counter() - began)
  best = min(times, key=lambda name: times[name])
  return best if times[best] < _CLEARLY * times[site.default] else site.default


def _as_read(site: Site, name: str) -> Callable[..., jax.Array]:
  form, read = site.form(name), site.read
  return form if read is None else lambda *operands: read(form(*operands))


def _bytes(site: Site) -> int:
  result = jax.eval_shape(site.xla_form, *site.operands)
  return sum(one.size * one.dtype.itemsize for one in (*site.operands, result))


def _why(sites: list[Site], choices: Mapping[str, str], timed: int) -> str:
  if not sites:
    return 'rewrites: the step has none'
  kinds = collections.Counter((site.kind, choices.get(site.key, site.default)) for site in sites)
  shown = ', '.join(f'{count} {kind} as {name}' for (kind, name), count in sorted(kinds.items()))
  return f'rewrites for CPU: {shown} ({timed} timed now){_left_off(choices.values())}'


def _left_off(names: Iterable[str]) -> str:
  """Which kernels are called, or what would make convolutions faster here and is not there."""
  if any(name.startswith('onednn') for name in names):
    return f'; oneDNN {onednn_c.version()}'
  if any(name.startswith('direct') for name in names):
    return '; kernels compiled on this machine'
  return f'; {without()}' if names and without() else ''


def without() -> str:
  """Returns what kernels are missing here, and why; '' where oneDNN's are there."""
  if not onednn.missing():
    return ''
  if onednn.uncalled():  # then our own kernels are missing for the same reason
    return onednn.missing()
  return '; '.join(filter(None, (onednn.missing(), direct.missing())))
