"""Names of the same thing in several frameworks: PyTorch's `layer1.0.conv1.weight` is Flax's `layer1_0/conv1/kernel`.

A name becomes the module's words and a role. Roles that frameworks name differently are one: a kernel, a norm's scale
and an embedding are each the weight `w` of their module, as in PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_ROLES = {
  **dict.fromkeys(('weight', 'kernel', 'scale', 'gamma', 'embedding', 'embeddings', 'w', 'g'), 'w'),
  **dict.fromkeys(('depthwise_kernel', 'pointwise_kernel'), 'w'),
  **dict.fromkeys(('bias', 'beta', 'offset', 'b'), 'b'),
  **dict.fromkeys(('mean', 'running_mean', 'moving_mean', 'average_mean'), 'mean'),
  **dict.fromkeys(('var', 'running_var', 'moving_variance', 'moving_var', 'variance'), 'var'),
}
COUNTERS = ('num_batches_tracked',)  # of PyTorch's norms: how often they were trained; no value of the network
_WORD = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+')
_COLLECTIONS = ('batch_stats', 'state', 'params', 'model_state')


class Key(NamedTuple):
  """A name without a framework's habits.

  Attributes:
    module: words of the path.
    role: 'w', 'b', 'mean', 'var', or the last word as it stands.
  """

  module: tuple[str, ...]
  role: str


def key_of(name: str) -> Key:
  """Returns the key of a name.

  >>> key_of('layer1.0.conv1.weight') == key_of('layer1_0/conv1/kernel')
  True
  >>> key_of('batch_stats/bn1/mean') == key_of('bn1.running_mean')
  True
  """
  parts = [part for part in re.split(r'[./]', name) if part and part != '~']
  if len(parts) > 1 and parts[0] in _COLLECTIONS:
    parts = parts[1:]
  if parts and parts[-1] in ('value', 'raw_value') and len(parts) > 1:
    parts = parts[:-1]
  *modules, last = parts or ['']
  words = tuple(word.lower() for module in modules for word in _WORD.findall(module))
  return Key(words, _ROLES.get(last, '/'.join(_WORD.findall(last)).lower()))


def is_counter(name: str) -> bool:
  """Tells whether an array is no value of the network: how often a norm was trained.

  >>> is_counter('bn1.num_batches_tracked')
  True
  """
  return re.split(r'[./]', name)[-1] in COUNTERS


def pair(sources: Iterable[str], targets: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
  """Pairs names that mean the same.

  Args:
    sources: names in the file.
    targets: paths in the model.

  Returns:
    (source by target; of each target that several sources could be, or that shares one with another target, which).

  >>> pair(['module.fc.weight', 'module.fc.bias'], ['fc/kernel', 'fc/bias'])[0]
  {'fc/kernel': 'module.fc.weight', 'fc/bias': 'module.fc.bias'}
  """
  sources, targets = list(sources), list(targets)
  same = {_plain(name): name for name in targets}
  found = {same[_plain(name)]: name for name in sources if _plain(name) in same}
  left_sources = [name for name in sources if name not in set(found.values())]
  left_targets = [name for name in targets if name not in found]
  best: tuple[int, dict[str, str], dict[str, list[str]]] = (-1, {}, {})
  for cut_source, cut_target in _cuts(left_sources, left_targets):
    one, unclear = _by_key(left_sources, left_targets, cut_source, cut_target)
    if len(one) > best[0]:
      best = (len(one), one, unclear)
  return {**found, **best[1]}, best[2]


def _plain(name: str) -> str:
  return name.replace('.', '/')


def _by_key(
  sources: list[str], targets: list[str], cut_source: tuple[str, ...], cut_target: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, list[str]]]:
  by_source, by_target = _grouped(sources, cut_source), _grouped(targets, cut_target)
  found, unclear = {}, {}
  for key, names in by_target.items():
    other = by_source.get(key, [])
    if len(names) == 1 == len(other):
      found[names[0]] = other[0]
    elif other:
      unclear.update(dict.fromkeys(names, other))
  return found, unclear


def _grouped(names: list[str], cut: tuple[str, ...]) -> Mapping[Key, list[str]]:
  groups: dict[Key, list[str]] = {}
  for name in names:
    key = key_of(name)
    if cut and key.module[: len(cut)] == cut:
      key = key._replace(module=key.module[len(cut) :])
    groups.setdefault(key, []).append(name)
  return groups


def _cuts(sources: list[str], targets: list[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
  """Which beginnings may be a wrapper's name ('module', 'encoder'): none before one, the common before the rare."""

  def beginnings(names: list[str]) -> list[tuple[str, ...]]:
    counts: dict[tuple[str, ...], int] = {}
    for name in names:
      module = key_of(name).module
      for size in range(1, min(3, len(module)) + 1):
        counts[module[:size]] = counts.get(module[:size], 0) + 1
    return sorted((one for one in counts if 2 * counts[one] > len(names)), key=lambda one: (len(one), -counts[one]))

  ours, theirs = [(), *beginnings(sources)[:6]], [(), *beginnings(targets)[:6]]
  return sorted(((one, other) for one in ours for other in theirs), key=lambda both: len(both[0]) + len(both[1]))


def layout_of(names: Iterable[str]) -> str:
  """Tells whose convention kernels follow by what they are called; '' where names do not tell.

  >>> layout_of(['fc.weight']), layout_of(['Dense_0/kernel']), layout_of(['a'])
  ('torch', 'jax', '')
  """
  lasts = [re.split(r'[./]', name) for name in names]
  words = {parts[-1] if parts[-1] not in ('value', 'raw_value') else parts[-2] for parts in lasts if len(parts) > 1}
  if words & {'kernel', 'w'}:
    return '' if 'weight' in words else 'jax'
  return 'torch' if 'weight' in words else ''
