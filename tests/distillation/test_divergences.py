"""Distillation losses equal their published formulas, computed in float64 NumPy, and never turn into NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.contract import Context
from jaxlite.distillation._attention_transfer import attention_transfer
from jaxlite.distillation._dist import dist
from jaxlite.distillation._dkd import dkd
from jaxlite.distillation._kd import kd
from jaxlite.distillation._rkd import rkd
from jaxlite.distillation._teachers import term

pytestmark = pytest.mark.unoptimized

# --- published formulas ------------------------------------------------------------------------------------------


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(log_p, log_q):
  p = np.exp(log_p)
  return np.where(p > 0, p * (log_p - log_q), 0).sum(-1)


def kd_published(student, teacher, t):
  """Hinton et al.: the cross-entropy of softened outputs less the teacher's own entropy, times T squared."""
  return t * t * kl(log_softmax(teacher / t), log_softmax(student / t))


def dkd_published(student, teacher, labels, t, alpha, beta):
  """Zhao et al., eq. 6 and 7: KL of (p_t, 1 - p_t), and KL of the others renormalized among themselves."""
  result = np.zeros(len(labels))
  for i, label in enumerate(labels):
    parts = []
    for z in (student[i] / t, teacher[i] / t):
      z = z - z.max()
      others = np.delete(z, label)
      top = others.max()
      rest = top + np.log(np.exp(others - top).sum())
      parts.append((log_softmax(np.array([z[label], rest])), log_softmax(others)))
    (binary_s, others_s), (binary_t, others_t) = parts
    result[i] = t * t * (alpha * kl(binary_t, binary_s) + beta * kl(others_t, others_s))
  return result


def dist_published(student, teacher, t, beta, gamma):
  """Huang et al., eq. 8 to 10: Pearson's distance of rows and of columns of the two matrices of probabilities."""
  p, q = np.exp(log_softmax(teacher / t)), np.exp(log_softmax(student / t))
  rows = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
  columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
  return t * t * (beta * rows + gamma * columns)


def rkd_published(student, teacher, distance, angle):
  """Park et al., eq. 5 to 8: sums over ordered pairs and triples of distinct examples, divided by their number."""

  def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5

  count = len(student)
  spaces = [np.asarray(s, np.float64).reshape(count, -1) for s in (student, teacher)]
  pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
  lengths = [np.array([np.linalg.norm(s[i] - s[j]) for i, j in pairs]) for s in spaces]
  far = [huber(one - other) for one, other in zip(*(a / a.mean() for a in lengths), strict=True)]
  bent = []
  for j in range(count):
    for i in range(count):
      for k in range(count):
        if len({i, j, k}) == 3:
          cosines = []
          for s in spaces:
            a, b = s[i] - s[j], s[k] - s[j]
            cosines.append(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
          bent.append(huber(cosines[0] - cosines[1]))
  return distance * np.mean(far) + angle * np.mean(bent)


def attention_published(student, teacher, power):
  """Zagoruyko and Komodakis, F_sum^p of each, normalized; the authors' code means the squared difference."""

  def attention(a):
    flat = (np.abs(a.astype(np.float64)) ** power).sum(-1).reshape(len(a), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)

  return ((attention(student) - attention(teacher)) ** 2).mean(1)


# --- the functions equal them ------------------------------------------------------------------------------------

SIZES = ((1, 2), (5, 3), (8, 10))
kd_fast = jax.jit(kd)
dkd_fast = jax.jit(dkd, static_argnames=('alpha', 'beta'))
dist_fast = jax.jit(dist, static_argnames=('beta', 'gamma'))
rkd_fast = jax.jit(rkd, static_argnames=('distance', 'angle'))
attention_fast = jax.jit(attention_transfer, static_argnames='power')


def cases(seed, count, *, most=1e3):
  """Logits of all sizes, from nearly equal to nearly certain, in float32 and bfloat16."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    size = SIZES[rng.integers(len(SIZES))]
    scale = 10.0 ** rng.uniform(-3, np.log10(most), (2, size[0], 1))
    dtype = jnp.float32 if rng.random() < 0.7 else jnp.bfloat16
    pair = [jnp.asarray(rng.normal(size=size) * s, dtype) for s in scale]
    labels = rng.integers(0, size[1], size[0])
    yield rng, *pair, labels, float(10.0 ** rng.uniform(-0.5, 1.3))


def close(got, wanted, *arrays, t):
  """To float32's rounding of the largest number that enters."""
  assert got.dtype == jnp.float32
  assert np.isfinite(got).all()
  largest = max(1.0, *(np.abs(np.asarray(a, np.float64)).max() / t for a in arrays))
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=4e-6 * t * t * largest)


def test_kd_equals_its_published_formula():
  for _, student, teacher, _, t in cases(0, 200):
    wanted = kd_published(*(np.asarray(a, np.float64) for a in (student, teacher)), t)
    close(kd_fast(student, teacher, temperature=t), wanted, student, teacher, t=t)


def test_dkd_equals_its_published_formula():
  for _, student, teacher, labels, t in cases(1, 200):
    wanted = dkd_published(*(np.asarray(a, np.float64) for a in (student, teacher)), labels, t, 1.0, 2.0)
    got = dkd_fast(student, teacher, jnp.asarray(labels), alpha=1.0, beta=2.0, temperature=t)
    close(got, wanted, student, teacher, t=t)


def test_dkd_with_the_teachers_own_weight_is_kd():
  rng = np.random.default_rng(2)
  student, teacher = (jnp.asarray(rng.normal(size=(6, 4)) * 3, jnp.float32) for _ in range(2))
  labels = jnp.asarray(rng.integers(0, 4, 6))
  own = jax.nn.softmax(teacher / 2.0)[jnp.arange(6), labels]
  parts = [dkd_fast(student, teacher, labels, alpha=a, beta=b, temperature=2.0) for a, b in ((1.0, 0.0), (0.0, 1.0))]
  np.testing.assert_allclose(parts[0] + (1 - own) * parts[1], kd_fast(student, teacher, temperature=2.0), rtol=2e-5)


def test_dist_equals_its_published_formula():
  rng = np.random.default_rng(3)
  for t in (1.0, 4.0):
    student, teacher = rng.normal(size=(2, 7, 5)) * 2
    got = dist_fast(jnp.asarray(student), jnp.asarray(teacher), beta=2.0, gamma=3.0, temperature=t)
    np.testing.assert_allclose(got, dist_published(student, teacher, t, 2.0, 3.0), rtol=1e-4, atol=1e-5 * t * t)


def test_rkd_equals_its_published_formula():
  rng = np.random.default_rng(4)
  student, teacher = rng.normal(size=(6, 3)), rng.normal(size=(6, 2, 5)) * 40
  for distance, angle in ((1.0, 2.0), (25.0, 0.0), (0.0, 50.0)):
    got = rkd_fast(jnp.asarray(student), jnp.asarray(teacher), distance=distance, angle=angle)
    np.testing.assert_allclose(got.mean(), rkd_published(student, teacher, distance, angle), rtol=1e-4)


def test_attention_transfer_equals_its_published_formula():
  rng = np.random.default_rng(5)
  student, teacher = rng.normal(size=(3, 4, 2, 6)), rng.normal(size=(3, 4, 2, 3)) * 50
  for power in (1, 2, 4):
    got = attention_fast(jnp.asarray(student), jnp.asarray(teacher), power=power)
    np.testing.assert_allclose(got, attention_published(student, teacher, power), rtol=1e-4, atol=1e-7)


# --- whatever comes, no NaN ----------------------------------------------------------------------------------------

LOSSES = {
  'kd': lambda s, t: kd(s, t),
  'dkd': lambda s, t: dkd(s, t, jnp.zeros(len(s), int)),
  'dist': dist,
  'rkd': rkd,
  'attention_transfer': lambda s, t: attention_transfer(s[:, :, None], t[:, :, None]),
}


def valued(loss):
  return jax.jit(lambda s, t: (loss(s, t), jax.grad(lambda s: loss(s, t).sum())(s)))


@pytest.mark.parametrize('name', LOSSES)
def test_values_and_gradients_are_finite_for_all_finite_logits(name):
  both = valued(LOSSES[name])
  rows = [[0, 0, 0], [1e30, -1e30, 0], [-3e38, 3e38, 0], [88, 89, -1e4], [1e-40, -1e-40, 0], [5, 5, 5]]
  for shift in range(len(rows)):
    student, teacher = jnp.array(rows, jnp.float32), jnp.array(rows[shift:] + rows[:shift], jnp.float32)
    if name in ('rkd',):  # distances of 1e30 beside those of 1: relative to the largest all others vanish, finitely
      student, teacher = student.clip(-1e30, 1e30), teacher.clip(-1e30, 1e30)
    value, gradient = both(student, teacher)
    assert value.shape == (6,)
    assert not np.isnan(value).any()
    assert np.isfinite(gradient).all()
    assert (np.asarray(value) >= -1e-4).all()


@pytest.mark.parametrize('name', ['kd', 'dkd'])
def test_a_class_that_both_rule_out_adds_nothing(name):
  both = valued(LOSSES[name])
  student, teacher = jnp.array([[1.0, 2.0, 0.5]]), jnp.array([[0.3, 0.2, 0.7]])
  without = both(student, teacher)
  ruled_out = [jnp.concatenate([a, jnp.full((1, 1), -jnp.inf)], 1) for a in (student, teacher)]
  value, gradient = both(*ruled_out)
  np.testing.assert_allclose(value, without[0], rtol=1e-6)
  np.testing.assert_allclose(gradient[:, :3], without[1], rtol=1e-5)
  alone = jnp.array([[1.0, -jnp.inf, -jnp.inf]])  # nothing but the label is left
  value, gradient = both(alone, alone)
  assert float(value[0]) == 0.0
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('name', LOSSES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name):
  logits = jnp.asarray(np.random.default_rng(6).normal(size=(6, 3)) * 5, jnp.float32)
  value, gradient = valued(LOSSES[name])(logits, logits)
  np.testing.assert_allclose(value, 0, atol=2e-6)
  np.testing.assert_allclose(gradient, 0, atol=2e-5)


@pytest.mark.parametrize('loss', [dist_fast, rkd_fast])
def test_padding_stands_in_no_relation(loss):
  rng = np.random.default_rng(7)
  student, teacher = rng.normal(size=(2, 8, 3)).astype(np.float32)
  real = loss(jnp.asarray(student[:6]), jnp.asarray(teacher[:6]))
  student[6:], teacher[6:] = np.nan, 1e9
  padded = loss(jnp.asarray(student), jnp.asarray(teacher), weight=jnp.array([1.0] * 6 + [0.0] * 2))
  np.testing.assert_allclose(padded[:6], real, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: kd(jnp.ones((2, 3)), jnp.ones((2, 4))), 'same classes'),
    (lambda: dkd(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.zeros(2, int)), 'same classes'),
    (lambda: kd(jnp.ones((4, 1)), jnp.zeros((4, 1))), r'at least two classes; got logits \[4, 1\]'),
    (lambda: dkd(jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.zeros(2, int)), 'at least two classes'),
    (lambda: dkd(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 3))), 'integer label'),
    (lambda: dkd(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.zeros(3, int)), r'got int32\[3\]'),
    (lambda: dist(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4))), r'float\[B, classes\]'),
    (lambda: rkd(jnp.ones((2, 3)), jnp.ones((3, 3))), 'same examples'),
    (lambda: rkd(jnp.ones((2, 3)), jnp.ones((2, 3)), weight=jnp.ones((2, 1))), r'rkd: weight .* got \[2, 1\]'),
    (lambda: dist(jnp.ones((2, 3)), jnp.ones((2, 3)), weight=jnp.ones(1)), r'dist: weight .* got \[1\]'),
    (lambda: kd(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=0), 'kd: temperature is above 0 and finite; got 0'),
    (lambda: kd(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=-2.0), 'kd: temperature is above 0'),
    (lambda: dkd(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.zeros(2, int), temperature=np.nan), 'dkd: temperature'),
    (lambda: dist(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=0.0), 'dist: temperature is above 0'),
    (lambda: kd(jnp.ones((2, 3)) * 1j, jnp.ones((2, 3))), 'logits are real; the student gives complex64'),
    (lambda: attention_transfer(jnp.ones((2, 4, 3)), jnp.ones((2, 5, 3))), 'one resolution'),
    (lambda: attention_transfer(jnp.ones((2, 3)), jnp.ones((2, 3))), 'compares positions'),
    (lambda: attention_transfer(jnp.ones((2, 4, 3)), jnp.ones((2, 4, 3)), power=0), 'at least 1'),
    (lambda: attention_transfer(jnp.ones((2, 4, 3)), jnp.ones((2, 4, 3)), power=np.nan), 'at least 1; got nan'),
  ],
)
def test_mistakes_are_told_in_one_line(call, message):
  with pytest.raises(ValueError, match=message) as raised:
    call()
  assert '\n' not in str(raised.value)


def test_a_label_that_is_no_class_is_seen_and_reaches_no_other_gradient():
  student, teacher = jnp.array([[1.0, 2.0, 3.0]] * 4), jnp.array([[3.0, 1.0, 0.0]] * 4)
  labels = jnp.array([0, -1, 3, 2])
  assert np.isnan(dkd(student, teacher, labels)).tolist() == [False, True, True, False]
  real = jnp.array([True, False, False, True])
  slope = jax.grad(lambda student: jnp.sum(jnp.where(real, dkd(student, teacher, labels), 0)))(student)
  alone = jax.grad(lambda student: jnp.sum(dkd(student, teacher[:2], labels[jnp.array([0, 3])])))(student[:2])
  np.testing.assert_allclose(slope[jnp.array([0, 3])], alone, rtol=1e-6)
  assert not np.any(slope[1:3])


def test_a_traced_temperature_is_one_number_and_that_of_a_plain_one():
  student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 1.0, 0.0]])
  traced = jax.jit(lambda temperature: kd(student, teacher, temperature=temperature))
  np.testing.assert_allclose(traced(3.0), kd(student, teacher, temperature=3.0), rtol=1e-6)
  with pytest.raises(ValueError, match=r'kd: temperature is one number; got float32\[2, 1\]'):
    traced(jnp.ones((2, 1)))


def test_lists_are_taken_and_ranks_need_not_be_promoted():
  rows, other = [[1.0, 2.0], [0.5, -1.0]], [[0.0, 1.0], [2.0, 1.0]]
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    for loss in (kd, dist, rkd, lambda student, teacher: dkd(student, teacher, [0, 1])):
      found = loss(rows, other)
      np.testing.assert_array_equal(found, loss(jnp.array(rows), jnp.array(other)))
      assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(
      attention_transfer([rows], [other]), attention_transfer(*map(jnp.array, ([rows], [other])))
    )


def test_positions_without_a_label_teach_nothing():
  rng = np.random.default_rng(3)
  student, teacher = (jnp.asarray(rng.normal(size=(3, 5, 4)).astype(np.float32)) for _ in range(2))
  labels = jnp.array([[1, 2, 3, 0, 1], [2, -1, -1, -1, 0], [-1] * 5])
  batch = {'labels': labels, 'weight': jnp.array([5.0, 2.0, 0.0])}
  labeled = labels >= 0
  wanted = jnp.sum(jnp.where(labeled, kd(student, teacher), 0)) / 7  # every token counts alike, as in the task's loss
  for loss in (kd, functools.partial(dkd, beta=2.0)):
    told = lambda logits: term(loss, logits, teacher, Context(logits, batch, {}, {}, None, 0), 'distill')  # noqa: B023, E731
    if loss is kd:
      np.testing.assert_allclose(told(student), wanted, rtol=1e-6)
    slope = jax.grad(told)(student)
    assert np.all(np.isfinite(slope))
    assert not np.any(slope[~np.asarray(labeled)])
    assert np.all(slope[0] != 0)
