"""Language: the next token at every position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.errors import whole
from jaxlite.tasks.confusions import predictions
from jaxlite.tasks.counting import PLACES, carry, count, number, position_weight, with_weight
from jaxlite.tasks.labels import check_range, position_labels, stated
from jaxlite.tasks.metrics import Metrics, means
from jaxlite.tasks.positions import check_positions, position_cross_entropy, positions, unlabeled
from jaxlite.tasks.task import Facts, Task

_BASE = means()


class LanguageState(NamedTuple):
  """Sums so far, in digits (see `counting`).

  Attributes:
    sums: uint32[5, 4], tokens, those that were right, those whose outputs are NaN, and bytes.
    loss: the state of `means()`.
  """

  sums: jax.Array
  loss: Any


def language(vocabulary: int | None = None, token_bytes: Sequence[int] | None = None) -> Task:
  """Learns the next token; the model returns logits at every position, float[B, T, vocabulary].

  The label of a position is the token that follows it. Every labeled token counts alike: an example's loss is the
  mean over its own labeled tokens and its weight their number, so the numbers do not depend on how texts are cut into
  batches, nor on padding.

  Args:
    vocabulary: how many token ids there are; None takes the largest label and one.
    token_bytes: how many bytes of text each token id stands for, in [0, 65535]; with it bits per byte are measured,
      which compare models of different vocabularies.

  Returns:
    The Task. Labels are int[N, T], -1 where nothing is to be predicted. Facts: 'vocabulary', and 'token_bytes' where
    known. Metrics, per token: 'loss' in nats, 'perplexity', 'accuracy' and, where bytes are known, 'bits_per_byte'.
    The best model is that of the lowest loss. `answer` gives the likeliest next token at every position.

  Raises:
    ValueError: from `check` and `facts`, labels that are no token ids.

  >>> task = language(vocabulary=3)
  >>> labels = task.check([[1, 2, -1]], 'train')
  >>> task.weight(labels).tolist(), task.loss({'vocabulary': 3})(jnp.zeros((1, 3, 3)), {'labels': labels}).round(4)
  ([2.0], Array([1.0986], dtype=float32))
  """

  def facts(labels: np.ndarray, given: Mapping[str, Any]) -> Facts:
    said = stated(given, vocabulary=vocabulary, token_bytes=token_bytes)
    lengths = said.get('token_bytes')
    size = said.get('vocabulary')
    size = (len(lengths) if lengths is not None else int(labels.max(initial=0)) + 1) if size is None else size
    size = whole(size, 'vocabulary', least=1)
    if lengths is None:
      return {'vocabulary': size}
    known = np.asarray(lengths)
    if known.shape != (size,) or known.dtype.kind not in 'iu' or known.min() < 0 or known.max() > 65535:
      raise ValueError(f'token_bytes is int[{size}], how many bytes each token stands for; got {known.dtype}'
                       f'{list(known.shape)}')  # fmt: skip
    return {'vocabulary': size, 'token_bytes': known.tolist()}

  return Task(
    'language',
    loss=lambda facts: (
      lambda outputs, batch: position_cross_entropy(*check_positions(outputs, batch, facts['vocabulary']))
    ),
    metrics=_metrics,
    score='loss',
    falls=('loss', 'perplexity', 'bits_per_byte', 'nan_outputs'),
    check=lambda labels, where: position_labels(labels, where, '[N, T]'),
    facts=facts,
    check_facts=lambda labels, facts, where: check_range(labels, facts['vocabulary'], where, 'vocabulary'),
    notes=lambda labels, facts: unlabeled(labels, 'token'),
    weight=positions,
    answer=lambda outputs, facts: {'labels': np.asarray(outputs).argmax(axis=-1).astype(np.int32)},
    rows=(
      ('test loss a token, nats', 'loss', '{:.4f}'),
      ('perplexity', 'perplexity', '{:.4g}'),
      ('bits per byte', 'bits_per_byte', '{:.4f}'),
      ('next token right', 'accuracy', 'percent'),
      ('test tokens whose outputs are NaN', 'nan_outputs', '{:g}'),
    ),
    curve=('Validation perplexity', 'perplexity', '{:.4g}'),
  )


def _metrics(facts: Facts) -> Metrics:
  size = facts['vocabulary']
  lengths = np.asarray(facts['token_bytes'], np.int32) if 'token_bytes' in facts else None

  def init() -> LanguageState:
    return LanguageState(jnp.zeros((PLACES, 4), jnp.uint32), _BASE.init())

  def update(state: LanguageState, outputs: Any, batch: Mapping[str, Any], loss: Any) -> LanguageState:
    logits, labels = check_positions(outputs, batch, size)
    batch = with_weight(batch, labels)
    weight = position_weight(labels, batch).reshape(-1)
    place, nan = predictions(logits)
    right = (place == labels) & ~nan
    stand_for = jnp.zeros_like(labels) if lengths is None else jnp.asarray(lengths)[jnp.clip(labels, 0, size - 1)]
    columns = (jnp.ones_like(right), right, nan, stand_for)
    sums = jnp.stack([count(weight, column.reshape(-1)) for column in columns], axis=1)
    return LanguageState(carry(state.sums + sums), _BASE.update(state.loss, outputs, batch, loss))

  def compute(state: LanguageState) -> dict[str, Any]:
    loss = _BASE.compute(state.loss)['loss']
    tokens, right, nan, total_bytes = number(state.sums)
    values = {'loss': loss, 'perplexity': math.exp(loss) if not loss > 709 else math.inf, 'accuracy': right / tokens}
    if lengths is not None:
      values['bits_per_byte'] = loss * tokens / math.log(2) / total_bytes if total_bytes else math.nan
    if nan:
      values['nan_outputs'] = nan
    return {name: float(value) for name, value in values.items()}

  names = ('loss', 'perplexity', 'accuracy') + (() if lengths is None else ('bits_per_byte',))
  return Metrics(names, init, update, compute)
