"""What is learned, in one value: the loop, the report and the data ask a `Task` and know nothing past it.

A Task says what labels are and checks them, which loss is minimized, what is measured and which number picks the best
model, and how results are shown. What it needs to know of the data (how many classes, the spread of the targets) are
**facts**: plain JSON values that `facts` reads off the training labels, that the other functions are given, and that
are saved with the run, so that a loaded model answers in the user's terms.

A task of your own names a loss and a metric; every other field has a default:

>>> import jax.numpy as jnp
>>> from jaxlite.tasks.metrics import means
>>> def error(outputs, batch):
...   return jnp.abs(outputs[:, 0] - batch['labels'])
>>> mine = Task('mine', loss=lambda facts: error, metrics=lambda facts: means(mae=error), score='mae', falls=('mae',))
>>> mine.better('mae'), mine.better('loss')
(-1, -1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.tasks.metrics import Metrics

Facts = dict[str, Any]  # JSON values
LossFn = Callable[[Any, Mapping[str, Any]], Any]


class Figure(NamedTuple):
  """A picture of a result.

  Attributes:
    slug: its file's name, without the ending.
    caption: one sentence without its full stop.
    draw: () -> a matplotlib figure; called only when pictures are written.
  """

  slug: str
  caption: str
  draw: Callable[[], Any]


class Answers(NamedTuple):
  """What a model answered, example by example, for the report.

  Attributes:
    wrong: float[N], how wrong each answer is: larger is worse, 0 is right; NaN is worst.
    right: bool[N], whether it is right; None where it is more or less so.
    sure: float[N], the probability that the model gave its own answer; None where it gave none.
    told: (index) -> an answer in words: 'true', 'predicted', and in 'told' what else there is to say.
  """

  wrong: np.ndarray
  right: np.ndarray | None
  sure: np.ndarray | None
  told: Callable[[int], dict[str, str]]


def _numbers(values: Any, where: str) -> np.ndarray:
  array = np.asarray(values)
  if array.dtype.kind not in 'biuf':
    raise ValueError(f'labels are numbers; {where} has dtype {array.dtype}: encode them, or give the task a check')
  return array.astype(np.int32) if array.dtype.kind in 'biu' else array.astype(np.float32)


class Task(NamedTuple):
  """A kind of task. `labels` below are [N, ...] on the host, `outputs` what the model returns for a batch.

  Attributes:
    name: what it is called in reports and in a run's folder.
    loss: (facts) -> loss, (outputs, batch) -> float[B]. One that compares examples sees those of a batch, of
      evaluation's as well; the last batch is filled up with other examples at weight 0, which it sees too.
    metrics: (facts) -> Metrics.
    score: the metric that picks the best model, unless `eval.metric` names another.
    falls: the metrics that are better when smaller; 'loss' always is.
    check: (labels, where) -> labels of the right dtype and shape; raises ValueError naming the split `where`.
    facts: (labels of the training split, given) -> Facts. `given` are the facts that the user stated ('classes',
      'class_names', 'target_names', ...), checked and completed here; what is not known raises ValueError.
    check_facts: (labels, facts, where) -> None; raises where the labels of any split do not fit the facts.
    notes: (labels of the training split, facts) -> lines that a person should read before training.
    doubts: (labels, facts, the metric that picks the best model) -> lines on a metric that these labels mislead.
    weight: (labels) -> float32[N] or None: how many labeled positions an example has, where it has several (tokens,
      pixels). An example's loss is the mean over its own positions and its weight their number, so that every
      position counts alike, whatever the batches. None: every example counts once.
    groups: (labels) -> int[N] or None: what a carved split keeps the shares of; None draws at random.
    distribution: outputs are logits over classes of which one is right (an example's, a position's); parts that read
      them so, such as `kd` and `label_smoothing`, are refused where they are not.
    hook: (facts) -> a Hook that stands innermost in the recipe (the units of a regression), or None.
    decide: (kept, facts) -> facts to add, chosen on the validation split after training (a threshold). `kept` is what
      `Metrics.keep` gave for it.
    answer: (outputs, facts) -> what a user wants of a prediction, by name: 'labels' (names or values) and where there
      is one 'proba'; NumPy arrays with one example per row.
    answers: (kept, facts) -> Answers, of what `Metrics.keep` gave for the test split: the report shows the worst, and
      compares runs example by example. None where single examples are not looked at.
    rows: the lines of the result's table: (label, metric, form), form 'percent' or a format such as '{:.4f}'.
    interval: of the rows' metrics one that is a share of independent examples, whose total is that of 'confusion': the
      report gives its 95 % interval. '' where there is none.
    curve: (title, metric, form) of the validation curve that is drawn beside the loss.
    tables: (values, facts) -> tables of the report, each a list of rows of cells; `values` is what compute gave.
    figures: (values, facts, title) -> Figures of the report.
  """

  name: str
  loss: Callable[[Facts], LossFn]
  metrics: Callable[[Facts], Metrics]
  score: str
  falls: tuple[str, ...] = ('loss',)
  check: Callable[[Any, str], np.ndarray] = _numbers
  facts: Callable[[np.ndarray, Mapping[str, Any]], Facts] = lambda labels, given: dict(given)
  check_facts: Callable[[np.ndarray, Facts, str], None] = lambda labels, facts, where: None
  notes: Callable[[np.ndarray, Facts], Sequence[str]] = lambda labels, facts: ()
  doubts: Callable[[np.ndarray, Facts, str], Sequence[str]] = lambda labels, facts, score: ()
  weight: Callable[[np.ndarray], np.ndarray | None] = lambda labels: None
  groups: Callable[[np.ndarray], np.ndarray | None] = lambda labels: None
  distribution: bool = True
  hook: Callable[[Facts], Any] = lambda facts: None
  decide: Callable[[Any, Facts], Facts] = lambda kept, facts: {}
  answer: Callable[[np.ndarray, Facts], dict[str, Any]] = lambda outputs, facts: {'labels': outputs}
  answers: Callable[[Any, Facts], Answers | None] = lambda kept, facts: None
  rows: tuple[tuple[str, str, str], ...] = ()
  interval: str = ''
  curve: tuple[str, str, str] | None = None
  tables: Callable[[Mapping[str, Any], Facts], list[list[list[str]]]] = lambda values, facts: []
  figures: Callable[[Mapping[str, Any], Facts, str], list[Figure]] = lambda values, facts, title: []

  def better(self, metric: str) -> int:
    """Returns 1 where a larger value of this metric is better, -1 where a smaller one is."""
    return -1 if metric == 'loss' or metric in self.falls else 1
