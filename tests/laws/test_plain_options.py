"""Law: an option may come as any kind of number and acts as Python's own; a traced one is refused with the reason."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import distillation, optim, pruning, quantization
from jaxlite.distillation._teachers import own_temperature

TEACHER = jl.Network(jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.ones((3, 2))}), {'w': jnp.ones((3, 2))}, {})
PARTS = {
  'prune sparsity': (pruning.prune, 0.5),
  'prune initial': (lambda v: pruning.prune(0.9, end=9, initial=v), 0.5),
  'prune end': (lambda v: pruning.prune(0.9, end=v), 3),
  'rigl': (lambda v: pruning.rigl(optax.sgd(0.1), v, end=9), 0.5),
  'rigl fraction': (lambda v: pruning.rigl(optax.sgd(0.1), 0.5, end=9, fraction=v), 0.5),
  'straight through': (pruning.straight_through, 0.5),
  'rules': (lambda v: pruning.sparsify({'w': jnp.ones((4, 4))}, 0.0, allocate={'w': v}), 0.5),
  'floor': (lambda v: pruning.global_(floor=v), 0.5),
  'two of four': (lambda v: pruning.n_m(v, 4), 2),
  'bits': (lambda v: quantization.fake_quant(bits=v), 4),
  'a pair of bits': (lambda v: quantization.lsq(bits=(v, None)), 4),
  'ema': (quantization.ema_ranges, 0.5),
  'percent': (quantization.by_percentile, 99.5),
  'few bits': (quantization.few_bits, 0.5),
  'rank': (optim.lora, 2),
  'alpha': (lambda v: optim.lora(2, v), 2.0),
  'average': (optim.average, 0.5),
  'l1': (lambda v: optim.l1_proximal(v, 0.1), 0.5),
  'l2': (optim.l2, 0.5),
  'smoothing': (optim.label_smoothing, 0.5),
  'mixup': (lambda v: optim.mixup(v, 2), 0.5),
  'jitter': (lambda v: optim.color_jitter(hue=v), 0.5),
  'crop': (lambda v: optim.random_resized_crop(4, scale=(v, 1.0)), 0.5),
  'sam': (optim.sam, 0.5),
  'plateau': (lambda v: optim.plateau(patience=v), 3),
  'accumulate': (optim.accumulate, 2),
  'alpha of a teacher': (lambda v: distillation.distill(TEACHER, alpha=v), 0.5),
  'temperature': (lambda v: distillation.distill(TEACHER, temperature=v), 0.5),
  'scale of a hint': (lambda v: distillation.hint(TEACHER, {'w': 'w'}, scale=v), 0.5),
}


@pytest.mark.parametrize('name', PARTS)
def test_any_kind_of_number_is_taken_and_a_traced_one_is_not(name):
  make, value = PARTS[name]
  own = np.float32 if isinstance(value, float) else np.int32
  for kind in (own, np.array, jnp.asarray):
    make(kind(value))
  for wrong in (True, str(value), [value], None if name not in ('alpha', 'prune end', 'temperature') else 'none'):
    with pytest.raises((TypeError, ValueError)):
      make(wrong)

  def traced(value):
    with pytest.raises(TypeError, match='plain number; got a traced value'):
      make(value)
    return value

  jax.make_jaxpr(traced)(value)


def test_numpys_numbers_widen_nothing():
  params = {'w': jnp.arange(12, dtype=jnp.bfloat16).reshape(4, 3)}
  batch = {'inputs': jnp.ones((2, 4), jnp.bfloat16), 'labels': jnp.zeros(2, jnp.int32)}

  def trained(number):
    parts = optim.sam(number(0.5)), optim.l2(number(0.5)), optax.sgd(0.1), pruning.prune(number(0.5))
    train = jl.train_step(jl.from_function(lambda p, x: x @ p['w'], params), jl.cross_entropy, jl.chain(*parts))
    return train.step(train.init(jax.random.key(0), batch), batch)

  plain, others = trained(float), trained(np.float64)
  jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other, strict=True), plain[1], others[1])
  assert plain[0].params['w'].dtype == others[0].params['w'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(plain[0].params['w'], others[0].params['w'])


@pytest.mark.parametrize('kind', [int, float, np.float32, jnp.array])
def test_a_temperature_that_a_divergence_brings_is_read_whatever_its_kind(kind):
  assert own_temperature(functools.partial(distillation.kd, temperature=kind(4))) == 4
