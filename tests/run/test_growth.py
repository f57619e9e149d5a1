"""A run over more classes than a matrix is legible for: small files, and the numbers of scikit-learn."""

import json

import numpy as np
import optax
import sklearn.metrics as sk

import jaxlite as jl
from jaxlite.run.evaluation import _left_out

CLASSES = 700


def test_a_run_of_many_classes_writes_little_and_says_what_it_leaves_out(tmp_path):
  random = np.random.default_rng(0)
  inputs = random.normal(size=(900, 6)).astype(np.float32)
  labels = random.integers(0, 40, 900)
  config = jl.Config(name='many', recipe=lambda config, total: jl.chain(optax.adam(0.05)))
  config.train, config.log.progress, config.log.tensorboard = jl.Duration(steps=30), False, False
  config.eval.batch_size = 37
  model = jl.from_function(lambda p, x: x @ p['w'], {'w': random.normal(size=(6, CLASSES)).astype(np.float32)})
  data = jl.data.from_arrays((inputs, labels), classes=CLASSES)
  result = jl.train(config, tmp_path, model=model, data=data, say=lambda line: None)
  predicted = jl.load(tmp_path).predict(data.test.inputs).argmax(axis=1)
  assert np.isclose(result.metrics['accuracy'], sk.accuracy_score(data.test.labels, predicted), rtol=1e-12)
  wanted = sk.f1_score(data.test.labels, predicted, labels=range(CLASSES), average='macro', zero_division=0)
  assert np.isclose(result.metrics['f1_macro'], wanted, rtol=1e-12)
  wrong = np.stack([data.test.labels, predicted])[:, data.test.labels != predicted]
  pairs, counts = np.unique(wrong, axis=1, return_counts=True)
  assert result.evidence['confused_of'] == [len(counts), counts.sum()]
  rows = result.evidence['confused']
  assert [row[2] for row in rows] == sorted(counts.tolist(), reverse=True)[:100]
  assert set(map(tuple, rows)) <= set(zip(*pairs.tolist(), counts.tolist(), strict=True))
  assert 'confusion' not in result.evidence
  report = (tmp_path / 'report.md').read_text()
  assert f'the 20 heaviest of {len(counts)} pairs confused' in report
  assert f'a matrix of {CLASSES} classes would not be legible' in report
  assert (tmp_path / 'confused.png').exists()
  assert max(path.stat().st_size for path in tmp_path.iterdir() if path.suffix in ('.json', '.jsonl', '.md')) < 100_000
  saved = json.loads((tmp_path / 'result.json').read_text())
  assert 'history' not in saved
  again = jl.train(config, tmp_path, model=model, data=data, say=lambda line: None)
  assert again == result
  assert len(again.history) > 1


def test_an_array_that_a_result_does_not_keep_is_told():
  (line,) = _left_out({'accuracy': 0.5, 'small': np.zeros(9), 'each': np.zeros((300, 300))})
  assert line == 'result.json leaves each out, [300, 300]: it keeps arrays of up to 65,536 values'
