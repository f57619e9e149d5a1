"""Which leaf takes which array, and how; and one error that tells everything that cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite import trees
from jaxlite.contract import CONST
from jaxlite.errors import nearest
from jaxlite.finetuning import axes, keras_names, names
from jaxlite.finetuning.axes import Move, Unclear
from jaxlite.finetuning.flattened import Flat
from jaxlite.finetuning.ordered import by_order_of_definition
from jaxlite.finetuning.program import Kernel
from jaxlite.finetuning.weights import Weights, WeightsError

Transform = Sequence[int] | Callable[[np.ndarray], Any]
_FIXED = f'{CONST}/keras/'  # what an adapter keeps of a Keras model's frozen variables
_OWN_FORMS = ('arrays', 'run', 'orbax', 'msgpack', 'npz', 'safetensors')  # may be a save of this very model
_KNOWN = ('pt', 'np', 'flax', 'jax', 'tf')  # what `format` says in safetensors whose kernels are known
_PERMUTED = re.compile(r'attn_[qk]\.(weight|bias)$')
_SHOWN = 6


class Target(NamedTuple):
  """What is filled.

  Attributes:
    leaves: shapes and dtypes by path, of params and state.
    kernels: what the program multiplies.
    order: the place of each leaf among those that the program reads.
    flat: leaves that are no kernels and lie along a flattened picture.
    tables: leaves whose rows are looked up.
  """

  leaves: Mapping[str, Any]
  kernels: dict[str, Kernel]
  order: Mapping[str, int]
  flat: Mapping[str, Flat]
  tables: frozenset[str] = frozenset()


class Plan(NamedTuple):
  """What one leaf takes.

  Attributes:
    source: the array's name in the file.
    move: the stored array -> the leaf's.
    how: what that does, in words; empty where it is as stored.
  """

  source: str
  move: Callable[[np.ndarray], Any]
  how: tuple[str, ...]


class Matched(NamedTuple):
  """Plans by path, in the model's order, and what is left out, by name, with why."""

  plans: dict[str, Plan]
  left: dict[str, str]


def own_path(path: str) -> str:
  """The path of a leaf among a network's own, whichever collection keeps it."""
  return path.removeprefix(_FIXED)


def leaves_of(params: Any, state: Any) -> dict[str, Any]:
  """Returns a network's own leaves by path: its params, then its state; what hooks keep is left out."""
  found = {path: leaf for path, leaf in trees.by_path(params).items() if not trees.is_extra(path)}
  for path, leaf in trees.by_path(state).items():
    own = own_path(path)
    if own == path and trees.is_extra(path):
      continue
    if own in found:
      raise WeightsError(f'{own!r} is a path of the params and of the state: rename one')
    found[own] = leaf
  return found


def match(
  held: Weights,
  target: Target,
  kept: Mapping[str, str],
  rules: Mapping[str, str | None],
  transforms: Mapping[str, Transform],
  layout: str | None,
  *,
  by_order: bool,
) -> Matched:
  """Pairs, lays out and judges; nothing is read.

  Raises:
    WeightsError: everything that is missing, left over, of another shape or unclear, and what to write.
  """
  renamed, left = _renamed(held, rules)
  wanted = [path for path in target.leaves if path not in kept]
  found, unclear = names.pair(list(renamed), list(target.leaves))
  for path in [path for path in found if path in kept]:
    name = found.pop(path)
    left[renamed.pop(name)] = f'{path} is new'
  convention = _convention(held, layout)
  ordered: set[str] = set()
  if by_order:
    more = by_order_of_definition(held, renamed, found, wanted, target.order)
    ordered = {path for path, name in more.items() if found.get(path) != name}
    found = {**found, **more}
  moves, problems = _moves(held, renamed, found, target, convention, transforms, layout)
  other = {'torch': 'jax', 'jax': 'torch'}.get(convention, '')
  again = _moves(held, renamed, found, target, other, transforms, other)[1] if problems and other else problems
  used = set(found.values())
  for name in [name for name in renamed if name not in used]:
    if names.is_counter(name):
      left[renamed.pop(name)] = 'a counter of training'
  missing = [path for path in wanted if path not in found]
  extra = [name for name in renamed if name not in used]
  if missing or extra or problems:
    fits = other if len(again) < len(problems) else ''
    theirs = {path: held.shape(renamed[name]) for path, name in found.items()}
    raise WeightsError(_told(held, target, missing, extra, problems, unclear, kept, fits, found, theirs, convention))
  plans = {}
  for path in (path for path in target.leaves if path in found):
    move, how = moves[path]
    words = ('renamed by rule',) if renamed[found[path]] != _bare(found[path], held) else ()
    plans[path] = Plan(renamed[found[path]], move, (*words, *(('by order',) if path in ordered else ()), *how))
  return Matched(plans, left)


def _bare(name: str, held: Weights) -> str:
  """The name in the file of one that no rule changed; '' of one that a rule did."""
  told = keras_names.by_meaning(held)
  back = {new: old for old, new in told.items()} if told else {}
  return back.get(name, name if name in held else '')


def _renamed(held: Weights, rules: Mapping[str, str | None]) -> tuple[dict[str, str], dict[str, str]]:
  """Names after the rules, each with its name in the file; and what rules leave out."""
  told = keras_names.by_meaning(held)
  for pattern, replacement in rules.items():
    if not isinstance(pattern, str) or not isinstance(replacement, str | None):
      raise ValueError(f'rules are expressions with a replacement, or None; got {{{pattern!r}: {replacement!r}}}')
  renamed: dict[str, str] = {}
  left: dict[str, str] = {}
  hit = dict.fromkeys(rules, False)
  for name in held:
    new: str | None = told.get(name, name)
    for pattern, replacement in rules.items():
      assert new is not None
      try:
        matched = re.search(pattern, new)
        after = None if matched and replacement is None else re.sub(pattern, replacement or '', new)
      except re.error as error:
        raise ValueError(f'rules: {pattern!r} is no rule of regular expressions: {error}') from None
      if matched:
        hit[pattern], new = True, after
        break
    if new is None:
      left[name] = 'by rule'
    elif new in renamed:
      raise ValueError(f'rules give {renamed[new]!r} and {name!r} one name, {new!r}: make them differ')
    else:
      renamed[new] = name
  for pattern, was in hit.items():
    if not was:
      raise ValueError(f'rules: {pattern!r} matches nothing in {held.where}; nearest: {nearest(pattern, held)}')
  return renamed, left


def _convention(held: Weights, layout: str | None) -> str:
  if layout not in (None, 'torch', 'jax'):
    raise ValueError(f"layout is 'torch' ([out, in], OIHW) or 'jax' ([in, out], HWIO); got {layout!r}")
  if layout is None and held.form == 'safetensors' and held.about.get('format', 'pt') not in _KNOWN:
    return ''  # MLX, for one, stores convolutions as [out, *window, in]
  told = layout or {'keras': 'jax'}.get(held.layout, held.layout)
  if told == 'jax' and layout is None and held.form in _OWN_FORMS:
    told = names.layout_of(held) or 'jax'  # a checkpoint of Equinox keeps [out, in]
  return told or names.layout_of(held)


def _moves(
  held: Weights,
  renamed: Mapping[str, str],
  found: Mapping[str, str],
  target: Target,
  convention: str,
  transforms: Mapping[str, Transform],
  layout: str | None,
) -> tuple[dict[str, tuple[Callable[[np.ndarray], Any], tuple[str, ...]]], dict[str, str]]:
  moves: dict[str, tuple[Any, tuple[str, ...]]] = {}
  problems: dict[str, str] = {}
  by_hand = _by_hand(transforms, target.leaves)
  for path, name in found.items():
    if path in by_hand:
      moves[path] = by_hand[path], ('converted by rule',)
      continue
    shape, wanted = held.shape(renamed[name]), tuple(target.leaves[path].shape)
    same = layout is None and held.form in _OWN_FORMS and held.layout != 'torch' and renamed[name] == path
    kernel = target.kernels.get(path)
    llama = held.about.get('general.architecture') == 'llama' or (
      held.form == 'arrays' and renamed[name].startswith('blk.')
    )
    if _PERMUTED.search(renamed[name]) and llama:
      problems[path] = 'GGUF permutes its rows for rotary embeddings of neighboring pairs'
      continue
    if kernel is None and path in target.flat and not same:
      move: Move | Unclear = Unclear('it lies along a flattened picture, which frameworks flatten in different orders')
    elif kernel is None or (same and shape == wanted):
      move = axes.as_stored(shape, _joined(path, shape, wanted, target))
      move = move if isinstance(move, Unclear) else move._replace(shape=wanted)
    elif not convention:
      move = Unclear("nobody says whether kernels are [out, in] or [in, out]: give layout='torch' or 'jax'")
    else:
      move = axes.moved(shape, wanted, kernel, convention)
    if isinstance(move, Unclear):
      problems[path] = move.why
    else:
      moves[path] = move, _words(move, shape)
  return moves, problems


def _joined(path: str, shape: Sequence[int], wanted: Sequence[int], target: Target) -> Sequence[int]:
  """The shape of a leaf; of a bias, joined as the outputs of the kernel beside it are in the file."""
  parent = path.rpartition('/')[0]
  for other, kernel in target.kernels.items():
    if not len(shape) == 1 < len(wanted) or other.rpartition('/')[0] != parent or kernel.layout is None:
      continue
    if tuple(target.leaves[other].shape[axis] for axis in kernel.layout.outputs) == tuple(wanted):
      return (math.prod(wanted),)
  return wanted


def _words(move: Move, shape: Sequence[int]) -> tuple[str, ...]:
  reshaped = len([one for one in move.split if one > 1]) != len([one for one in shape if one > 1])
  reshaped |= move.shape != tuple(move.split[axis] for axis in move.order)
  return (*(('transposed',) if move.transposes else ()), *(('reshaped',) if reshaped else ()))


def _by_hand(transforms: Mapping[str, Transform], leaves: Mapping[str, Any]) -> dict[str, Callable[[np.ndarray], Any]]:
  found: dict[str, Callable[[np.ndarray], Any]] = {}
  for pattern, given in transforms.items():
    for path in trees.select(leaves, pattern, what='load_weights: transforms'):
      found[path] = given if callable(given) else _permuted(tuple(given), path)
  return found


def _permuted(order: tuple[int, ...], path: str) -> Callable[[np.ndarray], np.ndarray]:
  def move(array: np.ndarray) -> np.ndarray:
    if sorted(order) != list(range(array.ndim)):
      raise ValueError(f'transforms: {order} is no order of the {array.ndim} axes that {path!r} has in the file')
    return array.transpose(order)

  return move


def _told(
  held: Weights,
  target: Target,
  missing: Sequence[str],
  extra: Sequence[str],
  problems: Mapping[str, str],
  unclear: Mapping[str, Sequence[str]],
  kept: Mapping[str, str],
  layout: str,
  found: Mapping[str, str],
  theirs: Mapping[str, Sequence[int]],
  convention: str,
) -> str:
  """Everything that is wrong, in one line, with what to write."""
  parts, fixes = [], []
  other = [path for path, why in problems.items() if why == 'shape']
  if other:
    turned = [path for path in other if _fits_turned(theirs[path], target, path, convention)]
    as_read = {'torch': ', read as [out, in]', 'jax': ', read as [in, out]'}.get(convention, '')
    shapes = [
      f'{path} {list(target.leaves[path].shape)} (in the file {list(theirs[path])}{as_read if path in turned else ""})'
      for path in other
    ]
    parts.append(f'{len(other)} of another shape: {_some(shapes)}')
    if layout:
      fixes.append(f'layout={layout!r}, by which more of them fit')
    if turned:
      order = '(0, 1)' if tuple(theirs[turned[0]]) == tuple(target.leaves[turned[0]].shape) else '(1, 0)'
      fixes.append(f"transforms={{'{turned[0]}': {order}}} where it alone lies the other way")
    fixes.append("head='new' where it is the head" if not kept else 'new= for what starts anew')
  hard = [f'{path} ({why})' for path, why in problems.items() if why != 'shape']
  if hard:
    parts.append(f'{len(hard)} that cannot be told: {_some(hard)}')
    fixes.append("transforms={'path': (1, 0)} or a function for these")
  doubled = [f'{path} ({" or ".join(unclear[path][:3])})' for path in missing if path in unclear]
  if doubled:
    parts.append(f'{len(doubled)} that several arrays could be: {_some(doubled)}')
  absent = [path for path in missing if path not in unclear]
  if absent:
    near = f'; nearest to the first: {nearest(absent[0], extra)}' if extra else ''
    parts.append(f'{len(absent)} missing: {_some(absent)}{near}')
    fixes.append('new= for what starts anew')
    if tied := _tied(absent, found, target, theirs):
      fixes.append(tied)
  if extra:
    parts.append(f'{len(extra)} left over: {_some(extra)}')
    fixes.append("rules={'^name': None} for what is not wanted, {'^name': 'path'} for another name")
  if absent and extra:
    fixes.append("match='order' where names have nothing in common")
  for hint in (_twice(extra), _scaled(extra, held), _stacked(absent, extra, target, held)):
    if hint:
      fixes.append(hint)
  nested = {name.split('/')[0] for name in extra} if held.form == 'torch' else set()
  fitting = sorted({name.split('/')[0] for name in held if '/' in name and name not in extra} - nested)
  if nested and (fitting or any('/' in name for name in extra)):
    part = fitting[0] if fitting else max(nested)
    fixes.append(f'key={part!r} for a part of a checkpoint')
  return f'{held.where} does not fit the model: {"; ".join(parts)}: give {", or ".join(dict.fromkeys(fixes))}'


def _fits_turned(shape: Sequence[int], target: Target, path: str, convention: str) -> bool:
  """Whether a matrix would fit, if it lay the other way than the file's convention says; or a table, transposed."""
  wanted = tuple(target.leaves[path].shape)
  if len(shape) != 2 or path not in target.kernels:
    return len(shape) == 2 and tuple(shape[::-1]) == wanted
  move = axes.moved(shape, wanted, target.kernels[path], 'jax' if convention == 'torch' else 'torch')
  return not isinstance(move, Unclear)


def _tied(absent: Sequence[str], found: Mapping[str, str], target: Target, theirs: Mapping[str, Sequence[int]]) -> str:
  """What to write for a last layer that the file may leave out, as its numbers are those of a table."""
  for path in absent:
    wanted = sorted(target.leaves[path].shape)
    tables = [one for one in theirs if one not in target.kernels and len(wanted) == 2 and sorted(theirs[one]) == wanted]
    if path in target.kernels and len(tables) == 1:
      table, last = found[tables[0]], path.replace('/kernel', '.weight').replace('/', '.')
      return f"read(...).beside({{'{last}': read(...)['{table}']}}) where the file ties {path} to that table"
  return ''


def _twice(extra: Sequence[str]) -> str:
  """What to write where the file holds the same names under several beginnings: a model and its running average."""
  groups: dict[str, set[str]] = {}
  for name in extra:
    first, _, rest = name.replace('/', '.').partition('.')
    groups.setdefault(first, set()).add(rest)
  for first, inside in groups.items():
    others = [one for one, theirs in groups.items() if one != first and inside == theirs]
    if others and any('.' in one for one in inside):
      return f"rules={{'^{others[0]}[./]': None}} where {first!r} and {others[0]!r} hold the same model twice"
  return ''


def _scaled(extra: Sequence[str], held: Weights) -> str:
  """What to write where weights of eight bits stand beside the scale that they are to be multiplied with."""
  for name in extra:
    found = re.fullmatch(r'(.*weight)_scale(_inv)?', name)
    if found and found[1] in held and held.dtype(found[1]).itemsize == 1:
      scaled = f"read(...)['{found[1]}'].astype('float32') * read(...)['{name}']"
      return f"read(...).beside({{'{found[1]}': {scaled}}}), as weights of {held.dtype(found[1])} have a scale apart"
  return ''


def _stacked(absent: Sequence[str], extra: Sequence[str], target: Target, held: Weights) -> str:
  """What to write where the model keeps as one array what the file has layer by layer."""
  for path in sorted(absent, key=lambda one: -len(target.leaves[one].shape)):  # kernels before what stands beside them
    key, shape = names.key_of(path), tuple(target.leaves[path].shape)
    alike = [one for one in extra if _bare_key(one) == key and names.key_of(one) != key and one in held]
    if shape and len(alike) == shape[0] and len(held.shape(alike[0])) == len(shape) - 1:
      one = re.sub(r'\d+', '{i}', alike[0], count=1)
      stack = f"{{'{path}': np.stack([read(...)[f'{one}'] for i in range({shape[0]})])}}"
      turned = f', each turned as the model has it, and transforms={{{path!r}: {tuple(range(len(shape)))}}}'
      return f'read(...).beside({stack}){turned if path in target.kernels else ""}, as the model stacks these layers'
  return ''


def _bare_key(name: str) -> names.Key:
  key = names.key_of(name)
  first = next((place for place, word in enumerate(key.module) if word.isdigit()), len(key.module))
  return key._replace(module=key.module[:first] + key.module[first + 1 :])


def _some(found: Sequence[str]) -> str:
  return ', '.join(found[:_SHOWN]) + (f' and {len(found) - _SHOWN} more' if len(found) > _SHOWN else '')
