"""Laws of paths and rules: one path a leaf, in any container; a rule that picks nothing says what is near."""

import collections
import re
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlite import trees

Pair = collections.namedtuple('Pair', ['left', 'right'])


@pytest.mark.parametrize(
  'tree, expected',
  [
    ({'a': {'w': 1, 'b': 2}}, ['a/b', 'a/w']),
    ([1, (2, 3)], ['0', '1/0', '1/1']),
    ({0: 1, 10: 2}, ['0', '10']),
    (Pair(1, {'x': 2}), ['left', 'right/x']),
    ({'mlp/~/linear_0': {'w': 1}}, ['mlp/~/linear_0/w']),
    ({}, []),
  ],
)
def test_paths_use_bare_names(tree, expected):
  assert trees.paths(tree) == expected


def test_paths_of_frameworks_are_their_own_names():
  assert trees.paths(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)) == ['bias', 'kernel']
  mlp = eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)), eqx.is_array)
  assert trees.paths(mlp) == ['layers/0/weight', 'layers/0/bias', 'layers/1/weight', 'layers/1/bias']


def test_two_leaves_of_one_path_are_refused():
  with pytest.raises(ValueError, match="'a/b' names several"):
    trees.paths({'a': {'b': 1}, 'a/b': 2})


NAMES = ['conv/kernel', 'conv/bias', 'dense/kernel']


@pytest.mark.parametrize(
  'rule, expected',
  [
    (None, set(NAMES)),
    ('kernel', {'conv/kernel', 'dense/kernel'}),
    ('^conv/', {'conv/kernel', 'conv/bias'}),
    (['bias$', '^dense'], {'conv/bias', 'dense/kernel'}),
    (lambda path: path.endswith('bias'), {'conv/bias'}),
    (re.compile('KERNEL$', re.IGNORECASE), {'conv/kernel', 'dense/kernel'}),
    ([re.compile('bias'), '^dense'], {'conv/bias', 'dense/kernel'}),
    ((one for one in ['bias$', '^dense']), {'conv/bias', 'dense/kernel'}),
    (lambda path: re.search('^conv', path), {'conv/kernel', 'conv/bias'}),
  ],
)
def test_rules_pick(rule, expected):
  assert trees.select(NAMES, rule) == expected


@pytest.mark.parametrize(
  'rule, message',
  [
    ('kernal', r"'kernal' matches no parameter; nearest paths: .*kernel"),
    (['kernel', 'norm'], "'norm' matches no parameter"),
    ('(', 'no regular expression'),
    (lambda path: False, 'picks no parameter'),
    ([], 'is empty, so it picks no parameter'),
    ((), 'is empty'),
  ],
)
def test_a_rule_that_picks_nothing_is_an_error(rule, message):
  with pytest.raises(ValueError, match=message):
    trees.select(NAMES, rule)


@pytest.mark.parametrize(
  'rule, message',
  [
    ({'conv': True, 'dense': False}, 'a tree of booleans goes to optax.masked'),
    (lambda path: {'conv': True}, 'a predicate takes a path'),
    (3, 'got 3'),
    (True, 'got True'),
    (['kernel', 3], 'several, or a predicate'),
    (b'kernel', 'several, or a predicate'),
  ],
)
def test_what_is_no_rule_is_refused_and_never_picks_by_accident(rule, message):
  with pytest.raises(TypeError, match=message) as caught:
    trees.select(NAMES, rule, what='prune: rule')
  assert '\n' not in str(caught.value)
  assert str(caught.value).startswith('prune: rule')


@pytest.mark.parametrize('leaf', [jax.random.key(0), np.array(['x'])])
def test_a_rule_that_picks_no_numbers_names_the_leaf(leaf):
  with pytest.raises(ValueError, match="its rule picks 'k'"):
    trees.weight_paths({'w': np.ones((2, 2)), 'k': leaf}, 'w|k', None, what='prune')


@pytest.mark.parametrize(
  'path, shape, expected',
  [
    ('dense/kernel', (3, 4), True),
    ('conv/weight', (3, 3, 1, 8), True),
    ('conv/bias', (8, 1, 1), False),
    ('scan/dense/bias', (3, 4), False),
    ('scan/LayerNorm_0/scale', (3, 4), False),
    ('BatchNorm/w', (3, 4), False),
    ('normal_layer/w', (3, 4), True),
    ('linear/w', (4, 1), False),
    ('linear/b', (3, 4), False),
    ('jl.lora/a', (3, 4), False),
    ('embed/embedding', (10, 4), True),
    ('attn/relative_position_bias_table', (169, 3), False),
    ('attn.rel_pos_h', (13, 64), False),
    ('attn/rel_pos_h', (13, 64), False),
    ('block/relative_attention_bias/weight', (32, 8), False),
    ('encoder.pos_embedding', (1, 197, 64), False),
    ('encoder.layers.0.bias', (3, 4), False),
    ('encoder.layers.0.weight', (3, 4), True),
    ('relu/kernel', (3, 4), True),
    ('related/kernel', (3, 4), True),
  ],
)
def test_what_looks_like_a_weight(path, shape, expected):
  assert trees.looks_like_weight(path, np.zeros(shape, np.float32)) is expected


def test_integers_are_no_weights():
  assert not trees.looks_like_weight('table', np.zeros((3, 4), np.int32))


def test_one_array_at_two_paths_is_refused():
  leaf = jnp.ones(3)
  with pytest.raises(ValueError, match="'a' and 'b' are one array"):
    trees.check_distinct({'a': leaf, 'b': leaf}, 'params')
  trees.check_distinct({'a': leaf, 'b': jnp.ones(3)}, 'params')


def test_split_and_merge_are_inverse():
  tree = {'a': {'w': 1, 'b': 2}, 'c': {'d': {'w': 3}}}
  for chosen in ([], ['a/w'], ['a/w', 'c/d/w'], ['a/w', 'a/b', 'c/d/w']):
    one, other = trees.split(tree, chosen)
    assert set(trees.paths(one)) == set(chosen)
    assert trees.merge(other, one) == tree


def test_split_keeps_names_with_a_slash():
  tree = {'mlp/~/linear': {'w': 1, 'b': 2}}
  one, other = trees.split(tree, ['mlp/~/linear/w'])
  assert trees.merge(one, other) == tree


def test_split_keeps_the_form_of_lists_and_tuples():
  tree = {'layers': [{'w': 1, 'b': 2}, (3, 4)], 'end': {'w': 5}}
  for chosen in (['layers/0/w', 'layers/1/1'], ['end/w'], ['layers/0/w', 'layers/0/b', 'layers/1/0', 'layers/1/1']):
    one, other = trees.split(tree, chosen)
    assert set(trees.paths(one)) == set(chosen)
    assert trees.merge(one, other) == tree
    assert trees.merge(other, one) == tree


class _Searched(NamedTuple):
  """A state with a field that NNX's Variables have too."""

  value: jax.Array
  info: dict


def test_only_an_nnx_variables_value_is_no_part_of_a_name():
  state = {'search': _Searched(jnp.zeros(2), {'error': jnp.zeros(())}), 'alone': _Searched(jnp.ones(1), {})}
  assert trees.paths(state) == ['alone/value', 'search/value', 'search/info/error']
  layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
  assert trees.paths({'layer': nnx.state(layer)}) == ['layer/bias', 'layer/kernel']
  assert trees.paths({'kernel': layer.kernel}) == ['kernel']

  class Own(nnx.Param):
    pass

  assert trees.paths({'mine': [Own(jnp.zeros(2))]}) == ['mine/0']
  assert sorted(trees.split({'a': [Own(jnp.zeros(2)), jnp.ones(1)]}, ['a/0'])[0]) == ['a']
  doubled = trees.map_with_path(lambda path, leaf: (path, leaf + 1), state)
  assert doubled['search'].value[0] == 'search/value'


def test_every_state_of_optax_can_be_named_for_a_checkpoint():
  from jaxlite.checkpoint.names import orbax_names

  params = {'w': jnp.zeros((3, 2)), 'value': jnp.zeros(2)}
  for make in (optax.lbfgs, lambda: optax.adam(1e-3), lambda: optax.contrib.schedule_free_adamw(1e-3)):
    state = make().init(params)
    assert len(set(orbax_names(state).values())) == len(jax.tree.leaves(state))


def test_a_matrix_with_the_short_name_of_a_bias_is_told_where_no_program_is_seen():
  def chosen(**shapes):
    return set(trees.weight_paths({name: np.ones(shape) for name, shape in shapes.items()}, None, None, what='prune'))

  with pytest.warns(UserWarning, match=r"takes 'b', \[6, 3\], for a bias by its name"):
    assert chosen(a=(4, 6), b=(6, 3)) == {'a'}
  assert chosen(w=(4, 6), b=(6,), b1=(1, 6)) == {'w'}  # nothing to tell: no matrices
  assert chosen(w=(3, 4, 6), b=(3, 6)) == {'w'}  # three layers, stacked
  tree = {'a': np.ones((4, 6)), 'b': np.ones((6, 3))}
  assert trees.weight_paths(tree, None, {'a': None, 'b': None}, what='prune') == {'a', 'b'}
