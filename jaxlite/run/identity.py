"""What a run runs: the program that its code and config make, kept when it begins and compared when it goes on.

The name of a recipe or a model says nothing of what stands in its body, and a config only what its fields hold. So a
run keeps the canonical text of its step, of its forward as evaluated and of its first state (`graph.canonical`) in
`step.txt`, and their hash in every checkpoint. On a resume, or when a finished folder is asked again, the code of
now is traced with the config that the run began with; what it makes is the same, or another run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import checkpoint
from jaxlite.config.serialize import to_dict
from jaxlite.errors import ConfigError
from jaxlite.graph import canonical
from jaxlite.host import machine
from jaxlite.host.files import read_file, write_text
from jaxlite.host.gc_pause import paused
from jaxlite.run.setup import Setup

FILE = 'step.txt'  # in a run's folder
_TRACERS = (
  'jax',
  'flax',
  'optax',
  'jaxlite',
  'equinox',
  'dm-haiku',
)  # whose other version may trace the same code anew
_FLAGS = (  # of JAX, that other equations or other draws come of
  'jax_enable_x64',
  'jax_default_prng_impl',
  'jax_threefry_partitionable',
  'jax_default_matmul_precision',
  'jax_numpy_dtype_promotion',
  'jax_enable_custom_prng',
  'jax_explicit_x64_dtypes',
)
_PARTS = ('the step', 'the forward as evaluated', 'the first state')
_TITLE = '== '
_HASHES = re.compile(r'[#@][0-9a-f]+')  # of captured arrays, and of the bodies that hold them


class Identity(NamedTuple):
  """What a run is known by.

  Attributes:
    text: of its programs, one section each.
    began: what every checkpoint holds of it, as JSON: the config, versions, flags of JAX, what is known of the data,
      and a hash of `text` and of the first state's equations.
  """

  text: str
  began: dict[str, Any]


@paused()
def identify(setup: Setup) -> Identity:
  """Traces what a setup runs; the step is then not traced again to be compiled."""
  step, evaluation = setup.train.programs.jaxpr(setup.abstract, setup.first_batch)
  texts = dict(zip(_PARTS, map(canonical.text, (step, evaluation, setup.began)), strict=True))
  began = {
    'config': to_dict(setup.config),
    'versions': {name: version for name, version in machine.versions().items() if name in _TRACERS},
    'flags': {flag: str(jax.config.values[flag]) for flag in _FLAGS if flag in jax.config.values},
    'data': _of_data(setup),
    'programs': {part: _hash(_comparable(part, text)) for part, text in texts.items()},
    'values': _hash(texts[_PARTS[2]]),
  }
  return Identity('\n'.join(f'{_TITLE}{part}\n{text}' for part, text in texts.items()) + '\n', began)


def check(folder: Path, began: dict[str, Any], again: Identity, say: Callable[[str], None]) -> bool:
  """Makes sure that the code and the data of now are those that a run began with.

  Args:
    folder: the run's.
    began: of its newest checkpoint.
    again: of now, made with the config that the run began with.
    say: is given a line on what may differ and does.

  Returns:
    Whether the text in the run's folder is to be written anew.

  Raises:
    ConfigError: another program, or other data; tells which equations differ.
  """
  way_out = 'take the change back, give another workdir, or move the run aside with fresh=True'
  flags = began.get('flags', {})
  turned = [
    f'{name} was {flags[name]}, now {now}' for name, now in again.began['flags'].items() if flags.get(name, now) != now
  ]
  if turned:
    way_out = f"{'; '.join(turned)}: set JAX's flags as they were, or {way_out}"
  other = [
    f'{name}: {before}, now {again.began["data"].get(name)}'
    for name, before in began['data'].items()
    if again.began['data'].get(name) != before
  ]
  if other:
    raise ConfigError(
      f'the data differ from those that the run in {folder} began with ({"; ".join(other)}): {way_out} (data that are '
      'drawn anew at each start need a seed)'
    )
  differ = [part for part in _PARTS if began['programs'].get(part) != again.began['programs'][part]]
  if differ:
    newer = [
      f'{name} {began["versions"].get(name, "none")}, now {again.began["versions"].get(name, "none")}'
      for name in _TRACERS
      if began['versions'].get(name) != again.began['versions'].get(name)
    ]
    if newer:
      say(f'note: {differ[0]} is traced to other equations by other versions ({"; ".join(newer)}): recorded anew')
      return True
    raise ConfigError(f'{folder} holds a run of another program: {_shown(folder, began, again, differ[0])}: {way_out}')
  if began['values'] != again.began['values']:
    say(
      'note: what this run started from (first weights, a teacher) has other values now than when it began: it keeps '
      'its own'
    )
    return False
  kept = _sections(folder)
  return any(_hash(_comparable(part, kept.get(part, ''))) != began['programs'][part] for part in _PARTS)


def write(folder: Path, identity: Identity) -> None:
  """Keeps the text of a run's programs in its folder."""
  write_text(folder / FILE, identity.text)


def _shown(folder: Path, began: dict[str, Any], again: Identity, part: str) -> str:
  before = _sections(folder)
  if part not in before or _hash(_comparable(part, before[part])) != began['programs'].get(part):
    return f'{part} has other equations ({FILE}, which would tell them, is missing or damaged)'
  now = _section(again.text)[part]
  lines = canonical.differences(_comparable(part, before[part]), _comparable(part, now))
  return f'in {part}, {"; ".join(lines)}'


def _sections(folder: Path) -> dict[str, str]:
  try:
    return _section(read_file(folder / FILE).decode())
  except (OSError, ValueError):
    return {}


def _section(text: str) -> dict[str, str]:
  found = {}
  for section in ('\n' + text).split(f'\n{_TITLE}')[1:]:
    part, _, body = section.partition('\n')
    found[part] = body.rstrip('\n')
  return found


def _comparable(part: str, text: str) -> str:
  """The first state's equations without its values: a run goes on from its own, whatever it would start from now."""
  return _HASHES.sub('_', text) if part == _PARTS[2] else text


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _of_data(setup: Setup) -> dict[str, Any]:
  """What is told of the data where they differ; most telling first."""
  data = setup.data
  return {
    'examples': [len(split.labels) for split in (data.train, data.validation, data.test) if hasattr(split, 'labels')],
    'steps an epoch': setup.plan.epoch,
    'statistics': checkpoint.fingerprint((_arrays(data.mean), _arrays(data.std)))[:16],
    'first batch': checkpoint.fingerprint(setup.first_batch)[:16],
    'fingerprint': data.fingerprint[:16],
    **({} if data.reduction is None else {'reduction': _of_reduction(data.reduction)}),
  }


def _of_reduction(found: Any) -> str:
  """Which map reduces the inputs. One that is fitted follows from the data but for last bits, which do not count."""
  told = f'{found.kind}, {found.features} to {found.components}, seed {found.how.get("seed", 0)}'
  given = not isinstance(found.how.get('by'), str) or found.columns is not None
  return f'{told}, {checkpoint.fingerprint(np.asarray(found.weight))[:16]}' if given else told


def _arrays(tree: Any) -> Any:
  return jax.tree.map(np.asarray, tree)
