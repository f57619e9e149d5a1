"""Laws of fields set from text: read as annotated, in any order, refused with the way out."""

import copy
import itertools

import pytest

from configs import Mine, as_teacher, one_line
from jaxlite.config.duration import Duration
from jaxlite.config.fields import apply_overrides, fields, override
from jaxlite.config.serialize import to_dict
from jaxlite.errors import ConfigError


@pytest.mark.parametrize(
  ('path', 'text', 'value'),
  [
    ('seed', '3', 3),
    ('optim.lr', '1e-2', 0.01),
    ('optim.lr', '1', 1.0),
    ('log.progress', 'False', False),
    ('log.progress', '1', True),
    ('log.progress', None, True),
    ('flip', None, True),
    ('flip', 'none', None),
    ('data.directory', '', ''),
    ('data.directory', 'a=b c', 'a=b c'),
    ('width', 'None', None),
    ('width', '12', 12),
    ('widths', '1,2,3', (1, 2, 3)),
    ('widths', '(4,)', (4,)),
    ('widths', '[]', ()),
    ('widths', '', ()),
    ('pair', '2, 0.25', (2, 0.25)),
    ('tags', 'a, b', ['a', 'b']),
    ('either', '5', 5),
    ('either', 'five', 'five'),
    ('norm', 'layer', 'layer'),
    ('norm', '1', 1),
    ('frozen.depth', '5', 5),
    ('begin.epochs', '2', 2.0),
    ('begin', 'none', None),
    ('sparsity', '-0.5', -0.5),
  ],
)
def test_text_is_read_as_the_annotation_says(path, text, value):
  config = override(Mine(name='x'), path, text)
  found = config
  for name in path.split('.'):
    found = getattr(found, name)
  assert found == value
  assert type(found) is type(value)


def test_one_unit_of_a_duration_clears_the_others():
  assert override(Mine(name='x'), 'train.steps', '10').train == Duration(steps=10)
  assert override(Mine(name='x'), 'optim.warmup.epochs', '0.5').optim.warmup == Duration(epochs=0.5)


@pytest.mark.parametrize(
  ('path', 'text', 'words'),
  [
    ('sead', '1', 'seed'),
    ('optim.lrr', '1', 'optim.lr'),
    ('data.optim.lr', '1', 'optim.lr'),
    ('optim.warmup.step', '1', 'optim.warmup.steps'),
    ('optim.warmup.steps.x', '1', 'optim.warmup.steps'),
    ('optim.lr.x', '1', 'optim.lr'),
    ('', '1', 'unknown field'),
    ('begin.x.y', '1', 'begin.steps'),
    ('optim', '1', 'optim.lr, optim.warmup'),
    ('train', '3', 'train.epochs'),
    ('train', 'none', 'train.epochs'),
    ('begin', '3', 'begin.steps'),
    ('seed', '1.5', "seed is int; got '1.5'"),
    ('seed', '', "seed is int; got ''"),
    ('seed', None, 'needs a value'),
    ('optim.lr', 'x', "optim.lr is float; got 'x'"),
    ('optim.lr', 'nan', 'float'),
    ('log.progress', 'maybe', 'bool'),
    ('width', 'x', 'int | None'),
    ('widths', '1,x', 'tuple[int, ...]'),
    ('pair', '1', 'tuple[int, float]'),
    ('norm', 'group', "'batch', 'layer', 1"),
    ('train.steps', '-1', 'train.steps: '),
    ('train.steps', 'none', 'int'),
    ('train.epochs', 'inf', 'finite'),
    ('model', 'x', 'a function'),
    ('act', 'x', 'a function'),
    ('runs', '{}', 'cannot be set'),
    ('runs.teacher', 'x', 'unknown field'),
    ('anything', '1', 'cannot be set'),
  ],
)
def test_a_mistake_gets_one_line_with_the_way_out(path, text, words):
  config = Mine(name='x')
  before = copy.deepcopy(config)
  with pytest.raises(ConfigError) as error:
    override(config, path, text)
  assert words in one_line(error)
  assert config == before


def test_a_function_can_be_taken_back_to_its_default():
  config = Mine(name='x', recipe=max, model=min)
  assert override(config, 'model', 'none').model is None
  assert override(config, 'recipe', 'null').recipe is None
  assert config.model is min
  with pytest.raises(ConfigError):
    override(config, 'act', 'none')


def test_overrides_commute_and_leave_the_original_alone():
  pairs = [('optim.lr', '0.5'), ('train.steps', '7'), ('seed', '3'), ('frozen.depth', '4'), ('begin.steps', '1')]
  config = Mine(name='x')
  before = copy.deepcopy(config)
  found = [apply_overrides(config, order) for order in itertools.permutations(pairs)]
  assert all(one == found[0] for one in found)
  assert config == before
  assert found[0].optim is not config.optim
  old = {path: value for path, *_, value in fields(config)}
  changed = {path for path, *_, value in fields(found[0]) if value != old[path]}
  assert changed == {'optim.lr', 'train', 'seed', 'frozen.depth', 'begin'}


def test_the_same_field_twice_is_refused_unless_it_agrees():
  config = Mine(name='x')
  assert apply_overrides(config, [('optim.lr', '0.1'), ('optim.lr', '1e-1')]).optim.lr == 0.1
  assert apply_overrides(config, [('train.steps', '5'), ('train.steps', '5')]).train == Duration(steps=5)
  for pairs in (
    [('optim.lr', '0.1'), ('optim.lr', '0.2')],
    [('train.steps', '5'), ('train.epochs', '5')],
    [('begin.steps', '5'), ('begin', 'none')],
  ):
    for order in (pairs, pairs[::-1]):
      with pytest.raises(ConfigError) as error:
        apply_overrides(config, order)
      assert 'given once' in one_line(error)


def test_what_is_typed_is_stronger_than_a_variation():
  config = apply_overrides(Mine(name='x', runs={'teacher': as_teacher}), [('train.steps', '5')])
  varied = config.runs['teacher'](config)
  assert varied.train == Duration(steps=5)
  assert varied.sparsity == 0
  assert to_dict(config)['runs'] == {'teacher': 'configs:as_teacher'}  # the name that is saved stays


def test_one_run_can_be_set_alone():
  config = Mine(name='x', runs={'teacher': as_teacher, 'student': copy.copy})
  pairs = [('runs.student.optim.lr', '0.2'), ('optim.lr', '0.1'), ('runs.teacher.train.steps', '3')]
  for order in itertools.permutations(pairs):
    found = apply_overrides(config, order)
    teacher, student = (found.runs[name](found) for name in ('teacher', 'student'))
    assert (found.optim.lr, teacher.optim.lr, student.optim.lr) == (0.1, 0.1, 0.2)
    assert teacher.train == Duration(steps=3)
    assert student.train == config.train
  for path, words in (
    ('runs.studnt.optim.lr', 'the runs are teacher, student'),
    ('runs.student.optim.lrr', 'nearest: optim.lr'),
    ('runs.student', 'unknown field'),
  ):
    with pytest.raises(ConfigError) as error:
      override(config, path, '1')
    assert words in one_line(error)
