"""One forward of a model, with the inputs and the key that the tests of single adapters give it."""

import jax
import numpy as np

KEY = jax.random.key(3)
X = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)


def run(model, params, state, x=X, *, train=True, key=KEY, step=0):
  return model.apply(params, state, x, train=train, key=key, step=step)
