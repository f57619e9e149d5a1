"""Opening what a run made: its values in the model that trained, so that every transform sees a program of equations.

A sealed network (`stablehlo.py`) predicts and no more. With the model it is built again: the values of the checkpoint
as `Model.export` gives them, and around the model what the run itself put there (standardizing, the units of a
regression) and the hooks of `recipe`. That the right model was given is not believed but seen: on the same inputs it
must give what the stored program gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.adapters import adapt
from jaxlite.contract import CONST, POINT, Hook, Model, Network, Params, Recipe, Side, State, chain
from jaxlite.cpu.replace import exchanged
from jaxlite.deployment import stablehlo
from jaxlite.deployment.stablehlo import Stored
from jaxlite.errors import nearest
from jaxlite.optim import normalize, project
from jaxlite.tasks.task import Facts, Task
from jaxlite.version import __version__

_EXAMPLES = 4  # on which the stored program and the opened one are compared


def opened(
  stored: Stored, served: Mapping[str, Any], model: Any, recipe: Recipe | None, task: Task | None, facts: Facts
) -> Network:
  """Returns a run's values in its model.

  Args:
    stored: the forward that the run wrote.
    served: by path, the arrays that it reads.
    model: what was trained: a Model, or a network that `adapt` takes.
    recipe: its recipe, where the forward holds what its hooks do; without hooks, the weights as floats.
    task: the run's, None where nobody knows.
    facts: the run's.

  Raises:
    TypeError: the recipe is none.
    ValueError: the model or the recipe is another than the run's.
  """
  if recipe is not None and not isinstance(recipe, Recipe):
    raise TypeError(f'recipe= is what trained the run, a recipe from jl.chain(...); got {type(recipe).__name__}')
  made = stored.made
  if recipe is None and made.get('quantized'):
    raise ValueError(
      'this run computes in few bits, which its weights alone do not tell: give recipe= too, the one that trained it, '
      'or recipe=jl.chain() to take the weights as floats'
    )
  hooks = () if recipe is None else tuple(_of_model(recipe))
  own = stored.own(served)
  own = own if own is not None else {name: one for name, one in served.items() if not _is_hooks(name)}
  bare = adapt(model)
  within = getattr(bare.apply, 'around', ())  # a network that was itself loaded brings them
  wrapped = chain(*_around(stored, own, task, facts, within, hooks)).model(bare)
  params, state = _filled(wrapped, stored, own, served)
  network = _network(wrapped, stored, params, state, dict.fromkeys((*made.get('around', ()), *within)))
  if not (made.get('quantized') and recipe is not None and not hooks):  # weights as floats were asked for
    check_same(stored, served, network.predict, network.params, recipe)
  if hooks:
    _check_read(network, _examples(stored, served))
  return network


def reopened(stored: Stored, served: Mapping[str, Any], task: Task | None, facts: Facts) -> Network | None:
  """Returns what `opened` does of a reference network that the run names, None where it is sealed without being told.

  A run of few bits stays sealed: what computes its integers stands in its recipe.
  """
  made, module = stored.made, reference(stored)
  if made.get('quantized') or module is None:
    return None
  try:
    if not made.get('plain') or made.get('version') != __version__:
      return opened(stored, served, module, None, task, facts)
    own = stored.own(served) or {}
    wrapped = chain(*_around(stored, own, task, facts, (), ())).model(adapt(module))
    if stored.input_tree().num_leaves > 1 and 'normalize' in made['around']:  # statistics with None among them
      params, state = _filled(wrapped, stored, own, served)
    else:  # as the run wrote it: nothing is traced
      found = trees.nest(own)
      params, state = found['params'], found.get('model_state', {})
    return _network(_named(wrapped, stored), stored, params, state, made['around'])
  except Exception:  # a network of another version, or one that nobody wrote: what was stored still predicts
    return None


def _named(model: Model, stored: Stored) -> Model:
  """A model that a file named and nothing was traced of: where it does not run, the file is to blame."""

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    try:
      return model.apply(params, state, inputs, train=train, key=key, step=step)
    except Exception as error:  # of Flax, which has a class for each
      if train:
        raise
      told = (str(error).strip() or type(error).__name__).splitlines()[0]
      about = stored.path.with_suffix('.json')
      raise ValueError(f'{about} names a network that does not run on these values ({told[:200]})') from None

  return model._replace(apply=apply)


def reference(stored: Stored) -> Any:
  """Returns the network of `jaxlite.models` that a run says it was made of; None where it names none."""
  told = stored.made.get('network')
  if told is None:
    return None
  try:
    from jaxlite.models import saved
  except ImportError:  # no Flax: what was written predicts without it
    return None
  return saved.made(told)


def _network(model: Model, stored: Stored, params: Params, state: State, around: Any) -> Network:
  """A Network of these values, which takes raw inputs and says what is wrong with them."""

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    inputs = stablehlo.checked_inputs(stored, inputs)
    return model.apply(params, state, inputs, train=train, key=key, step=step)

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del key, inputs
    return params, state

  apply.compiled = exchanged  # type: ignore[attr-defined]  # on CPU the faster forms, as in the run's evaluation
  apply.checked = lambda inputs: stablehlo.checked_inputs(stored, inputs)  # type: ignore[attr-defined]  # for give_back
  apply.input_shapes = stablehlo.shapes_of(stored)  # type: ignore[attr-defined]
  apply.around = tuple(around)  # type: ignore[attr-defined]  # its inputs are raw: nobody standardizes them again
  apply.reduced = stored.made.get('reduced', '')  # type: ignore[attr-defined]  # the leaf that is, where one is
  apply.made_of = stored.made.get('network')  # type: ignore[attr-defined]
  return Network(Model(init, apply, model.after, model.export), params, state)


def _of_model(recipe: Recipe) -> list[Hook]:
  """The hooks of a recipe that change how the model runs when it does not train."""
  unchanged = Hook._field_defaults['model']
  return [
    part
    for part in recipe.parts
    if isinstance(part, Hook) and not isinstance(part, Side) and part.model is not unchanged
  ]


def _around(
  stored: Stored,
  own: Mapping[str, Any],
  task: Task | None,
  facts: Facts,
  within: tuple[str, ...],
  hooks: tuple[Hook, ...],
) -> list[Hook]:
  """The hooks around the model, outermost first: what the run put there, and between it the recipe's."""
  made = stored.made or {'around': _kept(own)}
  outer, inner = [], []
  of_task = task.hook(facts) if task is not None else None
  for name in made['around']:
    if name in within:
      continue
    if name == 'normalize':
      outer.append(normalize(*(_statistic(stored, own, one) for one in ('mean', 'std')), name=name))
    elif name == 'reduce':
      weight, mean = (own.get(f'model_state/{CONST}/{name}/{what}') for what in ('reduction', 'mean'))
      if weight is None:
        raise ValueError('the run brings its inputs to fewer features, and by which map is missing: train it again')
      inner.append(project(weight, mean, leaf=made.get('reduced', ''), name=name))
    elif of_task is not None and of_task.name == name:
      inner.append(of_task)
    else:
      raise ValueError(f'the task of this run has a part {name!r} around its model: give task=, the Task it was')
  return [*outer, *hooks, *inner]


def _kept(own: Mapping[str, Any]) -> list[str]:
  """The owners of constants among own values: of a run of an older version, the hooks around its model."""
  begin = f'model_state/{CONST}/'
  found = dict.fromkeys(name.removeprefix(begin).split('/')[0] for name in own if name.startswith(begin))
  return [name for name in found if name in ('normalize', 'units')]


def _statistic(stored: Stored, values: Mapping[str, Any], what: str) -> Any:
  """A mean or a deviation that inputs are standardized by: an array or a tree like the inputs, with None."""
  begin = f'model_state/{CONST}/normalize/{what}'
  if begin in values:
    return np.asarray(values[begin])
  names = trees.paths(jax.tree.unflatten(stored.input_tree(), stored.inputs()))
  found = [values.get(f'{begin}/{name}') for name in names]
  return jax.tree.unflatten(stored.input_tree(), [None if one is None else np.asarray(one) for one in found])


def _is_hooks(name: str) -> bool:
  kind, _, rest = name.partition('/')
  return trees.is_extra(rest) and not (kind == 'model_state' and rest.startswith(f'{CONST}/'))


def _filled(model: Model, stored: Stored, own: Mapping[str, Any], served: Mapping[str, Any]) -> tuple[Params, State]:
  """The values of a model: the network's own, and those of hooks as the run has them."""
  inputs = jax.tree.unflatten(stored.input_tree(), stored.inputs())
  params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
  names, kinds, treedef = trees.flatten({'params': params, 'model_state': state})
  point = f'model_state/{POINT}/'
  values = []
  for name, kind in zip(names, kinds, strict=True):
    value = own.get(name, served.get(name.replace('params/', point, 1), served.get(name)))
    path = name.partition('/')[2]
    if value is None:
      known = [one.partition('/')[2] for one in own]
      raise ValueError(
        f'this model has {path!r}, which the run has not; nearest: {nearest(path, known)}: give the model (and the '
        'recipe, where it has hooks) that was trained'
      )
    if value.shape != kind.shape or value.dtype != kind.dtype:
      got, want = (f'{one.dtype}{list(one.shape)}' for one in (kind, value))
      raise ValueError(f'{path!r} is {got} in this model and {want} in the run: give the model that was trained')
    values.append(value)
  extra = [name for name in own if name.startswith('params/') and name not in names and not _frozen(name, names)]
  if extra:
    path = extra[0].partition('/')[2]
    raise ValueError(f'the run trained {path!r}, which this model has not: give the model that was trained')
  found = treedef.unflatten(values)
  return found['params'], found['model_state']


def _frozen(name: str, names: list[str]) -> bool:
  path = name.partition('/')[2]
  return any(one.startswith(f'model_state/{CONST}/') and one.endswith(f'/{path}') for one in names)


def check_same(
  stored: Stored,
  served: Mapping[str, Any],
  run: Callable[[Any], Any],
  params: Params,
  recipe: Recipe | None = None,
) -> None:
  """Raises ValueError where another function gives other outputs than the stored program, beyond rounding.

  Args:
    stored: the program.
    served: its arrays by path.
    run: raw inputs [B, ...] -> outputs.
    params: of that function, whose dtypes say what rounding is.
    recipe: that was given beside the model, for what the error says.
  """
  inputs = _examples(stored, served)
  wanted = jax.tree.leaves(jax.device_get(stored.run(served, inputs)))
  found = jax.tree.leaves(jax.device_get(run(inputs)))
  shapes = [[np.shape(one) for one in side] for side in (wanted, found)]
  if shapes[0] != shapes[1]:
    raise ValueError(_unlike(recipe, f'outputs are {shapes[0][:3]}, this gives {shapes[1][:3]}'))
  for one, other in zip(wanted, found, strict=True):
    apart, most = _apart(np.asarray(one), np.asarray(other))
    if apart > _rounding(one, other, params) * most:
      raise ValueError(_unlike(recipe, f'outputs differ by {apart:.3g} where they are up to {most:.3g}'))


def _check_read(network: Network, inputs: Any) -> None:
  """Raises where predictions do not follow the weights that others would change: an average stands in their place."""
  moved = network._replace(params=jax.tree.map(lambda leaf: leaf * 2, network.params))
  same = jax.tree.map(np.array_equal, *(jax.device_get(one.predict(inputs)) for one in (network, moved)))
  if all(jax.tree.leaves(same)):
    raise ValueError(
      'with this recipe predictions do not follow the weights, so that nothing could be done with them: an average in '
      'it stands in their place; it is in the weights already: leave it out of recipe='
    )


def _unlike(recipe: Recipe | None, how: str) -> str:
  what = 'the model' if recipe is None else 'the model and the recipe'
  return f'this is not {what} that the run trained: on the same inputs {how}: give {what} that was trained'


def _examples(stored: Stored, served: Mapping[str, Any]) -> Any:
  """A few raw inputs such as a model may be given: around the mean that it standardizes by; ids that exist."""
  rng = np.random.default_rng(0)
  rows = stored.about['batch'] or _EXAMPLES
  tree = stored.input_tree()
  found, flat = [], []
  for what in ('mean', 'std'):
    one = _statistic(stored, served, what)
    whole = isinstance(one, np.ndarray)
    flat.append([one] * tree.num_leaves if whole else tree.flatten_up_to(one))
  for one, mean, std in zip(stored.inputs(), *flat, strict=True):
    shape, dtype = (rows, *one.shape[1:]), np.dtype(one.dtype)
    if dtype == np.bool_:
      found.append(np.ones(shape, bool))
    elif dtype == np.uint8:
      found.append(rng.integers(0, 256, shape).astype(np.uint8))
    elif np.issubdtype(dtype, np.integer):
      found.append(rng.integers(0, 2, shape).astype(dtype))
    else:
      drawn = rng.normal(size=shape)
      found.append((drawn if mean is None else drawn * std + mean).astype(dtype))
  return jax.tree.unflatten(stored.input_tree(), found)


def _apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
  """The largest difference of two outputs, and the largest of the first; NaN beside NaN is none."""
  wide = np.complex128 if np.iscomplexobj(one) or np.iscomplexobj(other) else np.float64
  one, other = one.astype(wide), other.astype(wide)
  both = np.isfinite(one) & np.isfinite(other)
  if not np.array_equal(np.isfinite(one), np.isfinite(other)):
    return float('inf'), float(np.abs(one[np.isfinite(one)]).max(initial=0.0))
  return float(np.abs(one - other)[both].max(initial=0.0)), float(np.abs(one[both]).max(initial=0.0))


def _rounding(one: Any, other: Any, params: Params) -> float:
  """How far two programs of the same equations may lie apart: the root of the coarsest dtype's unit."""
  dtypes = [leaf.dtype for leaf in (one, other, *jax.tree.leaves(params))]
  return max(float(jnp.finfo(dtype).eps) ** 0.5 for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact))
