"""The programs that a run will dispatch, traced as it will trace them, so that what is compiled here is compiled once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite.cpu import autotune
from jaxlite.planning.job import Job
from jaxlite.step.evaluated import evaluated
from jaxlite.step.warm_up import tuned

_EVALUATED = ('inputs', 'labels', 'weight')  # what a batch of evaluation holds


class Traced(NamedTuple):
  """The programs of a job.

  Attributes:
    job: whose functions run the forms that were chosen for this CPU.
    step: a `jax.stages.Traced`; None where a step is several programs.
    evaluation: likewise.
  """

  job: Job
  step: Any
  evaluation: Any


def traced(job: Job, *, seconds: float = 0.0, evaluation: int | None = None) -> Traced:
  """Traces a job's step and its evaluation.

  Args:
    job: a run before its first step.
    seconds: for timing forms for this CPU that no run here has timed yet; with 0 the shape decides on these.
    evaluation: examples in a batch of evaluation; None takes the job's.

  Returns:
    The Traced; compiling them runs nothing, and a run that is given its job does not compile them again.
  """
  if job.rewrites and jax.devices()[0].platform == 'cpu':
    train = tuned(job.train, job.abstract, job.batch, lambda sites: autotune.choose(sites, seconds=seconds).table.choices)
    job = job._replace(train=train)
  step = job.train.programs.traced(job.abstract, job.batch)
  program = evaluated(job.train.eval, job.metric.update, job.metric.keep)
  batch = evaluation_batch(job, job.evaluation if evaluation is None else evaluation)
  return Traced(job, step, program.trace(jax.eval_shape(job.metric.init), job.abstract, batch))


def evaluation_batch(job: Job, examples: int) -> dict[str, Any]:
  """Returns the shapes of a batch of evaluation: those of a training batch, with so many examples.

  Args:
    job: whose data.
    examples: in the batch.
  """
  shape = lambda leaf: jax.ShapeDtypeStruct((examples, *jnp.shape(leaf)[1:]), leaf.dtype)  # noqa: E731
  batch = jax.tree.map(shape, {name: job.batch[name] for name in _EVALUATED if name in job.batch})
  return {'weight': jax.ShapeDtypeStruct((examples,), jnp.float32), **batch}
