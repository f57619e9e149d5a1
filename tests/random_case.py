"""A random network with what every check needs of it: see `random_models`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxlite as jl
import random_models
from jaxlite import trees
from jaxlite.graph.model import weights_of
from random_expected import float64
from random_models import Records

KEY = jax.random.key(0)


class Case:
  """A network with what every check needs of it."""

  def __init__(self, seed):
    self.seed, self.net = seed, random_models.network(seed)
    self.params, self.facts = self.net.params, self.net.facts
    self.model = self.net.model or jl.from_function(self.net.apply, self.params)
    self.leaves = {path: float64(leaf) for path, leaf in trees.by_path(self.params).items() if path in self.facts}
    self.masked = {path: fact for path, fact in self.facts.items() if not fact.filled}
    self.clear = {path for path, fact in self.facts.items() if fact.summed is not None}
    self.low = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(self.params))
    self.records = Records()
    self.outputs = random_models.run(self.net, self.records)
    self.weights = weights_of(self.model, KEY, self.net.inputs)

  def says(self, call):
    """Makes sure that what masking would not take out is left out with a warning, or refused where nothing is left.

    Returns whether something is left.
    """
    if {*self.masked} == {*self.facts}:
      return True
    if self.masked:
      with pytest.warns(UserWarning, match='not masked: a zero in it is none'):
        call()
    else:
      with pytest.raises(ValueError, match='would not take it out'):
        call()
    return bool(self.masked)
