"""The forms that a run may take so that it fits: the same gradient where that is said; and changes that are built."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import join_const
from jaxlite.planning.edits import DRAWS, OTHER, ROUNDING, SAME, edited, edits, forms
from jaxlite.run import planning
from jaxlite.run.jobs import job_of
from jaxlite.run.micro_batches import labelled
from jaxlite.run.setup import prepare, shortened
from jaxlite.run.trial import Died, Source, asked
from jaxlite.step import gradient
from jaxlite.tasks.lift import lift_loss

pytestmark = pytest.mark.unoptimized


def networks():
  import flax.linen as nn

  class Net(nn.Module):
    norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
      for _ in range(8):
        x = nn.gelu(nn.Dense(16)(x.reshape(len(x), -1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train)(x) if self.norm else x
      return nn.Dense(3)(x)

  class Pictures(nn.Module):
    @nn.compact
    def __call__(self, x):
      for width in (4, 4, 8, 8, 8, 8, 8):
        x = nn.relu(nn.Conv(width, (3, 3))(x))
      return nn.Dense(3)(x.mean((1, 2)))

  return {
    'plain': (Net(), (6,)),
    'dropout': (Net(dropout=0.5), (6,)),
    'norm': (Net(norm=True), (6,)),
    'cnn': (Pictures(), (6, 6, 1)),
  }


def setup_of(tmp_path, kind, **fields):
  network, shape = networks()[kind]
  rng = np.random.default_rng(0)
  data = rng.normal(size=(200, *shape)).astype(np.float32), np.arange(200) % 3
  recipe = lambda config, total: jl.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))  # noqa: E731
  config = jl.Config(name='x', recipe=recipe, train=jl.Duration(epochs=2))
  config.data.batch_size = 32
  return prepare(edited(config, fields), tmp_path, network, data), network, data


def gradient_at(setup, state):
  inner = gradient.gradient_of(setup.train.model, setup.recipe.loss(lift_loss(jl.cross_entropy)))
  batch = jax.tree.map(jnp.asarray, setup.first_batch)
  take = setup.recipe.grad(inner)
  full = join_const(state.model_state, state.const)
  return jax.jit(take)(state.params, full, batch, state.key, state.step)[0]


TRIED = ({'machine.micro_batches': 4}, {'machine.remat': 4}, {'machine.micro_batches': 4, 'machine.remat': 4})


@pytest.mark.sampled(2)
@pytest.mark.parametrize('kind', ['plain', 'norm', 'dropout', pytest.param('cnn', marks=pytest.mark.slow)])
def test_every_form_gives_the_gradient_of_the_full_batch_where_it_says_so(tmp_path, kind):
  setup, network, _ = setup_of(tmp_path, kind)
  state = setup.train.init(jax.random.key(0), setup.first_batch)
  whole = gradient_at(setup, state)
  size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
  seen = set()
  for form in forms(setup.config, job_of(setup)):
    seen.add(form.result)
    fields = {path: value for path, value in form.fields.items() if path != 'eval.batch_size'}
    if fields not in (TRIED if kind == 'plain' else TRIED[:2]):  # fewer programs
      continue
    changed = prepare(edited(setup.config, form.fields), tmp_path, network, setup.data)
    found = gradient_at(changed, state)
    worst = max(
      float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True)
    )
    if form.result in (SAME, ROUNDING):
      assert worst <= 1e-5 * size, (form, worst, size)
    elif form.result == DRAWS:
      assert worst > 1e-5 * size, form  # else it is said of it for nothing
  assert (
    seen
    == {
      'plain': {SAME, ROUNDING},
      'cnn': {SAME, ROUNDING},
      'norm': {SAME, ROUNDING},
      'dropout': {SAME, ROUNDING, DRAWS},
    }[kind]
  )


def test_statistics_of_a_batch_are_never_taken_of_its_parts_by_a_form(tmp_path):
  setup, *_ = setup_of(tmp_path, 'norm')
  assert not [form for form in forms(setup.config, job_of(setup)) if 'machine.micro_batches' in form.fields]
  said = [edit for edit in edits(setup.config, job_of(setup)) if 'machine.micro_batches' in edit.fields]
  assert said
  assert {edit.result for edit in said} == {OTHER}  # it is told of, and not taken


def test_every_change_that_is_named_can_be_built_and_differs_in_its_fields_alone(tmp_path):
  setup, network, _ = setup_of(tmp_path, 'plain')
  for edit in edits(setup.config, job_of(setup)):
    changed = prepare(edited(setup.config, edit.fields), tmp_path, network, setup.data)
    assert changed.config != setup.config, edit
  names = [edit.name for edit in edits(setup.config, job_of(setup))]
  assert len(names) == len(set(names))


def test_a_loss_that_compares_the_examples_of_a_batch_is_found_out(tmp_path):
  def apart(outputs, batch):  # float[B], each against all others
    return jnp.square(outputs[:, None] - outputs[None]).sum((1, 2)) + jl.cross_entropy(outputs, batch)

  setup, network, data = setup_of(tmp_path, 'plain')
  assert planning.parts_agree(setup)
  config = dataclasses.replace(setup.config, loss=apart)
  other = prepare(config, tmp_path, network, data)
  assert not planning.parts_agree(other)
  # So `--mode=plan --changes`, and the advice to who has no memory, say it too.
  offered = edits(config, job_of(other))
  parted = [i for i, edit in enumerate(offered) if 'machine.micro_batches' in edit.fields]
  for made, room, result in ((setup, 1 << 40, ROUNDING), (other, 1 << 40, OTHER), (other, 0, ROUNDING)):
    said = labelled(made, offered, room)
    assert parted
    assert {said[i].result for i in parted} == {result}
    assert [edit._replace(result='') for edit in said] == [edit._replace(result='') for edit in offered]


def test_micro_batches_that_do_not_divide_the_batch_are_refused_with_both(tmp_path):
  with pytest.raises(ValueError, match=r'machine\.micro_batches divides data\.batch_size, 32; got 5'):
    setup_of(tmp_path, 'plain', **{'machine.micro_batches': 5})


def test_a_trial_is_of_the_same_programs_and_looks_at_less(tmp_path):
  setup, *_ = setup_of(tmp_path, 'plain', **{'eval.batch_size': 4})
  short = shortened(setup, 3)
  assert short.plan.total == 3
  assert short.train is setup.train
  assert len(short.data.validation.labels) == min(9, len(setup.data.validation.labels))
  assert len(setup.data.validation.labels) > 9
  assert shortened(setup, 10**6).plan.total == setup.plan.total


def test_a_run_goes_on_whose_form_was_found_and_its_network_is_opened_without_its_model(tmp_path):
  _, network, data = setup_of(tmp_path, 'plain')
  said = []
  config = jl.Config(name='x', train=jl.Duration(steps=6))
  config.data.batch_size, config.log.tensorboard = 32, False
  config = edited(config, {'machine.micro_batches': 2, 'machine.remat': 4})
  first = jl.train(config, tmp_path / 'run', model=network, data=data, say=said.append)
  longer = edited(config, {'train.steps': 8, 'machine.micro_batches': 1})
  jl.train(longer, tmp_path / 'run', model=network, data=data, say=said.append)
  assert 'resumed at step 6 of 8' in said
  assert any('machine.micro_batches: saved 2, now 1' in line for line in said)
  predicted = jl.load(tmp_path / 'run').predict(data[0][:3])
  assert np.asarray(predicted).shape == (3, 3)
  parts = [row[0] for row in first.parts]
  assert 'machine.remat' in parts
  assert 'machine.micro_batches' in parts


@pytest.mark.parametrize(
  ('said', 'kind'), [("a checkpoint (RuntimeError: can't start new thread)", Died), ('epochs are above 0', ValueError)]
)
def test_a_line_that_tells_of_memory_is_a_form_that_does_not_fit_and_any_other_is_what_is_wrong(tmp_path, said, kind):
  """Stacks of threads are refused first under a limit of the data segment, by whichever part starts one."""
  path = tmp_path / 'experiment.py'
  path.write_text(f'import jaxlite.errors\ndef get_config():\n  raise jaxlite.errors.ConfigError({said!r})\n')
  with pytest.raises(kind) as error:
    asked(Source(str(path), (), str(tmp_path), False, str(tmp_path / 'run')), '', 'outlook')
  assert said in str(error.value)
