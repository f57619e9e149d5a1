"""Laws of a watched config: it is the config in every respect, and it knows which fields were asked for."""

import copy
import dataclasses
import pickle

import pytest

from jaxlite.config import Config, Duration
from jaxlite.config.command_line import Pairs
from jaxlite.config.fields import apply_overrides
from jaxlite.config.reads import Reads, plain, unread, watched
from jaxlite.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Frozen:
  width: int = 3
  depth: int = 2


@dataclasses.dataclass(slots=True)
class Slots:
  width: int = 3


@dataclasses.dataclass(kw_only=True)
class Mine(Config):
  net: Frozen = dataclasses.field(default_factory=Frozen)
  slots: Slots = dataclasses.field(default_factory=Slots)
  shift: int = 0
  ramp: Duration = dataclasses.field(default_factory=lambda: Duration(steps=3))

  def twice(self):
    return 2 * self.shift

  @property
  def area(self):
    return self.net.width * self.net.depth


def seen():
  config, reads = Mine(name='x'), Reads()
  return config, watched(config, reads), reads.paths


READS = {
  'a field': (lambda c: c.shift, {'shift'}),
  'a field of a group': (lambda c: c.optim.lr, {'optim.lr'}),
  'a duration': (lambda c: c.ramp.given(), {'ramp'}),
  'a method': (lambda c: c.twice(), {'shift'}),
  'a property': (lambda c: c.area, {'net.width', 'net.depth'}),
  'by name': (lambda c: getattr(c, 'shift', None), {'shift'}),
  'nothing': (lambda c: (type(c.optim), isinstance(c, Mine)), set()),
}


@pytest.mark.parametrize('name', list(READS))
def test_what_is_asked_for_is_known_and_nothing_else(name):
  read, paths = READS[name]
  config, watch, found = seen()
  assert read(watch) == read(config) or name == 'nothing'
  assert found == paths


COPIES = {
  'deepcopy': copy.deepcopy,
  'copy': copy.copy,
  'pickle': lambda c: pickle.loads(pickle.dumps(c)),
  'replace': dataclasses.replace,
}


@pytest.mark.parametrize('name', list(COPIES))
def test_a_copy_is_plain_equal_and_has_read_what_it_holds(name):
  config, watch, found = seen()
  made = COPIES[name](watch)
  assert made == config
  assert type(made) is Mine
  assert 'shift' in found
  if name != 'replace':  # whose groups are watched on
    assert type(made.optim) is type(config.optim)
    assert {'optim.lr', 'net.width'} <= found


def test_it_is_the_config():
  config, watch, _ = seen()
  assert isinstance(watch, Mine)
  assert watch.__class__ is Mine
  assert watch == config
  assert repr(watch) == repr(config)
  assert dataclasses.asdict(watch) == dataclasses.asdict(config)
  watch.shift = 7
  watch.optim.lr = 0.5
  assert (config.shift, config.optim.lr) == (7, 0.5)
  with pytest.raises(dataclasses.FrozenInstanceError):
    watch.net.width = 9
  with pytest.raises(AttributeError):
    watch.shifft  # noqa: B018
  assert plain(watch) is config
  assert plain(config) is config


def test_what_cannot_be_watched_counts_as_read():
  config, watch, found = seen()
  assert watch.slots is config.slots
  assert 'slots.width' in found


def test_in_a_variation_a_copy_reads_nothing_and_what_it_is_made_from_does():
  config, reads = Mine(name='x', shift=4), Reads()
  made = dataclasses.replace(watched(config, reads, copies=False), seed=1)
  assert reads.paths == set()
  assert type(made.optim) is type(config.optim)
  vary = lambda c: dataclasses.replace(c, seed=c.shift)  # noqa: E731
  assert vary(watched(config, reads, copies=False)).seed == 4
  assert reads.paths == {'shift'}


def test_only_what_was_set_and_was_not_read_is_told():
  config = Mine(name='x', shift=4, ramp=Duration(epochs=2))
  config.optim.lr, config.eval.patience, config.data.batch_size, config.teacher = 500.0, 3, 8, '../teacher'
  lines = unread(config, {'ramp'})
  assert [line.split(' is set to ')[0] for line in lines] == ['optim.lr', 'teacher', 'shift']
  assert 'the recipe learns from no teacher' in lines[1]
  assert unread(config, {'ramp', 'optim.lr', 'teacher', 'shift'}) == []
  assert unread(Mine(name='y'), set()) == []


def keep(config):
  return config


@pytest.mark.parametrize(
  'given', [[('runs.v1.5.optim.lr', '0.5')], [('optim.lr', '0.1'), ('runs.v1.5.optim.lr', '0.5')]]
)
def test_a_run_whose_name_holds_dots_has_fields_of_its_own(given: Pairs):
  config = apply_overrides(Config(name='x', runs={'v1': keep, 'v1.5': keep, 'v2.0-rc.1': keep}), given)
  rates = {name: vary(config).optim.lr for name, vary in config.runs.items()}
  assert rates['v1.5'] == 0.5
  assert rates['v1'] == rates['v2.0-rc.1'] == (0.1 if len(given) > 1 else 1e-3)


@pytest.mark.parametrize('path', ['runs.v1.6.optim.lr', 'runs.v1.5', 'runs.v1.5.optim.lrr', 'runs.v2.lr'])
def test_a_mistaken_path_of_a_run_is_told(path: str):
  with pytest.raises(ConfigError):
    apply_overrides(Config(name='x', runs={'v1.5': keep, 'v2': keep}), [(path, '0.5')])
