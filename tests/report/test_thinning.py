"""Laws of thinned curves: a picture of what is kept is the picture of all, and a peak is never lost."""

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxlite.report import svg
from jaxlite.report.points import Points
from jaxlite.report.thinning import thinned

FLOATS = st.floats(-1e300, 1e300) | st.just(np.nan) | st.just(np.inf)


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(st.integers(1, 9), arrays.arrays(np.float64, st.integers(0, 300), elements=FLOATS), st.randoms())
def test_what_is_kept_covers_what_was_there(columns, y, random):
  x = np.sort([random.uniform(0, 100) for _ in y])
  kept_x, kept_y = thinned(x, y, columns)
  good = np.isfinite(y)
  pairs = set(zip(x[good].tolist(), y[good].tolist(), strict=True))
  assert set(zip(kept_x.tolist(), kept_y.tolist(), strict=True)) <= pairs
  assert len(kept_x) <= max(4 * columns, 4)
  assert (np.diff(kept_x) >= 0).all()
  if good.any():
    first, last = np.flatnonzero(good)[[0, -1]]
    assert (kept_x[0], kept_y[0]) == (x[first], y[first]) or len(kept_x) < len(x)
    assert (kept_x[0], kept_x[-1]) == (x[first], x[last])
    assert (kept_y.min(), kept_y.max()) == (y[good].min(), y[good].max())


def test_each_column_keeps_its_first_lowest_highest_and_last():
  random = np.random.default_rng(0)
  x, y = np.arange(10_000.0), random.normal(size=10_000)
  kept_x, kept_y = thinned(x, y, 50)
  place, kept = np.minimum((50 * x / x[-1]).astype(int), 49), np.minimum((50 * kept_x / x[-1]).astype(int), 49)
  for column in range(50):
    all_, some = y[place == column], kept_y[kept == column]
    assert (all_[0], all_[-1], all_.min(), all_.max()) == (some[0], some[-1], some.min(), some.max())
  again = thinned(kept_x, kept_y, 50)
  assert np.array_equal(again, (kept_x, kept_y))  # thinning twice changes nothing


def test_points_that_go_back_are_drawn_in_order():
  x, y = thinned([3, 1, 2], [30, 10, 20], 5)
  assert (x.tolist(), y.tolist()) == ([1, 2, 3], [10, 20, 30])
  assert [column.tolist() for column in thinned([5] * 100, range(100), 5)] == [[5, 5], [0, 99]]


@pytest.mark.parametrize(
  ('low', 'high'),
  [(0, 1), (0, 0), (5, 5), (-3, 7), (1e-9, 2e-9), (-1.7e308, 1.7e308), (0, 5e-324), (0.99, 1.0), (1e15, 1e15 + 2)],
)
def test_an_axis_has_round_numbers_and_shows_every_value(low, high):
  scale = svg.scale([[low, high]], 0, 100)
  ticks = scale.ticks(5)
  assert 2 <= len(ticks) <= 21
  assert sorted(ticks) == ticks
  assert np.isfinite(ticks).all()
  assert (scale([low, high]) >= 0).all()
  assert (scale([low, high]) <= 100).all()
  texts = [svg.number(tick, ticks[1] - ticks[0]) for tick in ticks]
  assert high - low < 1e-8 * abs(high) or len(set(texts)) == len(texts), texts
  assert max(map(len, texts)) <= 10


def test_a_logarithmic_axis_has_few_numbers_whatever_it_spans():
  for low, high in ((1e-3, 1), (1, 1e6), (1e-300, 1e300), (1, 30), (5e-324, 1)):
    ticks = svg.scale([[low, high]], 0, 100, log=True).ticks(5)
    assert 2 <= len(ticks) <= 7


def test_points_are_read_as_a_file_grows_and_again_where_it_was_cut(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  line = '{"kind": "train", "step": %d, "time": 1.5, "loss": %f, "other": "text", "yes": true}\n'
  path.write_text(line % (1, 0.5) + '{"kind": "tr')
  points = Points()
  assert points.follow(path)
  assert points.count == 1
  assert points.damaged == 0
  assert not points.follow(path)
  with path.open('a') as file:
    file.write('ain", "step": 2, "loss": NaN}\n[1]\nnonsense\n{"kind": 3}\n{"kind": "train", "step": 1e999}\n\n')
  assert points.follow(path)
  assert (points.count, points.damaged, points.step) == (2, 4, 2)
  assert points('train', 'loss')[0].tolist() == [1, 2]
  assert np.isnan(points.last('train', 'loss'))
  assert points.names('train') == ['loss']
  assert points.time == 1.5
  path.write_text(line % (7, 0.25))  # shorter: a resume cut it
  assert points.follow(path)
  assert (points.count, points.damaged) == (1, 0)
  assert points('train', 'loss')[1].tolist() == [0.25]
  with pytest.raises(FileNotFoundError):
    points.follow(tmp_path / 'none')


def test_hostile_points_are_counted_and_bounded():
  points = Points()
  assert not points.add({'kind': 'train', 'step': True})
  assert not points.add({'kind': 'train', 'step': 10**400})
  assert points.add({'kind': 'train', 'step': 1, 'loss': 10**400, **{f'm{index}': 1.0 for index in range(1000)}})
  assert len(points.names('train')) <= 256
