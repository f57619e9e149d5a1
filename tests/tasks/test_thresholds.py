"""Laws of a wanted precision or recall: no cut serves it better, what cannot be had is refused, a run keeps it."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score

import jaxlite as jl
from jaxlite.run.setup import prepare
from jaxlite.tasks import Threshold, threshold_for
from jaxlite.tasks.tables import wilson
from loops import config_of, run

pytestmark = pytest.mark.unoptimized

EXAMPLES = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=14)


def shares(scores, labels, cut):
  called = scores >= cut
  return tuple(of(labels, called, zero_division=0) for of in (precision_score, recall_score))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(EXAMPLES, st.sampled_from([0.2, 0.5, 2 / 3, 0.9, 1.0]), st.sampled_from(['precision', 'recall', 'both', 'none']))
def test_no_cut_serves_a_wish_better_and_what_none_serves_is_refused(examples, wish, what):
  scores, labels = (np.array(column) for column in zip(*examples, strict=True))
  wishes = {'both': {'precision': wish, 'recall': wish}, 'none': {}}.get(what, {what: wish})
  if not labels.any():
    with pytest.raises(ValueError, match='there is none'):
      threshold_for(scores, labels, **wishes)
    return
  every = [shares(scores, labels, cut) for cut in np.unique(scores)]
  fit = [
    pair
    for pair in every
    if pair[0] >= wishes.get('precision', 0) - 1e-12 and pair[1] >= wishes.get('recall', 0) - 1e-12
  ]
  if not fit:
    with pytest.raises(ValueError, match='no threshold gives') as error:
      threshold_for(scores, labels, **wishes)
    near = float(re.search(r'nearest gives precision (\S+) and', str(error.value))[1])
    if what == 'precision':  # asking for what is told can be had
      assert threshold_for(scores, labels, precision=near - 1e-3).precision >= near - 1e-3
      assert abs(near - max(pair[0] for pair in every)) < 1e-3
    return
  cut = threshold_for(scores, labels, **wishes)
  assert (cut.precision, cut.recall) == pytest.approx(shares(scores, labels, cut.value), abs=1e-12)
  assert cut.called == (scores >= cut.value).sum()
  key = {
    'precision': lambda pair: (pair[1], pair[0]),
    'recall': lambda pair: pair,
  }.get(what, lambda pair: 2 * pair[0] * pair[1] / max(sum(pair), 1e-300))
  ours = key((cut.precision, cut.recall))
  assert np.all(np.array(ours) >= np.array(max(map(key, fit))) - 1e-9)


def test_several_labels_have_a_threshold_each_and_weights_count():
  rng = np.random.default_rng(0)
  scores, labels = rng.random((80, 3)), rng.random((80, 3)) < 0.4
  found = threshold_for(scores, labels, recall=0.7)
  assert found == [threshold_for(scores[:, label], labels[:, label], recall=0.7) for label in range(3)]
  times = rng.integers(0, 3, 80)
  weighted = threshold_for(scores[:, 0], labels[:, 0], recall=0.7, weight=times)
  twice = threshold_for(np.repeat(scores[:, 0], times), np.repeat(labels[:, 0], times), recall=0.7)
  assert weighted == twice
  assert found[0].recall_interval == wilson(found[0].recall, found[0].positives)
  with pytest.raises(ValueError, match='of label 1'):
    threshold_for(np.where([True, False, True], labels, -1.0 * labels), labels, precision=1.0)


@pytest.mark.parametrize(
  ('arguments', 'wishes', 'words'),
  [
    (([0.1, 0.2], [0, 2]), {}, '0 or 1'),
    (([0, 1], [0.1, 0.2]), {}, 'scores come first'),
    (([0.1, np.nan], [0, 1]), {}, 'example 1 has NaN'),
    (([0.1, 0.2], [0, 1, 1]), {}, r'\[N\] both'),
    (([[[0.1]]], [[[1]]]), {}, r'\[N\] both'),
    (([0.1, 0.2], [0, 1]), {'precision': 1.2}, 'above 0 and at most 1'),
    (([0.1, 0.2], [0, 1]), {'recall': '0.9'}, 'above 0 and at most 1'),
    (([0.1, 0.2], [0, 1]), {'weight': [-1, 1]}, 'at least 0'),
    (([], []), {}, 'there is none'),
  ],
)
def test_what_is_no_question_is_told(arguments, wishes, words):
  with pytest.raises(ValueError, match=words) as error:
    threshold_for(*arguments, **wishes)
  assert '\n' not in str(error.value)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6)).astype(np.float32)
Y = (X[:, 0] + 0.7 * RNG.normal(size=400) > 1).astype(int)


def test_a_run_keeps_the_threshold_that_its_config_wants_and_tells_its_interval(tmp_path):
  task = lambda: jl.tasks.binary(class_names=['no', 'yes'])  # noqa: E731
  model = (lambda p, x: x @ p['w'], {'w': np.zeros((6, 1), np.float32)})
  data = jl.data.from_arrays((X, Y), task=task, validation=0.3, test=0.3)
  result = run(tmp_path, data=data, model=model, task=task, eval__recall=0.9)
  assert result.facts['wanted'] == {'recall': 0.9}
  network = jl.load(tmp_path)
  proba = network.predict_proba(data.validation.inputs)
  cut = threshold_for(proba, data.validation.labels, recall=0.9)
  assert abs(cut.value - result.facts['threshold']) < 1e-6
  called = network.predict_labels(data.test.inputs) == 'yes'
  assert called.sum() == (network.predict_proba(data.test.inputs) >= result.facts['threshold']).sum()
  assert recall_score(data.test.labels, called) == pytest.approx(result.metrics['recall'])
  low, high = (100 * end for end in wilson(result.metrics['recall'], data.test.labels.sum()))
  told = json.loads((tmp_path / 'result.json').read_text())
  assert any(f'{low:.1f} to {high:.1f} %' in row for table in told['tables'] for row in table)
  assert f'{low:.1f} to {high:.1f} %' in (tmp_path / 'report.md').read_text()


def test_a_wish_that_cannot_be_met_is_told_and_one_that_says_nothing_refused(tmp_path):
  task, said = jl.tasks.binary, []
  noise = RNG.integers(0, 2, 400)
  data = jl.data.from_arrays((X, noise), task=task, validation=0.3)
  model = lambda: (lambda p, x: x @ p['w'], {'w': np.zeros((6, 1), np.float32)})  # noqa: E731
  result = run(tmp_path / 'a', data=data, model=model(), task=task, eval__precision=1.0, steps=2, say=said.append)
  assert any('precision 1 cannot be reached on the validation split' in line for line in said)
  assert any('cannot be reached' in note for note in result.notes)
  bare = jl.data.from_arrays((X, Y), task=task, validation=0)
  with pytest.raises(ValueError, match=r'jl\.tasks\.binary or'):
    run(tmp_path / 'b', data=(X, Y), eval__precision=0.9)
  with pytest.raises(ValueError, match='ask for different thresholds'):
    run(tmp_path / 'c', data=jl.data.from_arrays((X, Y), task=lambda: task(recall=0.5)), eval__precision=0.9)
  with pytest.raises(ValueError, match=r'eval.recall is in \(0, 1\]'):
    run(tmp_path / 'd', data=bare, eval__recall=0.0)
  notes = prepare(config_of(task=task, eval__precision=0.9), tmp_path / 'e', model(), bare).notes
  assert any('no validation split is held out to choose a threshold by' in note for note in notes)
  assert isinstance(threshold_for([1.0], [1]), Threshold)
