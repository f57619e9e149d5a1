"""A run as its forecast sees it."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from jaxlite.data.batches import batch_at
from jaxlite.data.decoded import is_decoded
from jaxlite.data.mixtures import Mixture
from jaxlite.data.streams import Stream
from jaxlite.planning.job import Job, Splits
from jaxlite.run.setup import Setup


def job_of(setup: Setup) -> Job:
  """Returns what a forecast needs to know of a run.

  Args:
    setup: of the run, before its first step.
  """
  config, plan, data = setup.config, setup.plan, setup.data
  splits = (data.train, data.validation, data.test)
  counts = [len(split.labels) if hasattr(split, 'labels') else plan.epoch * config.data.batch_size for split in splits]
  return Job(
    train=setup.train,
    abstract=setup.abstract,
    batch=setup.first_batch,
    evaluation=config.eval.batch_size,
    splits=Splits(*counts, held_bytes=sum(map(_held, splits))),
    total=plan.total,
    log=plan.log,
    evaluate=plan.evaluate,
    checkpoint=plan.checkpoint,
    keep_memory=config.machine.keep_memory,
    compile_cache=config.machine.compile_cache,
    rewrites=config.machine.rewrites,
    task=data.task.name,
    metric=setup.metric,
    decoding=sum(leaf.base.seconds() for leaf in jax.tree.leaves(data.train) if is_decoded(leaf)),
    making=_making(data.train, config.data.batch_size, config.seed),
  )


def _making(train: Any, batch_size: int, seed: int) -> float:
  """Seconds in which a batch is made; that of the first step has been made already, with what is done once."""
  if not isinstance(train, Stream | Mixture):
    return 0.0
  began = time.perf_counter()
  batch_at(train, batch_size, seed, min(1, train.steps_of(batch_size) - 1))
  return time.perf_counter() - began


def _held(split: Any) -> int:
  """Bytes of a split's arrays that lie in memory; a memory-mapped array's pages are the system's to take back, and of
  examples that are decoded when a batch asks for them those that are decoded ahead."""
  leaves = jax.tree.leaves(split)
  ahead = sum(leaf.base.held_bytes for leaf in leaves if is_decoded(leaf))
  arrays = (leaf for leaf in leaves if isinstance(leaf, np.ndarray) and not isinstance(leaf, np.memmap))
  return ahead + sum(leaf.nbytes for leaf in arrays)
