"""What the numbered variables of a Keras file are: `conv2d/0` is the kernel, `conv2d/1` the bias.

A `.weights.h5` file numbers a layer's variables in the order in which the layer made them, and tells the layer's own
name beside. What each is follows from how many there are and how many axes they have; where it does not, the number
stays, and a rule names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxlite.finetuning.weights import Weights

_NORM = ('gamma', 'beta', 'moving_mean', 'moving_variance')


def by_meaning(held: Weights) -> dict[str, str]:
  """Returns names that say what a variable is, by the name in the file; {} for files of others.

  >>> import numpy as np
  >>> from jaxlite.finetuning.weights import stored
  >>> arrays = {'dense/0': stored(np.ones((3, 2))), 'dense/1': stored(np.ones(2))}
  >>> by_meaning(Weights(arrays, where='a.h5', form='keras', about={'names': {'dense/0': 'head', 'dense/1': 'head'}}))
  {'dense/0': 'head/kernel', 'dense/1': 'head/bias'}
  """
  if held.form != 'keras' or held.about.get('legacy'):
    return {}
  groups: dict[str, list[str]] = {}
  for name in held:
    parent, _, last = name.rpartition('/')
    if last.isdigit():
      groups.setdefault(parent, []).append(name)
  owners = held.about.get('names', {})
  told = {}
  for parent, found in groups.items():
    found = sorted(found, key=lambda name: int(name.rpartition('/')[2]))
    words = _words([len(held.shape(name)) for name in found])
    above, _, last = parent.rpartition('/')
    module = '/'.join(part for part in (above, owners.get(found[0]) or last) if part)
    if words is not None:
      told.update({name: f'{module}/{word}' for name, word in zip(found, words, strict=True)})
  return told if len(set(told.values())) == len(told) else {}


def _words(ranks: Sequence[int]) -> Sequence[str] | None:
  if list(ranks) == [1, 1, 1, 1]:
    return _NORM
  if list(ranks) == [1, 1]:
    return _NORM[:2]
  if len(ranks) == 1:
    return ('kernel',) if ranks[0] > 1 else None
  if len(ranks) == 2 and ranks[0] > 1 and ranks[1] in (1, 2) and ranks[1] < ranks[0]:
    return ('kernel', 'bias')
  if len(ranks) == 3 and list(ranks[:2]) == [2, 2]:
    return ('kernel', 'recurrent_kernel', 'bias')
  return None
