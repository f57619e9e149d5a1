"""What a low rank learned, as a file of its own: kilobytes that load onto the same frozen model and no other one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import CONST, TAPS
from jaxlite.errors import counted
from jaxlite.host.files import expanded, read_file
from jaxlite.host.safetensors_file import read_safetensors, write_safetensors
from jaxlite.optim._chosen import LowRank
from jaxlite.optim._low_rank import Adapted
from jaxlite.optim._stored import KEPT_AS

FORMAT = 'jaxlite adapter 1'
_LEARNED, _LIVE, _STATE = 'learned/', 'params/', 'state/'  # of a low rank, of leaves that learn whole, statistics
_CHANGE_BASE = ('pissa', 'olora', 'corda', 'loftq')  # ways to begin of PEFT that put the factors' product into the base
_COUNTERS = ('jl.health', 'jl.loop', TAPS)  # what a run notes of itself


def save_adapter(path: str | os.PathLike[str], state: Any, *, name: str | None = None) -> int:
  """Writes what `lora`, `dora` or `qlora` learned to a safetensors file, and of the base only its fingerprint.

  The file holds the factors, the leaves that `train` let learn, the network's own statistics (batch norm's), and a hash
  of each frozen leaf as it is kept.

  Args:
    path: of the file; its folder exists.
    state: a TrainState, or a pair (params, model_state) of a loop of your own, constants in it.
    name: of the hook; needed where several of them stand in a chain.

  Returns:
    The bytes written.

  Raises:
    ValueError: no such hook; another hook keeps arrays that the file would lack (an average).

  >>> import tempfile
  >>> from jaxlite.contract import Model
  >>> from jaxlite.optim import lora
  >>> base = Model(lambda key, x: ({'w': jnp.ones((6, 4))}, {}), lambda p, s, x, **_: (x @ p['w'], s))
  >>> params, model_state = lora(1).model(base).init(jax.random.key(0), jnp.ones((1, 6)))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   size = save_adapter(f'{folder}/adapter.safetensors', (params, model_state))
  ...   again, _ = load_adapter(f'{folder}/adapter.safetensors', (params, model_state))
  >>> size < 2_000, bool(jnp.array_equal(again['jl.lora']['w']['a'], params['jl.lora']['w']['a']))
  (True, True)
  """
  params, model_state = _pair(state)
  name, known = _own(model_state, name)
  left = [one for one in model_state if one.startswith('jl.') and one not in (f'jl.{name}', CONST, *_COUNTERS)]
  left = [one for one in left if jax.tree.leaves(model_state[one])]
  left += [one for one in params if one.startswith('jl.') and one != f'jl.{name}']
  if left:
    raise ValueError(
      f'an adapter holds what {name} learned; here {min(left)!r} holds arrays too, which it would lack: export the '
      'whole model (Model.export), or save from a recipe without that part'
    )
  arrays = {f'{_LEARNED}{leaf}': value for leaf, value in trees.by_path(params[f'jl.{name}']).items()}
  live = {key: value for key, value in params.items() if not key.startswith('jl.')}
  arrays |= {f'{_LIVE}{leaf}': value for leaf, value in trees.by_path(live).items()}
  arrays |= {f'{_STATE}{leaf}': value for leaf, value in trees.by_path(_statistics(model_state)).items()}
  about = {
    'format': FORMAT,
    'adapted': json.dumps({leaf: _facts(adapted) for leaf, adapted in known.adapted}),
    'base': json.dumps(base_fingerprint(model_state, name)),
  }
  path = expanded(path)
  write_safetensors(path, {leaf: np.asarray(jax.device_get(value)) for leaf, value in arrays.items()}, about)
  return path.stat().st_size


def load_adapter(
  path: str | os.PathLike[str],
  state: Any,
  *,
  name: str | None = None,
  other_base: bool = False,
  peft: Mapping[str, str] | None = None,
) -> Any:
  """Puts a saved adapter in place of what a low rank holds.

  Args:
    path: the file of `save_adapter`; or the folder of an adapter that Hugging Face's PEFT wrote, with `peft`.
    state: as `init` gives it, with the same rules: a TrainState, or a pair (params, model_state). Its optimizer's state
      stays as it is.
    name: of the hook; needed where several of them stand in a chain.
    other_base: take it although the frozen leaves are not those that it was trained on (the same model in other bits).
    peft: {path of a leaf: name of PEFT's module}, with `{}` where the index of a stacked layer stands; PEFT notes no
      fingerprint, so that shapes alone are checked, and that it was not begun in a way that changes the base.

  Returns:
    The same with new params, and with the statistics that the file holds.

  Raises:
    ValueError: no adapter; of other leaves, ranks or shapes; of another base.
    FileNotFoundError: there is no such file.
  """
  params, model_state = _pair(state)
  name, known = _own(model_state, name)
  slot = f'jl.{name}'
  if peft is not None:
    learned = _from_peft(expanded(path), known, peft, other_base)
    return _replaced(state, {**params, slot: _like(params[slot], learned, f'{path}')}, model_state)
  arrays, about = read_safetensors(expanded(path))
  if about.get('format') != FORMAT:
    raise ValueError(f'{path} is no adapter of jaxlite ({FORMAT!r}); its format is {about.get("format")!r}')
  try:
    theirs, base = json.loads(about['adapted']), json.loads(about['base'])
    theirs, base = dict(theirs), dict(base)
  except (KeyError, ValueError, TypeError):
    raise ValueError(f'{path}: the table of the adapter is damaged') from None
  _check_facts({leaf: _facts(adapted) for leaf, adapted in known.adapted}, theirs, path)
  if not other_base:
    _check_base(base, base_fingerprint(model_state, name), path)
  parts: dict[str, dict[str, Any]] = {_LEARNED: {}, _LIVE: {}, _STATE: {}}
  for leaf, value in arrays.items():
    kind = next((kind for kind in parts if leaf.startswith(kind)), None)
    if kind is None:
      raise ValueError(f'{path} holds {leaf!r}, which no adapter has')
    parts[kind][leaf.removeprefix(kind)] = value
  live = {key: value for key, value in params.items() if not key.startswith('jl.')}
  new = {**params, slot: _like(params[slot], parts[_LEARNED], path), **_like(live, parts[_LIVE], path)}
  return _replaced(state, new, {**model_state, **_like(_statistics(model_state), parts[_STATE], path)})


def base_fingerprint(model_state: Mapping[str, Any], name: str) -> dict[str, str]:
  """Returns a short hash of each frozen leaf as it is kept: its dtype, shape and bytes, by path."""
  found = {}
  for leaf, value in trees.by_path(model_state[CONST][name]).items():
    host = np.ascontiguousarray(jax.device_get(value))
    told = hashlib.sha256(f'{host.dtype.name} {list(host.shape)} '.encode())
    told.update(host.reshape(-1).view(np.uint8).data)
    found[leaf] = told.hexdigest()[:16]
  return found


def _pair(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  if hasattr(state, 'params') and hasattr(state, 'const'):
    return state.params, {**state.model_state, CONST: state.const}
  if isinstance(state, tuple) and len(state) == 2 and all(isinstance(one, Mapping) for one in state):
    return dict(state[0]), dict(state[1])
  raise TypeError(f'a state is a TrainState, or a pair (params, model_state) of dicts; got {type(state).__name__}')


def _replaced(state: Any, params: Any, model_state: Any) -> Any:
  if hasattr(state, 'const'):
    rest = {key: value for key, value in model_state.items() if key != CONST}
    return state._replace(params=params, model_state=rest)
  return params, model_state


def _own(model_state: Mapping[str, Any], name: str | None) -> tuple[str, LowRank]:
  found = {key.removeprefix('jl.'): value for key, value in model_state.items() if isinstance(value, LowRank)}
  if name is None and len(found) == 1:
    name = next(iter(found))
  if name is None or name not in found:
    which = f'{name!r} is none of them' if name is not None else 'name one' if found else 'it was trained without'
    raise ValueError(f'an adapter is what lora, dora or qlora learned; here are {sorted(found) or "none"}: {which}')
  return name, found[name]


def _statistics(model_state: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in model_state.items() if not key.startswith('jl.')}


def _facts(adapted: Adapted) -> dict[str, Any]:
  """What of a leaf an adapter has to agree with, as JSON gives it back."""
  shape, summed, outputs = adapted.matrix
  axes = {'shape': [*shape], 'summed': [*summed], 'outputs': [*outputs]}
  return {**axes, 'rank': adapted.rank, 'scale': adapted.scale, 'magnitude': adapted.magnitude}


def _check_facts(own: Mapping[str, Any], theirs: Mapping[str, Any], path: Any) -> None:
  for leaf in sorted(own.keys() | theirs.keys()):
    if own.get(leaf) != theirs.get(leaf):
      ours, other = (
        ', '.join(f'{k} {v}' for k, v in one.items()) if one else 'nothing' for one in (own.get(leaf), theirs.get(leaf))
      )
      raise ValueError(
        f'{path}: an adapter fits the rules it was trained with; beside {leaf!r} it has {other}, here stands {ours}'
      )


def _check_base(theirs: Mapping[str, Any], own: Mapping[str, str], path: Any) -> None:
  other = sorted(leaf for leaf in own.keys() | theirs.keys() if own.get(leaf) != theirs.get(leaf))
  if not other:
    return
  bits = [leaf for leaf in other if leaf.endswith(KEPT_AS)] and own.keys() != theirs.keys()
  why = 'kept in other bits' if bits else 'not the same'
  every, are = len(own.keys() | theirs.keys()), 'is' if len(other) == 1 else 'are'
  raise ValueError(
    f'{path}: an adapter belongs to the base that it was trained on; {counted(len(other), "frozen array")} of '
    f'{every} {are} {why}, first {other[0]!r}: load those weights, or say '
    'other_base=True'
  )


def _like(tree: Any, values: Mapping[str, Any], path: Any) -> Any:
  """The tree with values of the same paths, shapes and dtypes."""
  own = trees.by_path(tree)
  for leaf in sorted(own.keys() ^ values.keys()):
    raise ValueError(
      f'{path}: {leaf!r} is {"missing from the adapter" if leaf in own else "in the adapter, and not here"}'
    )
  for leaf, value in own.items():
    if np.shape(value) != np.shape(values[leaf]) or jnp.dtype(value.dtype) != jnp.dtype(values[leaf].dtype):
      got = f'{values[leaf].dtype}{list(np.shape(values[leaf]))}'
      raise ValueError(f'{path}: {leaf!r} is {value.dtype}{list(np.shape(value))} here, {got} in the adapter')
  return trees.map_with_path(lambda leaf, value: jnp.array(values[leaf]), tree)


def _from_peft(folder: Path, known: LowRank, names: Mapping[str, str], other_base: bool) -> dict[str, Any]:
  """The factors of an adapter that PEFT wrote, as they lie here: its A is [rank, rows], its B [columns, rank]."""
  config = json.loads(read_file(folder / 'adapter_config.json'))
  for name in ('r', 'lora_alpha'):
    if type(config.get(name)) not in (int, float):
      raise ValueError(f'{folder}: its adapter_config.json has no number {name!r}: it is no adapter of low rank')
  begun = str(config.get('init_lora_weights'))
  if begun.startswith(_CHANGE_BASE) and not other_base:
    raise ValueError(
      f'{folder}: it was begun by init_lora_weights={begun!r:.40}, which changes the base: convert it with PEFT, or '
      'load that base and say other_base=True'
    )
  arrays, _ = read_safetensors(folder / 'adapter_model.safetensors')
  root = {name.removeprefix('base_model.model.'): value for name, value in arrays.items()}
  over = config['r'] ** (0.5 if config.get('use_rslora') else 1.0)
  if config.get('rank_pattern') or config.get('alpha_pattern') or config.get('bias', 'none') != 'none':
    raise ValueError(f'{folder}: ranks and alphas of single modules, and biases, are not read: merge it with PEFT')
  found: dict[str, Any] = {}
  used: set[str] = set()
  for leaf, adapted in known.adapted:
    if leaf not in names:
      raise ValueError(f"{folder}: peft= names PEFT's module of every adapted leaf; {leaf!r} is missing")
    stack, rows, columns = adapted.matrix.sizes
    if config['r'] != adapted.rank:
      raise ValueError(f'{folder}: its rank is {config["r"]}; beside {leaf!r} stands {adapted.rank}: give that rank')
    if len(stack) > 1:
      raise ValueError(f'{folder}: {leaf!r} stacks layers along {len(stack)} axes; one index is read')
    modules = [names[leaf].format(index) for index in range(stack[0])] if stack else [names[leaf]]
    for part, suffix, shape in (
      ('a', 'lora_A.weight', (adapted.rank, rows)),
      ('b', 'lora_B.weight', (columns, adapted.rank)),
    ):
      wanted = [f'{module}.{suffix}' for module in modules]
      used.update(wanted)
      for one in wanted:
        if one not in root or root[one].shape != shape:
          got = list(root[one].shape) if one in root else 'nothing'
          raise ValueError(f'{folder}: {one!r} should be {list(shape)} for {leaf!r}; the file has {got}')
      values = (
        np.stack([root[one].astype(np.float32).T for one in wanted]) if stack else root[wanted[0]].astype(np.float32).T
      )
      found[f'{leaf}/{part}'] = values * np.float32(config['lora_alpha'] / over / adapted.scale if part == 'b' else 1)
    if adapted.magnitude:
      wanted = [f'{module}.lora_magnitude_vector.weight' for module in modules]
      used.update(wanted)
      lengths = [root[one].reshape(-1).astype(np.float32) for one in wanted if one in root]
      if len(lengths) != len(wanted):
        raise ValueError(f'{folder}: the magnitudes of {leaf!r} are missing: it is no DoRA adapter')
      found[f'{leaf}/m'] = np.stack(lengths) if stack else lengths[0]
  if rest := sorted(root.keys() - used):
    raise ValueError(f'{folder}: no adapted leaf takes {rest[0]!r} and {len(rest) - 1} more: name them in peft=')
  return found
