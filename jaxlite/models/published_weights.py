"""Published weights, as names and arrays, turned into variables of a reference network: all of them, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import errors, trees
from jaxlite.models.layers import scaled_normal
from jaxlite.models.weight_names import Form, Source, Table, forms_of

_COUNTS = re.compile(r'(^|\.)num_batches_tracked$')  # torch's count of batches, which only its momentum=None reads
_TURNED = {
  'same': lambda array: array,
  'conv': lambda array: array.transpose(2, 3, 1, 0),
  'dense': lambda array: array.T,
  'patch': lambda array: array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]),
  'token': lambda array: array.reshape(-1),
  'positions': lambda array: array.reshape(array.shape[-2:]),
}
_AXES = {'conv': 4, 'dense': 2, 'patch': 4, 'token': 3, 'positions': 3}


class Published(NamedTuple):
  """Variables of a network from published weights, and what was done.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...}, NumPy arrays, float32.
    form: whose names the weights have: 'torchvision', 'timm', ...
    dropped: tensors that the network has no use for: counts of batches, and a head that was not wanted.
    fresh: paths of ours that nothing was published for: a new head.
    notes: what else is worth a line: interpolated positions, a prefix of all names.
  """

  variables: dict[str, Any]
  form: str
  dropped: tuple[str, ...]
  fresh: tuple[str, ...]
  notes: tuple[str, ...]


def published(
  module: Any,
  tensors: Mapping[str, Any],
  size: int | Sequence[int] | None = None,
  *,
  new_head: bool = False,
  key: Any = None,
  drop: str | None = None,
) -> Published:
  """Returns variables of a reference network from weights as torchvision, timm or their like publish them.

  Every tensor is used or named among what is dropped, every array of the network is filled or named among what is
  fresh, shapes are compared, and values have to be finite. What names and shapes do not tell (the added epsilon, the
  kind of GELU) is compared with how the weights were trained. Variants that differ in neither (a ResNet that halves the
  image in another convolution, or with blurred pools) cannot be told apart: know where the weights come from.

  Args:
    module: a `MobileNetV2`, `EfficientNetLite`, `DeepResNet` or `ViT`, of the right sizes.
    tensors: arrays by name, as `state_dict()` has them; a 'state_dict' within is opened.
    size: of the images, in pixels, (height, width) or one number for both: a ViT's positions are interpolated to it.
      None takes them as they are.
    new_head: the classifier starts from drawn values; the published one, of whatever classes, is dropped.
    key: for a new head; None is `jax.random.key(0)`.
    drop: a regular expression on names of tensors that are to be left out, too.

  Returns:
    The `Published`.

  Raises:
    TypeError: a network for which nobody publishes weights.
    ValueError: tensors are missing, left over, of other shapes, or not finite; or the network has settings that the
      weights were not trained with.

  References:
    Positions, by bicubic interpolation: Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929 (section 3.2).

  >>> from jaxlite.models import ResNet18
  >>> published(ResNet18(), {'conv1.weight': np.zeros((64, 3, 7, 7))})
  Traceback (most recent call last):
    ...
  ValueError: ResNet18 (torchvision's names) needs 102 tensors; 101 arrays: bn1.bias, bn1.running_mean, ...
  """
  what, forms = type(module).__name__, forms_of(module)
  if not forms:
    raise TypeError(
      f'published weights are known for MobileNetV2, EfficientNetLite, DeepResNet and ViT; got {what}: load them by '
      'path with jl.finetuning'
    )
  named = _Tensors(tensors)
  form, table = _form(module, forms, named.names)
  wrong = {field: value for field, value in form.fields.items() if getattr(module, field) != value}
  if wrong:
    wanted = ', '.join(f'{field}={value!r}' for field, value in wrong.items())
    raise ValueError(f"{what}: {form.name}'s weights were trained with {wanted}; it has others: set them")
  heads = [path for path in table if path.split('/')[1] == module.classifier]
  left = set(named.names)
  dropped = {name for name in left if _COUNTS.search(name) or (drop is not None and re.search(drop, name))}
  if new_head:
    dropped |= left & _names(table[path] for path in heads)
    table = {path: source for path, source in table.items() if path not in heads}
  _complete(what, form.name, _names(table.values()), left - dropped, len(heads), new_head)
  shapes = _shapes(module, named, table, size)
  found: dict[str, np.ndarray] = {}
  notes = list(named.notes)
  for path, source in table.items():
    array, note = _turned(path, source, _joined(named, source), shapes[path], module, size)
    found[path] = array
    notes += note
  fresh = _fresh(module, [path for path in shapes if path not in table], shapes, key)
  variables = trees.nest({**found, **fresh})
  return Published(variables, form.name, tuple(sorted(dropped)), tuple(sorted(fresh)), tuple(notes))


class _Tensors:
  """Tensors by name, out of the boxes that training scripts put them in; each is read when it is asked for."""

  def __init__(self, tensors: Mapping[str, Any]) -> None:
    if not isinstance(tensors, Mapping):
      raise TypeError(f'published weights are a mapping of names to arrays; got {type(tensors).__name__}')
    self.notes: list[str] = []
    for box in ('state_dict', 'model', 'model_state'):
      if isinstance(tensors.get(box), Mapping):
        self.notes.append(f'the tensors are those of {box!r}')
        tensors = tensors[box]
    self._held, self._own = tensors, {str(name): name for name in tensors}
    # Of files read flat; of torch's DataParallel; of trainers.
    for prefix in ('state_dict/', 'model/', 'module.', 'model.'):
      if self._own and all(name.startswith(prefix) for name in self._own):
        self.notes.append(f'every name begins with {prefix!r}, which was taken off')
        self._own = {name.removeprefix(prefix): own for name, own in self._own.items()}
    self.names = frozenset(self._own)

  def __getitem__(self, name: str) -> np.ndarray:
    return np.asarray(self._held[self._own[name]])


def _form(module: Any, forms: Iterable[Form], names: frozenset[str]) -> tuple[Form, Table]:
  """The form whose names the tensors have most of."""
  tables = [(form, form.table(module)) for form in forms]
  return max(tables, key=lambda pair: len(_names(pair[1].values()) & names))


def _names(sources: Iterable[Source]) -> set[str]:
  return {name for source in sources for name in source.names}


def _complete(what: str, form: str, wanted: set[str], given: set[str], heads: int, new_head: bool) -> None:
  missing, extra = sorted(wanted - given), sorted(given - wanted)
  told = f"{what} ({form}'s names) needs {len(wanted)} tensors"
  if missing:
    near = f'; nearest to the first: {errors.nearest(missing[0], extra)}' if extra else ''
    hint = '' if new_head or len(missing) > heads else '; new_head=True starts a head of its own'
    raise ValueError(f'{told}; {errors.arrays(missing)} missing{near}{hint}: are these weights of another network?')
  if extra:
    raise ValueError(
      f'{told}; {errors.arrays(extra)} left over: are these weights of another network? drop= names what to leave out'
    )


def _shapes(module: Any, named: _Tensors, table: Table, size: Any) -> dict[str, tuple[int, ...]]:
  """The shapes of the network's arrays by path, for images of that size."""
  first = next((table[one] for one in ('params/stem/conv/kernel', 'params/embed/kernel') if one in table), None)
  kernel = np.shape(named[first.name]) if first else ()
  channels = kernel[1] if len(kernel) == 4 else 3
  height, width = _sides(module, named, table, size)
  images = jax.ShapeDtypeStruct((1, height, width, channels), 'float32')
  variables = jax.eval_shape(lambda key, x: module.init({'params': key}, x, train=False), jax.random.key(0), images)
  return {path: leaf.shape for path, leaf in trees.by_path(variables).items()}


def _sides(module: Any, named: _Tensors | None, table: Table, size: Any) -> tuple[int, int]:
  if size is not None:
    sides = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    if len(sides) != 2 or min(sides) < 1:
      raise ValueError(f'size is the height and width of images in pixels; got {size!r}')
    return sides
  positions = table.get('params/position_bias')
  if positions is None or named is None:
    return 64, 64
  tokens = np.shape(named[positions.name])[-2:][0] - int(module.class_token)
  side = int(max(tokens, 1) ** 0.5)
  return side * module.patch, side * module.patch


def _joined(named: _Tensors, source: Source) -> np.ndarray:
  """The tensor, or several along their first axis, where that can be; else the first, whose shape is then refused."""
  parts = [named[name] for name in source.names]
  alike = len({part.shape for part in parts}) == 1 and parts[0].ndim > 0
  return np.concatenate(parts) if len(parts) > 1 and alike else parts[0]


def _turned(
  path: str, source: Source, array: np.ndarray, shape: tuple[int, ...], module: Any, size: Any
) -> tuple[np.ndarray, list[str]]:
  where = f'{source.name!r} for {path.partition("/")[2]!r}'
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(f'{where}: weights are floats; got {array.dtype}')
  notes: list[str] = []
  given = array.shape
  if array.ndim != _AXES.get(source.form, len(shape)):
    raise ValueError(f'{where}: got the shape {list(given)}, for {list(shape)} of the network: another network?')
  array = _TURNED[source.form](array.astype(np.float32))
  if source.form == 'positions' and array.shape[0] != shape[0] and array.shape[1:] == shape[1:]:
    height, width = _sides(module, None, {}, size)
    array, told = _interpolated(array, int(module.class_token), (height // module.patch, width // module.patch), where)
    notes.append(told)
  if array.shape != shape:
    raise ValueError(
      f'{where}: got the shape {list(given)}, as ours {list(array.shape)}; the network has {list(shape)}: another '
      'width, depth or number of classes?'
    )
  if not np.isfinite(array).all():
    raise ValueError(f'{where} is not finite: the file is damaged, or was saved from a run that broke')
  if source.name.endswith('running_var') and (array < 0).any():
    raise ValueError(f'{where} is a variance below 0: the file is damaged')
  return np.ascontiguousarray(array), notes


def _interpolated(table: np.ndarray, tokens: int, grid: tuple[int, int], where: str) -> tuple[np.ndarray, str]:
  """Positions [tokens + h * w, D] of a square grid for another grid."""
  side = round((len(table) - tokens) ** 0.5)
  if side * side + tokens != len(table):
    raise ValueError(f'{where}: positions of {len(table) - tokens} patches are no square: give size= as trained')
  places = table[tokens:].reshape(side, side, -1)
  wanted = (*grid, places.shape[-1])
  resized = jax.jit(lambda x: jax.image.resize(x, wanted, 'cubic', antialias=True))(places)
  told = f'positions of {side}x{side} patches are interpolated to {grid[0]}x{grid[1]}'
  return np.concatenate([table[:tokens], np.asarray(resized).reshape(-1, places.shape[-1])]), told


def _fresh(module: Any, paths: Sequence[str], shapes: Mapping[str, tuple[int, ...]], key: Any) -> dict[str, np.ndarray]:
  """First values of what was not published: those of a dense layer."""
  key = jax.random.key(0) if key is None else key
  found = {}
  for path in paths:
    if not path.startswith(f'params/{module.classifier}/'):
      raise ValueError(f'no published tensor is known for {path!r} of {type(module).__name__}')
    draw = scaled_normal(1.0) if path.endswith('kernel') else jax.nn.initializers.zeros
    found[path] = np.asarray(draw(key, shapes[path], jnp.float32))
  return found
