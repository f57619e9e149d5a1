"""Whoever wrote a part, it accounts for itself: in the ledger, to the guards, for the scores and for the dispatch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import Account, Status
from jaxlite.run import guards
from jaxlite.step.train_step import train_step
from loops import points, run

pytestmark = pytest.mark.unoptimized

# --- a stranger's parts, as somebody writes them who read the contract -----------------------------------------------


class GoalState(NamedTuple):
  """State of `goal`: updates done, those it wants, scores heard, and values that somebody broke."""

  count: jax.Array
  wanted: jax.Array
  heard: jax.Array
  broken: jax.Array

  def account(self, params):
    short = '' if np.all(self.count >= self.wanted) else f'it had {int(np.max(self.count))} of its updates'
    return Account(f'{int(np.max(self.count))} updates of mine', 'the bias', short)

  def status(self):
    return Status(self.count >= self.wanted, self.broken)

  def hear(self, score):
    return self._replace(heard=self.heard + 1)


def start(wanted, broken=0):
  return GoalState(*(jnp.int32(value) for value in (0, wanted, 0, broken)))


def goal(wanted, broken=0):
  """An update part that changes nothing and has a goal."""

  def init(params):
    return start(wanted, broken)

  def update(updates, state, params=None):
    return updates, state._replace(count=state.count + 1)

  return optax.GradientTransformation(init, update)


def watcher(wanted, **fields):
  """A hook with a state of its own that follows the steps."""

  def model(inner):
    def init(key, inputs):
      params, state = inner.init(key, inputs)
      return params, {**state, 'jl.watcher': {'mine': start(wanted)}}

    def after(params, state, step):
      moved = state['jl.watcher']['mine']._replace(count=jnp.asarray(step, jnp.int32))
      return inner.after(params, {**state, 'jl.watcher': {'mine': moved}}, step)

    return inner._replace(init=init, after=after)

  return jl.Hook('watcher', model=model, **fields)


def falling(count):
  """Learns for six steps, then unlearns: the best by validation comes early."""
  return jnp.where(count < 6, 0.5, -2.0)


def trained(folder, *parts, **fields):
  said = []
  hooks = [part for part in parts if isinstance(part, jl.Hook)]
  updates = [part for part in parts if not isinstance(part, jl.Hook)]

  def recipe(config, total):
    return jl.chain(*hooks, optax.sgd(falling), *updates)

  result = run(folder, recipe, say=said.append, **fields)
  return result, [line for line in said if line.startswith('warning')], {row[0]: row for row in result.parts}


@pytest.mark.parametrize('part', [goal, watcher])
def test_a_strangers_goal_stops_a_false_best_model(part, tmp_path):
  result, said, rows = trained(tmp_path, part(8))
  scores = {point['step']: point['accuracy'] for point in points(tmp_path) if point['kind'] == 'validation'}
  assert max(scores, key=scores.get) < 8  # else this shows nothing
  assert result.best_step == max((step for step in scores if step >= 8), key=lambda step: scores[step])
  assert said == []
  assert rows[part.__name__][1:] == [f'{result.best_step} updates of mine', 'the bias', '']


@pytest.mark.parametrize('part', [goal, watcher])
def test_a_strangers_unmet_goal_is_said_and_the_last_model_counts(part, tmp_path):
  result, said, rows = trained(tmp_path, part(50))
  assert result.best_step == 12
  assert said == [f'warning: {part.__name__}: it had 12 of its updates']
  assert rows[part.__name__][3] == 'it had 12 of its updates'
  assert 'it had 12 of its updates' in (tmp_path / 'report.md').read_text()


def test_what_another_part_broke_stops_the_run_with_the_name_of_the_part(tmp_path):
  with pytest.raises(ValueError, match=r'^another part wrote to 3 values that goal holds: make goal the last part'):
    trained(tmp_path, goal(0, broken=3))


def test_states_hear_scores_wherever_they_are():
  class Outer(NamedTuple):
    inner: Any
    told: jax.Array

    def hear(self, score):
      return self._replace(told=jnp.asarray(score))

  tree = {'jl.x': [start(1)], 'opt': (Outer(start(2), jnp.float32(0)), jnp.ones(2))}
  new = jl.optim.observe_score(tree, 0.5)
  assert [int(node.heard) for node in trees.able(new, 'status')] == [1, 1]
  assert float(new['opt'][0].told) == 0.5
  assert jax.tree.structure(new) == jax.tree.structure(tree)


def test_a_hooks_own_account_is_asked_with_what_the_run_made(tmp_path):
  asked = {}

  def account(network, bare, inputs):
    asked.update(
      network=network, inputs=inputs, outputs=bare.apply(network.params, {}, inputs, train=False, key=None)[0]
    )
    return Account('now and then', 'nothing', 'the rest')

  _, said, rows = trained(tmp_path, jl.Hook('mine', account=account), watcher(0, account=account), steps=2)
  assert rows['mine'] == ['mine', 'now and then', 'nothing', 'the rest']
  assert rows['watcher'] == ['watcher', '2 updates of mine; now and then', 'the bias; nothing', 'the rest']
  assert said == []  # a hook's account is for the ledger
  assert 'normalize' in asked['network'].model_state['jl.const']
  assert asked['outputs'].shape == (16, 3)


def test_a_states_of_several_models_answer_for_all_of_them():
  states = jax.vmap(lambda wanted: start(0)._replace(wanted=wanted))(jnp.arange(3))
  several = jl.step.TrainState(jnp.int32(0), None, {}, {}, (states, optax.EmptyState()), {})
  assert not guards.complete(several)
  assert guards.complete(several._replace(opt_state=(states._replace(count=jnp.full(3, 2)),)))
  recipe = jl.chain(goal(0), optax.sgd(1.0))
  with pytest.raises(ValueError, match='another part wrote to 5 values that goal holds'):
    guards.check_unbroken(recipe, several._replace(opt_state=(states._replace(broken=jnp.array([0, 2, 3])),)))
  axes = jax.vmap(lambda scale: jl.prune(0.5, begin=2).init({'w': scale * jnp.ones((2, 2))}))(jnp.arange(2.0))
  assert axes.status().reached.shape == (2,)
  assert axes.account({'w': jnp.ones((2, 2, 2))}).left == 'it masked nothing: its begin was not reached'


@pytest.mark.parametrize('dispatches', [False, True])
def test_a_strangers_hook_that_dispatches_is_called_outside_a_trace_where_the_model_convolves(dispatches):
  traced = []

  def grad(inner):
    def twice(params, state, batch, key, step):
      traced.append(isinstance(step, jax.core.Tracer))
      return inner(params, state, batch, key, step)

    return twice

  def apply(params, x):
    out = jax.lax.conv_general_dilated(x, params['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return out.mean((1, 2))

  model = jl.from_function(apply, {'w': jnp.ones((1, 1, 1, 2))})
  batch = {'inputs': np.ones((2, 2, 2, 1), np.float32), 'labels': np.zeros(2, np.int32)}
  train = train_step(
    model, jl.cross_entropy, jl.chain(jl.Hook('twice', grad=grad, dispatches=dispatches), optax.sgd(1))
  )
  train.step(train.init(jax.random.key(0), batch), batch)
  assert traced == [not dispatches]


# --- our own, by the same questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['prune', 'straight'])
@pytest.mark.parametrize('end', [8, 50])
def test_no_model_short_of_its_sparsity_is_the_best_and_an_unmet_target_is_said(kind, end, tmp_path):
  part = jl.prune(0.5, end=end, every=1) if kind == 'prune' else jl.pruning.straight_through(0.5, end=end)
  result, said, rows = trained(tmp_path, part)
  if end == 8:
    assert result.best_step >= end
    assert result.sparsity == 0.5
    assert said == []
    assert rows[kind][3] == ''
  else:
    assert result.best_step == 12
    (line,) = said
    assert line.startswith(f'warning: {kind}: its target was not reached: masks stand at sparsity 0.')
    assert line.endswith(rows[kind][3])


def test_a_plateau_without_a_validation_is_said(tmp_path):
  _, said, _ = trained(tmp_path, jl.optim.plateau(), steps=2, data__validation=0.0)
  assert said == ['warning: plateau: it heard no score, so it never lowered the rate: validate, or leave it out']
