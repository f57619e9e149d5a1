"""One runner of the race: the small CNN in jaxlite, started by `race`, never by hand."""

from __future__ import annotations

import json
import sys


def main() -> None:
  """Trains and tells the test accuracy until it is told to stop."""
  spec = json.loads(sys.argv[1])
  from jaxlite.host import allocator, compile_cache

  allocator.share_one_arena()
  compile_cache.enable(spec['cache'])
  import cases
  import jax
  import linen_models
  import numpy as np
  import optax
  import race_course as course

  import jaxlite as jl
  from jaxlite.data import Split, batch_at, eval_batches
  from jaxlite.models import SmallCNN

  data = course.read(spec['data'])
  split, test = Split(*data.train), Split(*data.test)
  recipe = jl.chain(
    jl.optim.normalize(np.float32([course.MEAN]), np.float32([course.STD])),
    optax.adamw(course.LR, weight_decay=course.WEIGHT_DECAY),
  )
  train = jl.train_step(jl.from_linen(SmallCNN(dropout=course.DROPOUT)), jl.cross_entropy, recipe)
  params = linen_models.tree(cases.weights('cnn', spec['seed']))
  state = train.init(jax.random.key(spec['seed']), batch_at(split, course.BATCH, spec['seed'], 0), params=params)
  for step in range(len(split.labels) // course.BATCH * course.EPOCHS):
    state, _ = train.step(state, batch_at(split, course.BATCH, spec['seed'], step))
    if step == 0:
      jax.block_until_ready(state)
      allocator.keep_mapped()
    if (step + 1) % course.EVERY == 0:
      right = 0
      for batch in eval_batches(test, course.EVAL_BATCH):
        right += int((np.argmax(train.eval(state, batch)[0], -1) == batch['labels']).sum())
      if not course.tell(step + 1, right / len(test.labels)):
        return


if __name__ == '__main__':
  main()
