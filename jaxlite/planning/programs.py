"""The programs that a run will dispatch, traced as it will trace them: what is compiled here is compiled once."""

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
    micro: the jaxpr of one gradient; None where a step is one program.
    evaluation: as `step`.
    platform: of the devices that they will run on.
  """

  job: Job
  step: Any
  micro: Any
  evaluation: Any
  platform: str


def traced(job: Job, *, seconds: float = 0.0) -> Traced:
  """Traces a job's step and its evaluation; nothing is compiled.

  Args:
    job: a run before its first step.
    seconds: for timing forms for this CPU that no run here has timed yet; with 0 the shape decides on these.

  Returns:
    The Traced; a run that is given its job compiles the same programs.
  """
  platform = jax.devices()[0].platform
  if job.rewrites and platform == 'cpu':
    choose = lambda sites: autotune.choose(sites, seconds=seconds).table.choices  # noqa: E731
    job = job._replace(train=tuned(job.train, job.abstract, job.batch, choose))
  programs = job.train.programs
  step = programs.traced(job.abstract, job.batch)
  micro = programs.gradient(job.abstract, job.batch) if step is None else None
  program = evaluated(job.train.eval, job.metric.update, job.metric.keep)
  batch = evaluation_batch(job)
  metrics = jax.eval_shape(job.metric.init)
  return Traced(job, step, micro, program.trace(metrics, job.abstract, batch), platform)


def evaluation_batch(job: Job) -> dict[str, Any]:
  """Returns the shapes of a batch of evaluation, as large as the largest split has examples for.

  Args:
    job: whose data.
  """
  examples = max(1, min(job.evaluation, max(job.splits.validation, job.splits.test)))
  shape = lambda leaf: jax.ShapeDtypeStruct((examples, *jnp.shape(leaf)[1:]), leaf.dtype)  # noqa: E731
  batch = jax.tree.map(shape, {name: job.batch[name] for name in _EVALUATED if name in job.batch})
  return {'weight': jax.ShapeDtypeStruct((examples,), jnp.float32), **batch}
