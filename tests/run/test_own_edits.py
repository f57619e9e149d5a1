"""Changes through an experiment's own fields: what its model and recipe make of them decides, not their names."""

import dataclasses
import json

import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.config.schema import validate
from jaxlite.planning.edits import OTHER, edited
from jaxlite.run.jobs import job_of
from jaxlite.run.own_edits import own_edits
from jaxlite.run.setup import prepare

pytestmark = pytest.mark.unoptimized


@dataclasses.dataclass(kw_only=True)
class Mine(jl.Config):
  widths: tuple[int, ...] = (16, 8)
  classes: int = 4
  salt: int = 6
  unread: int = 8
  freeze: str = ''
  rate: float = 0.5


def model(config):
  from jaxlite.models import MLP

  assert config.salt
  return MLP(config.widths, classes=config.classes)


def recipe(config, total_steps):
  frozen = (jl.freeze(config.freeze),) if config.freeze else ()
  return jl.chain(*frozen, optax.sgd(config.rate))


def setup_of(folder, **fields):
  config = Mine(name='mine', model=model, recipe=recipe, train=jl.Duration(steps=4), **fields)
  config.data.batch_size = 8
  inputs = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
  return prepare(config, folder, None, (inputs, np.arange(60) % 4))


def test_a_field_that_makes_the_model_smaller_is_offered_and_no_other(tmp_path):
  setup = setup_of(tmp_path)
  found = own_edits(setup, job_of(setup))
  assert {edit.result for edit in found} == {OTHER}
  fields = {path: value for edit in found for path, value in edit.fields.items()}
  assert fields.keys() == {'widths', 'freeze'}  # half the classes would answer in another shape; salt does nothing
  assert fields['widths'] == (8, 4)
  for edit in found:
    tried = edited(setup.config, json.loads(json.dumps(edit.fields)))  # as the process that tries it is told
    validate(tried)
    changed = prepare(tried, tmp_path, None, setup.data)
    count = [sum(leaf.size for leaf in np.asarray(list(_leaves(one)), object)) for one in (setup, changed)]
    assert count[1] < count[0], edit


def _leaves(setup):
  import jax

  return jax.tree.leaves(setup.abstract.params)


def test_what_is_at_its_least_or_frozen_already_is_not_offered(tmp_path):
  setup = setup_of(tmp_path, widths=(1,), freeze='dense1')
  assert own_edits(setup, job_of(setup)) == []


def test_a_model_that_breaks_when_it_is_halved_is_left_out(tmp_path):
  setup = setup_of(tmp_path)

  def odd(config):
    if config.widths != (16, 8):
      raise RuntimeError('no such width')
    return model(config)

  broken = setup._replace(config=dataclasses.replace(setup.config, model=odd))
  assert {path for edit in own_edits(broken, job_of(setup)) for path in edit.fields} <= {'freeze'}
