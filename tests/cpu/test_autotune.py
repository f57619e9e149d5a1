"""Laws of the table of costs: timed once, remembered; what a run chose stands; damage and other machines are seen."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.cpu import autotune
from jaxlite.cpu.kernels import choose
from jaxlite.cpu.replace import for_cpu, sites
from jaxlite.cpu.site import Site
from jaxlite.run import loop
from networks import convnet


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch):
  """What holds without the extra; with it, test_onednn.py."""
  monkeypatch.setattr(choose, 'forms', lambda *_: {})


X = jax.ShapeDtypeStruct((64, 16, 16, 32), jnp.float32)
W = jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)


def gradient(x, w):
  conv = lambda w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))  # noqa: E731
  return jax.grad(lambda w: (conv(w) ** 2).sum())(w)


def found():
  return list(sites(jax.make_jaxpr(gradient)(X, W)).values())


def slow(x):
  return jax.lax.fori_loop(0, 300, lambda _, y: jnp.tanh(y), x)


def made_up(*, default='quick', flops=1e9, looped=False):
  """A site of which it is known what is fastest."""
  shape = jax.ShapeDtypeStruct((200, 200), jnp.float32)
  forms = {'quick': jnp.tanh, 'slow': slow}
  return Site('made up', f'made up {default}', (shape,), forms, default, slow, flops=flops, looped=looped)


def test_the_fastest_is_chosen_once_and_then_remembered(tmp_path, monkeypatch):
  first = autotune.choose([made_up(default='slow')], folder=tmp_path)
  assert first.table.choices == {'made up slow': 'quick'}
  assert '1 made up as quick (1 timed now)' in first.why
  monkeypatch.setattr(autotune, '_fastest', None)  # what is known is not timed again
  again = autotune.choose([made_up(default='slow')], folder=tmp_path)
  assert again.table == first.table
  assert '(0 timed now)' in again.why


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_site_of_any_precision_can_be_timed(dtype, tmp_path):
  site = made_up(default='slow')
  site = site._replace(operands=(jax.ShapeDtypeStruct((200, 200), dtype),))
  assert autotune.choose([site], folder=tmp_path).table.choices == {'made up slow': 'quick'}


def test_what_an_older_run_chose_stands_under_its_new_name(tmp_path):
  older = {'choices': {'made up quick': 'native'}, 'machine': autotune.machine()}
  (tmp_path / 'older').write_text(json.dumps(older))
  said = []
  assert autotune.settle(tmp_path / 'older', [made_up()], said.append) == {'made up quick': 'xla'}
  assert '1 made up as xla (0 timed now)' in said[0]


def test_a_run_keeps_its_choices_whatever_the_cache_says(tmp_path):
  autotune.choose([made_up(default='slow')], folder=tmp_path)
  kept = autotune.choose([made_up(default='slow')], {'made up slow': 'xla'}, folder=tmp_path)
  assert kept.table.choices == {'made up slow': 'xla'}


def test_no_time_or_nothing_to_gain_leaves_it_to_the_shape(tmp_path):
  assert autotune.choose([made_up(default='slow')], folder=tmp_path, seconds=0).table.choices == {
    'made up slow': 'slow'
  }
  assert autotune.choose([made_up(default='slow', flops=1e6)], folder=tmp_path).table.choices == {
    'made up slow': 'slow'
  }
  assert not list(tmp_path.iterdir())


def test_what_would_take_much_memory_to_time_is_left_to_the_shape_and_what_is_slow_is_timed_briefly(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(autotune, '_LARGE', 2 * 200 * 200 * 4 - 1)  # one operand and its result
  assert autotune.choose([made_up(default='slow')], folder=tmp_path).table.choices == {'made up slow': 'slow'}
  assert not list(tmp_path.iterdir())
  monkeypatch.undo()
  calls = []

  def counted(x):
    jax.debug.callback(lambda: calls.append(0))
    return jnp.tanh(x)

  monkeypatch.setattr(autotune, '_LONG', 0.0)
  site = made_up(default='slow')._replace(forms={'quick': counted, 'slow': slow})
  assert autotune.choose([site], folder=tmp_path).table.choices == {'made up slow': 'quick'}
  jax.effects_barrier()
  assert len(calls) == 1


@pytest.mark.parametrize(
  'text', ['', '{', '[]', '{"choices": 3, "machine": ""}', '{"choices": {"made up slow": "gone"}}']
)
def test_a_damaged_file_is_measured_anew_and_a_name_that_is_no_form_is_not_taken(text, tmp_path):
  (tmp_path / f'{autotune.machine()}.json').write_text(text)
  assert autotune.choose([made_up(default='slow')], folder=tmp_path).table.choices == {'made up slow': 'quick'}
  assert json.loads((tmp_path / f'{autotune.machine()}.json').read_text())['choices'] == {'made up slow': 'quick'}


def test_a_folder_that_cannot_be_written_costs_no_more_than_time(tmp_path):
  (tmp_path / 'file').write_text('')
  assert autotune.choose([made_up(default='slow')], folder=tmp_path / 'file').table.choices == {'made up slow': 'quick'}


def test_another_machine_is_told_in_a_line_and_its_choices_are_kept(tmp_path):
  path, said = tmp_path / 'rewrites.json', []
  autotune.write(path, autotune.Table({'made up quick': 'slow'}, 'another'))
  assert autotune.settle(path, [made_up()], said.append) == {'made up quick': 'slow'}
  assert said[0].startswith('note: the rewrites for CPU were chosen on another machine')
  assert autotune.read(path).machine == 'another'


def test_real_sites_can_be_timed(tmp_path):
  table = autotune.choose(found(), folder=tmp_path, seconds=30).table
  assert {*table.choices} == {site.key for site in found()}
  x, w = (jnp.asarray(np.random.default_rng(0).standard_normal(one.shape), jnp.float32) for one in (X, W))
  one, other = jax.jit(gradient)(x, w), for_cpu(gradient, table.choices)(x, w)
  np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * float(jnp.abs(one).max()))


def test_a_run_writes_its_choices_before_its_first_step_and_reads_them_back(tmp_path, monkeypatch):
  data = (np.random.default_rng(0).normal(size=(40, 4, 4, 1)).astype('float32'), np.arange(40) % 3)

  def run(folder, steps, **machine):
    config = jl.Config(
      name='x', recipe=lambda config, total: jl.chain(optax.adam(1e-2)), train=jl.Duration(steps=steps)
    )
    config.eval.every = config.checkpoint.every = jl.Duration(steps=2)
    config.data.batch_size = 8
    config.log.tensorboard = config.log.progress = False
    for name, value in machine.items():
      setattr(config.machine, name, value)
    said = []
    loop.train(config, folder, model=convnet(), data=data, say=said.append)
    return [line for line in said if 'rewrites' in line]

  assert run(tmp_path / 'off', 2, rewrites=False) == ['rewrites for CPU: none, as machine.rewrites says']
  (line,) = run(tmp_path / 'on', 2)
  assert line.startswith('rewrites for CPU: 1 convolution as xla, 1 weight gradient as xla')
  chosen = autotune.read(tmp_path / 'on' / 'rewrites.json')
  with monkeypatch.context() as patch:
    patch.setattr(autotune, 'machine', lambda: 'another')
    note, again = run(tmp_path / 'on', 4)
  assert 'another machine' in note
  assert again.partition(' (')[0] == line.partition(' (')[0]
  assert autotune.read(tmp_path / 'on' / 'rewrites.json') == chosen
  key = next(key for key in chosen.choices if key.startswith('weight gradient'))
  autotune.write(tmp_path / 'on' / 'rewrites.json', autotune.Table({key: 'channels_first'}, chosen.machine))
  note, again = run(tmp_path / 'on', 6)  # edited by hand: the choices that the run began with are in its checkpoints
  assert 'written again from the checkpoint' in note
  assert again.partition(' (')[0] == line.partition(' (')[0]
