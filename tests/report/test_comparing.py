"""Laws of comparing: intervals and tests are SciPy's, and none is told where it does not hold."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

import sample_runs as samples
from jaxlite.report import comparing
from jaxlite.report.found import FINISHED, STOPPED, Run
from jaxlite.report.points import Points


def run(name, right, *, seed=0, lr=0, tested='a0', program='p', state=FINISHED):
  made = samples.result(name, right, tested=tested)
  return Run(name, name, state, Points(), made, {'name': name, 'seed': seed, 'optim': {'lr': lr}}, program=program)


def by_seed(shares, **more):
  """Groups, one a learning rate, of runs, one a seed, with these accuracies."""
  return [
    run(f'lr{lr}-{seed}', np.arange(1000) < 1000 * share, seed=seed, lr=lr, **more)
    for lr, group in enumerate(shares)
    for seed, share in enumerate(group)
  ]


@pytest.mark.parametrize('count', [2, 3, 5, 20])
def test_the_test_over_seeds_is_the_paired_t_test(count):
  random = np.random.default_rng(count)
  one, other = random.normal(0.9, 0.01, count), random.normal(0.91, 0.01, count)
  expected = scipy.stats.ttest_rel(other, one)
  assert comparing.t_test(other - one) == pytest.approx(expected.pvalue, rel=1e-9)
  ends = expected.confidence_interval(0.95)
  assert comparing.mean_interval(other - one) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_differences_without_spread_are_told_as_they_are():
  assert comparing.t_test([0.0, 0.0]) == 1.0
  assert comparing.t_test([0.01, 0.01, 0.01]) == 0.0
  assert np.isnan(comparing.mean_interval([0.5])).all()


def test_the_test_over_examples_is_mcnemars_exact_one():
  for lost, won in ((0, 0), (1, 9), (5, 5), (40, 60), (0, 6)):
    expected = scipy.stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert comparing.mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)


def test_mcnemars_interval_holds_the_true_difference_about_as_often_as_it_says():
  random = np.random.default_rng(0)
  count, inside = 400, 0
  for _ in range(1000):
    hard = random.random(count)
    first, other = hard < 0.85, hard + random.normal(0, 0.03, count) < 0.88
    low, high = comparing._matched(int((first & ~other).sum()), int((other & ~first).sum()), count)
    inside += low <= 0.03 - 0.0002 <= high  # hard + noise < 0.88 has about that share
  assert 0.92 < inside / 1000 < 0.99


def test_holms_adjustment_is_the_step_down_one():
  values = [0.04, 0.001, np.nan, 0.03]
  assert np.allclose(comparing.holm(values), [0.06, 0.003, np.nan, 0.06], equal_nan=True)
  assert comparing.holm([0.9, 0.8]) == [1.0, 1.0]
  assert comparing.holm([]) == []


def test_runs_that_differ_in_their_seed_are_pooled_and_paired():
  found = comparing.compare(by_seed([[0.90, 0.91, 0.92], [0.93, 0.95, 0.94], [0.90, 0.92, 0.91]]))
  (first, means), (second, tests) = found.tables
  assert 'mean over seeds' in first
  assert 'paired by seed (t-test)' in second
  assert [row[:3] for row in means[1:]] == [
    ['lr0 (3 seeds)', '3', '91.00 %'], ['lr1 (3 seeds)', '3', '94.00 %'], ['lr2 (3 seeds)', '3', '91.00 %']
  ]  # fmt: skip
  expected = scipy.stats.ttest_rel([0.93, 0.95, 0.94], [0.90, 0.91, 0.92]).pvalue
  assert tests[1][1:2] + tests[1][3:] == ['+3.00 points', '3', f'{2 * expected:.2g}']  # of two, by Holm
  assert tests[0][-1] == 'p, adjusted'


def test_one_seed_in_common_is_no_test():
  runs = by_seed([[0.9, 0.91], [0.95]])
  found = comparing.compare(runs)
  assert found.tables[1][1][1][1] == 'not tested: one seed in common, and it takes two'
  assert 'beyond chance' not in ' '.join(found.notes)
  two = comparing.compare(by_seed([[0.9, 0.91], [0.95, 0.93]]))
  assert 'Two seeds leave one degree of freedom: only very large differences show.' in two.notes


def test_other_test_sets_are_no_pairs():
  one, other = by_seed([[0.9, 0.91]]), by_seed([[0.95, 0.94]], tested='b1')
  other = [each._replace(config={**each.config, 'optim': {'lr': 9}}) for each in other]
  assert comparing.compare([*one, *other]).tables[1][1][1][1] == 'not tested: the test sets differ'
  folds = [run(f'fold{index}', np.arange(1000) < 900, tested=f'fold{index}') for index in range(3)]
  tables, notes = comparing.compare(folds)  # one config, one seed: but none is another again
  assert (tables, notes) == ([], ['The runs were tested on different examples, so no two of them are compared.'])
  mixed = comparing.compare([one[0], other[0], run('third', np.arange(1000) < 800, lr=5)])
  assert [row[1] for row in mixed.tables[0][1][1:]] == ['not tested: the test sets differ', '-10.00 points']
  old = [each._replace(result=dataclasses.replace(each.result, tested='')) for each in one]
  assert 'an older run does not tell' in comparing.compare([*old, *other]).tables[1][1][1][1]


def test_a_test_split_that_is_drawn_by_the_seed_is_paired_within_it():
  runs = by_seed([[0.90, 0.91], [0.93, 0.95]])
  for each in runs:
    each.result.tested = f'carved{each.config["seed"]}'
  (_, means), (_, tests) = comparing.compare(runs).tables
  assert [row[1] for row in means[1:]] == ['2', '2']
  assert tests[1][1] == '+3.50 points'


def test_equal_configs_of_other_programs_are_not_pooled():
  """A recipe is a function of one name whatever stands in its body: what tells is the program."""
  runs = by_seed([[0.9, 0.91]])
  groups, _ = comparing.grouped([runs[0], runs[1]._replace(program='q')])
  assert [len(group.runs) for group in groups] == [1, 1]
  groups, _ = comparing.grouped(runs)
  assert [len(group.runs) for group in groups] == [2]


def test_a_seed_that_comes_twice_counts_once_and_is_told():
  runs = by_seed([[0.9, 0.91]])
  copy = runs[0]._replace(name='copy')
  groups, told = comparing.grouped([*runs, copy])
  assert [len(group.runs) for group in groups] == [2]
  assert told == ['copy is lr0-0 again, of the same seed: it is not counted twice']
  copies = [runs[0]._replace(name=f'copy{index}') for index in range(9)]
  _, told = comparing.grouped([*runs, *copies])  # a line, however many
  assert told == ['copy0, copy1, copy2 and 6 more are lr0-0 again, of the same seed: they are not counted twice']
  assert comparing.compare([runs[0], copy]) == ([], ['copy is lr0-0 again, of the same seed: it is not counted twice'])


def test_single_runs_are_compared_example_by_example():
  a = np.arange(1000) < 900
  b = a.copy()
  b[900:930], b[:5] = True, False
  found = comparing.compare([run('a', a), run('b', b, lr=1)])
  caption, rows = found.tables[0]
  assert 'exact test of McNemar' in caption
  expected = scipy.stats.binomtest(5, 35).pvalue
  assert rows[1][:2] == ['b', '+2.50 points']
  assert rows[1][3:] == [
    '35',
    f'{expected:.2g}' if expected > 1e-4 else '< 0.0001',
  ]
  assert any('train each with several seeds' in note for note in found.notes)


def test_what_cannot_be_compared_is_left_out_aloud():
  right = np.arange(1000) < 900
  bare = run('old', right)
  bare = bare._replace(result=dataclasses.replace(bare.result, right=''))
  assert comparing.compare([run('a', right)]) == ([], [])
  assert comparing.compare([run('a', right), run('b', right, state=STOPPED)]) == ([], [])
  found = comparing.compare([run('a', right), bare._replace(config={**bare.config, 'optim': {'lr': 2}})])
  assert 'does not tell which examples' in found.tables[0][1][1][1]
  lost = run('lost', right, lr=3)
  lost.result.metrics['accuracy'] = float('nan')
  assert '1 of 2 finished runs have no finite test accuracy' in comparing.compare([run('a', right), lost]).notes[0]
