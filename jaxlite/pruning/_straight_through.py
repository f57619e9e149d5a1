"""Straight-through pruning: the forward sees masked weights, all weights keep learning."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Account, Hook, Model, Params, State, Status, reparam
from jaxlite.errors import arrays, check_dict
from jaxlite.graph import alike
from jaxlite.graph.layouts import Layouts
from jaxlite.graph.model import _layouts
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._allocate import Allocate, erk
from jaxlite.pruning._choose_masks import Structures, draw, leaves_at, scores_of, targets
from jaxlite.pruning._mask_state import layouts_in, shortfall
from jaxlite.pruning._selection import left_out, maskable
from jaxlite.pruning._structure import element
from jaxlite.pruning.scores import Score, magnitude
from jaxlite.pruning.sparsity_schedules import Schedule, schedule_of


class StraightState(NamedTuple):
  """What `straight_through` keeps.

  Attributes:
    masks: by path, bool[...], True where a weight lives, or its bits (uint8).
    sparsity: float32[], the sparsity last asked of the masks.
    reached: bool[], whether masks of the target sparsity have been drawn.
    layouts: axes of the weights.
  """

  masks: dict[str, jax.Array]
  sparsity: jax.Array
  reached: jax.Array
  layouts: Layouts | None = None

  def account(self, params: Params) -> Account:
    """Tells how many weights are masked."""
    leaves = trees.by_path(params)
    size = {path: np.size(leaves.get(path, mask)) for path, mask in self.masks.items()}
    live = sum(int(np.sum(masking.bits(mask))) for mask in self.masks.values())
    masked = f'{sum(size.values()) - live:,} of {sum(size.values()):,} weights are masked'
    left = shortfall(self, begun=bool(np.any(self.sparsity))), left_out(self.layouts)
    return Account('', f'{arrays(self.masks)}; {masked}', '; '.join(filter(None, left)))

  def status(self) -> Status:
    """Tells whether masks of the target sparsity have been drawn."""
    return Status(self.reached)


def straight_through(
  sparsity: float,
  *,
  begin: int = 0,
  end: int | None = None,
  every: int = 1,
  initial: float = 0.0,
  select: trees.Rule = None,
  schedule: Schedule | None = None,
  score: Score = magnitude,
  structure: Structures = element,
  allocate: Allocate = erk,
  packed: bool = False,
  name: str = 'straight',
) -> Hook:
  """Masks weights on their way into the model while all of them keep learning, so that a dead one may come back.

  The gradient of a masked weight is that of the zero it was replaced by. Masks live in `model_state['jl.<name>']`
  and are drawn once an optimizer step, on the new weights. Exported weights are exactly zero.

  A dead weight learns blind: its gradient knows nothing of what it has become, so it goes on in one direction until a
  refresh shows it to the forward. Drawn anew each step, it comes alive at most one update beyond the weights that it
  displaces. With `every` above 1 it goes up to `every` updates beyond, and many come alive at once: that saves little
  time and costs accuracy, most with optimizers whose steps do not shrink with the gradient (Adam); the table of
  `experiments/techniques.py` has a row of it.

  Args:
    sparsity: the share of the selected weights that is zero, in [0, 1).
    begin: the first optimizer step that masks, counted from 0.
    end: the step at which the target is reached by the cubic schedule; None: at `begin` in full, and masks are
      drawn anew each `every` steps for ever.
    every: steps between refreshes; more than 1 lets dead weights run away, see above.
    initial: the sparsity at `begin` of a gradual schedule.
    select: a rule on paths; None takes the weights that the model's program shows.
    schedule: in place of `begin`, `end`, `every` and `initial`.
    score: (params, None) -> tree like params, non-negative: the largest live.
    structure: as in `prune`.
    allocate: as in `prune`.
    packed: keep masks as bits, 1/32 of float32 weights.
    name: the hook's name.

  Returns:
    A Hook on the model.

  Raises:
    ValueError: an argument outside its range; at init, no weight selected.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013,
    https://arxiv.org/abs/1308.3432
    Lin et al., Dynamic Model Pruning with Feedback, 2020, https://arxiv.org/abs/2006.07253

  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['w'], s
  >>> base = Model(lambda key, x: ({'w': jnp.array([[1.0, 4.0], [3.0, 2.0]])}, {}), apply)
  >>> model = straight_through(0.5).model(base)
  >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 2)))
  >>> params['w'].tolist(), model.export(params, state)[0]['w'].tolist()
  ([[1.0, 4.0], [3.0, 2.0]], [[0.0, 4.0], [3.0, 0.0]])
  """
  plan, sparsity = schedule_of(name, sparsity, begin, end, every, initial, schedule, usual=1)
  if schedule is None and end is None:  # dense weights go on changing, and so do the masks
    plan = plan._replace(due=lambda count: (count >= begin) & ((count - begin) % every == 0))
  slot = f'jl.{name}'

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      check_dict(params, name)
      chosen, layouts = maskable(params, select, _layouts(inner, params, state, inputs, key), what=name)
      dense = {path: jnp.ones(leaf.shape, bool) for path, leaf in leaves_at(params, chosen).items()}
      own = StraightState(
        {path: masking.pack(mask) if packed else mask for path, mask in dense.items()},
        jnp.zeros((), jnp.float32),
        jnp.zeros((), bool),
        layouts,
      )
      return params, refreshed(params, {**state, slot: own}, jnp.int32(0))

    def view(params: Params, state: State, **_: Any) -> Params:
      return see(params, state[slot].masks)

    def refreshed(params: Params, state: State, step: Any) -> State:
      own = state[slot]
      leaves = leaves_at(params, own.masks)
      goals = targets(leaves, layouts_in(own.layouts), sparsity, structure, allocate, what=name)

      def drawn(_: Any) -> Any:
        scores = scores_of(score, params, None, goals, what=name)
        found = draw(goals, scores, lambda goal: plan.at(step, goal), step >= plan.end)
        return {path: masking.pack(mask) if packed else mask for path, mask in found.items()}

      due = plan.due(step)
      _, masks = alike.once(due, drawn, own.masks)
      asked = jnp.where(due, plan.at(step, sparsity), own.sparsity)
      reached = own.reached | (due & (step >= plan.end))
      return {**state, slot: StraightState(masks, asked, reached, own.layouts)}

    wrapped = reparam(inner, name, lambda key, params, state: (params, state), view)

    def after(params: Params, state: State, step: Any) -> State:
      return wrapped.after(params, refreshed(params, state, step), step)

    return wrapped._replace(init=init, after=after)

  return Hook(name, model=model)


def see(params: Any, masks: Any) -> Any:
  """Returns params as a forward is to see them: zero where a mask says so, with the gradient of every weight kept.

  Args:
    params: any pytree of arrays.
    masks: masks by path, packed or not.

  >>> weights = jnp.array([2.0, 3.0])
  >>> loss = lambda w: jnp.sum(see({'w': w}, {'w': jnp.array([True, False])})['w'] ** 2)
  >>> loss(weights).item(), jax.grad(loss)(weights).tolist()
  (4.0, [4.0, 0.0])
  >>> shifted = lambda w: jnp.sum((see({'w': w}, {'w': jnp.array([True, False])})['w'] - 1) ** 2)
  >>> jax.grad(shifted)(weights).tolist()
  [2.0, -2.0]
  """

  def seen(path: str, weight: jax.Array) -> jax.Array:
    if path not in masks:
      return weight
    dead = jnp.where(masking.unpack(masks[path], weight.shape), jnp.zeros_like(weight), weight)
    return weight - jax.lax.stop_gradient(dead)  # w - 0 is w and w - w is +0, exactly

  return trees.map_with_path(seen, params)
