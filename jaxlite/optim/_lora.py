"""Low rank: a frozen model learns a thin product beside each of its weights (LoRA, DoRA, QLoRA)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import (
  CONST,
  Account,
  Hook,
  Model,
  Network,
  Params,
  State,
  drop_extras,
  stream,
  with_const,
)
from jaxlite.errors import arrays, check_dict, number, whole
from jaxlite.graph import rewrite
from jaxlite.graph.model import _layouts
from jaxlite.graph.routes import Matrix
from jaxlite.optim import _low_rank as low_rank
from jaxlite.optim._adapted_program import Seen
from jaxlite.optim._chosen import Choice, LowRank
from jaxlite.optim._low_rank import Adapted
from jaxlite.optim._stored import KINDS, is_stored, store

Ranks = Mapping[str, int | None]

_PRUNED = 0.2  # share of zeros beyond which a base was pruned


def lora(
  rank: int = 8,
  alpha: float | None = None,
  *,
  select: trees.Rule = None,
  rules: Ranks | None = None,
  train: trees.Rule | tuple[()] = (),
  rank_stabilized: bool = False,
  fit: bool = False,
  name: str = 'lora',
) -> Hook:
  """Freezes a model and learns a product of two thin matrices beside each of its weights.

  A weight of `rows` inputs and `columns` outputs becomes `weight + alpha / rank * a @ b`, a of [rows, rank], b of
  [rank, columns], which begins at zero: the first forward is the model's own. All other leaves are frozen: no gradient
  of one is computed, and no moment kept. Where a program only moves a weight on its way to a product, inputs meet the
  weight and the two factors apart, in training and evaluation alike; where it does more (another part masks or rounds
  it, groups of a convolution) the two are merged first, and the report names the leaf.

  Weights are what the model's program shows, whatever the framework and the layout: kernels of convolutions, fused or
  stacked ones (a scan's layers, experts), each with the axes that are summed over as rows. Export merges. In a chain it
  stands anywhere: `fake_quant` and `lsq` round the merged weight in either order; `straight_through` masks the merged
  weight and stands after it. `prune`, `hold` and `rigl` are about parameters, and a frozen weight is none.

  Args:
    rank: of each product; no more than the smaller side of a matrix, see `fit`.
    alpha: the product is multiplied by alpha / rank; None is `rank`, a factor of 1.
    select: a rule on paths; None takes the weights that the model's program shows, but those that `train` picks. A
      looked-up table (an embedding) can be named; it is then merged.
    rules: {regular expression on a path: a rank of its own, or None to leave it out}; the first match decides.
    train: a rule on leaves that learn as they are (a new head, biases); () is none.
    rank_stabilized: multiply by alpha / sqrt(rank) in place of alpha / rank.
    fit: lower the rank of a matrix to its smaller side where that is below it; else it is refused.
    name: the hook's name; what is learned is params['jl.<name>'], the frozen leaves are model_state['jl.const'][name].

  Returns:
    A Hook on the model.

  Raises:
    ValueError: an argument outside its range; at init, a rule that matches nothing, a chosen leaf that is no weight, is
      empty or whose axes are not clear, a rank above the smaller side of a matrix.

  References:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, https://arxiv.org/abs/2106.09685
    Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023,
    https://arxiv.org/abs/2312.03732

  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['w'] + p['b'], s
  >>> base = Model(lambda key, x: ({'w': jnp.ones((6, 4)), 'b': jnp.zeros(4)}, {}), apply)
  >>> model = lora(2).model(base)
  >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 6)))
  >>> jax.tree.map(jnp.shape, params)
  {'jl.lora': {'w': {'a': (6, 2), 'b': (2, 4)}}}
  >>> model.export(params, state)[0]['w'].tolist() == jnp.ones((6, 4)).tolist()
  True
  """
  return _hook(name, rank, alpha, select, rules, train, rank_stabilized, fit)


def dora(
  rank: int = 8,
  alpha: float | None = None,
  *,
  select: trees.Rule = None,
  rules: Ranks | None = None,
  train: trees.Rule | tuple[()] = (),
  rank_stabilized: bool = False,
  fit: bool = False,
  name: str = 'dora',
) -> Hook:
  """As `lora`, with the length of each output's weights learned apart from their direction.

  The weight becomes `m * (weight + alpha / rank * a @ b) / norm`, the norm of each output's weights taken anew at every
  step and without a gradient of its own. It costs a norm of every weight a step, and one more activation a product.

  Args:
    rank: as in `lora`.
    alpha: as in `lora`.
    select: as in `lora`.
    rules: as in `lora`.
    train: as in `lora`.
    rank_stabilized: as in `lora`.
    fit: as in `lora`.
    name: the hook's name.

  Returns:
    A Hook on the model.

  Raises:
    ValueError: as `lora`.

  References:
    Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, https://arxiv.org/abs/2402.09353

  >>> base = Model(lambda key, x: ({'w': jnp.full((1, 1), 3.0)}, {}), lambda p, s, x, **_: (x @ p['w'], s))
  >>> params, _ = dora(1).model(base).init(jax.random.key(0), jnp.ones((1, 1)))
  >>> params['jl.dora']['w']['m'].tolist()
  [3.0]
  """
  return _hook(name, rank, alpha, select, rules, train, rank_stabilized, fit, magnitude=True)


def qlora(
  rank: int = 8,
  alpha: float | None = None,
  *,
  base: str = 'nf4',
  group: int | None = 64,
  quantize: trees.Rule = None,
  magnitude: bool = False,
  select: trees.Rule = None,
  rules: Ranks | None = None,
  train: trees.Rule | tuple[()] = (),
  rank_stabilized: bool = False,
  fit: bool = False,
  name: str = 'qlora',
) -> Hook:
  """As `lora`, with the frozen weights kept in 8 or 4 bits, in memory and in checkpoints.

  A product takes the weight's values from what is kept when it comes to it, and again in its backward pass, so that no
  copy in full precision lives between the two. Kept so are the frozen weights that the model only moves and multiplies;
  a table that is looked up too (an embedding that is also the last layer) stays as it is, and the report says so.
  Rounding is done once, at init. Export merges into the restored weights: what leaves is what was trained.

  Args:
    rank: as in `lora`.
    alpha: as in `lora`.
    base: 'nf4' or 'int4', four bits and a bfloat16 scale for each group, or 'int8', a float32 scale for each.
    group: rows that share a scale, about; None is one scale for each output.
    quantize: a rule on the leaves to keep in few bits, in place of all that can be; one that is used otherwise too is
      then restored before the forward.
    magnitude: learn it apart, as `dora` does.
    select: as in `lora`.
    rules: as in `lora`.
    train: as in `lora`.
    rank_stabilized: as in `lora`.
    fit: as in `lora`.
    name: the hook's name.

  Returns:
    A Hook on the model.

  Raises:
    ValueError: as `lora`; a base or a group that does not exist; at init, no weight that can be kept in few bits.

  References:
    Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, https://arxiv.org/abs/2305.14314

  >>> base = Model(lambda key, x: ({'w': jnp.eye(4)}, {}), lambda p, s, x, **_: (x @ p['w'], s))
  >>> _, state = qlora(1).model(base).init(jax.random.key(0), jnp.ones((1, 4)))
  >>> {name: str(leaf.dtype) for name, leaf in state['jl.const']['qlora']['w'].items()}
  {'jl.q': 'uint8', 'jl.scale': 'bfloat16'}
  """
  if base not in KINDS:
    raise ValueError(f'{name}: base is one of {", ".join(KINDS)}; got {base!r}')
  if group is not None:
    whole(group, f'{name}: group', least=2)
  return _hook(name, rank, alpha, select, rules, train, rank_stabilized, fit, magnitude, (base, group, quantize))


def _hook(
  name: str,
  rank: int,
  alpha: float | None,
  select: trees.Rule,
  rules: Ranks | None,
  train: trees.Rule | tuple[()],
  rank_stabilized: bool,
  fit: bool,
  magnitude: bool = False,
  kept: tuple[str, int | None, trees.Rule] | None = None,
) -> Hook:
  rank = whole(rank, f'{name}: rank', least=1)
  rules = {
    pattern: None if own is None else whole(own, f'{name}: the rank of rule {pattern!r}', least=1)
    for pattern, own in (rules or {}).items()
  }
  alpha = None if alpha is None else number(alpha, f'{name}: alpha')
  if alpha is not None and not 0 < alpha < math.inf:
    raise ValueError(f'{name}: alpha is a number above 0; got {alpha!r}')

  def adapted(matrix: Matrix, own: int) -> Adapted:
    over = math.sqrt(own) if rank_stabilized else own
    return Adapted(matrix, own, 1.0 if alpha is None and not rank_stabilized else (alpha or rank) / over, magnitude)

  choose = Choice(name, rank, select, rules, train, adapted, kept, fit)
  built = {as_one: _wrap(name, choose, as_one) for as_one in (False, True)}
  return Hook(name, model=built[False], account=_account_of(name), as_one=built[True])


def _wrap(name: str, choice: Choice, as_one: bool) -> Callable[[Model], Model]:
  slot = f'jl.{name}'

  def wrap(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      check_dict(params, name)
      layouts = _layouts(inner, params, state, inputs, key)
      seen = Seen(inner, (params, state, inputs, key, jnp.zeros((), jnp.int32)), True, {}, {})
      known, frozen = choice.of(params, layouts, seen)
      if as_one:
        known = dataclasses.replace(known, whole=tuple((path, 'a part outside reads it') for path, _ in known.adapted))
      leaves, forms = trees.by_path(params), dict(known.forms)
      own = {}
      for path, adapted in known.adapted:
        values = low_rank.begin(adapted, leaves[path], stream(stream(key, name), path), jnp.float32)
        own.update({f'{path}/{part}': value for part, value in values.items()})
      still, live = trees.split(params, frozen)
      still = trees.map_with_path(lambda path, leaf: store(forms[path], leaf) if path in forms else leaf, still)
      return {**live, slot: trees.nest(own)}, with_const({**state, slot: known}, name, still)

    def parts(params: Params, state: State) -> tuple[LowRank, Params, dict[str, Any], dict[str, dict[str, Any]]]:
      """(what is known, live leaves, frozen leaves by path as they are kept, what is learned by path)."""
      if slot not in params or slot not in state or name not in state.get(CONST, {}):
        raise ValueError(f"{name} needs what it learns, params['{slot}'], and its base: init with the wrapped model")
      learned: dict[str, dict[str, Any]] = {}
      for path, value in trees.by_path(params[slot]).items():
        leaf, _, part = path.rpartition('/')
        learned.setdefault(leaf, {})[part] = value
      live = {key: value for key, value in params.items() if key != slot}
      return state[slot], live, state[CONST][name], learned

    def joined(live: Params, still: Any, fn: Callable[[str, Any], Any]) -> Params:
      """The inner model's params, each frozen leaf by `fn(path, what is kept of it)`."""
      keys, leaves, treedef = trees.keyed(still, is_leaf=is_stored)
      return trees.merge(live, treedef.unflatten(map(fn, map(trees.path_string, keys), leaves)))

    def view(params: Params, state: State, **_: Any) -> Params:
      known, live, still, learned = parts(params, state)
      adapted, forms = dict(known.adapted), dict(known.forms)

      def leaf(path: str, kept: Any) -> Any:
        value = low_rank.values(forms.get(path), kept)
        return low_rank.merged(adapted[path], value, learned[path]) if path in adapted else value

      return joined(live, still, leaf)

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      known, live, still, learned = parts(params, state)
      adapted, forms, rest = dict(known.adapted), dict(known.forms), drop_extras(state, name)
      if as_one:
        outputs, new = inner.apply(view(params, state), rest, inputs, train=train, key=key, step=step)
        return outputs, _with(new, state)

      def shape(path: str, kept: Any) -> Any:
        form = forms.get(path)
        return kept if form is None else jax.ShapeDtypeStruct(form.matrix.shape, jnp.dtype(form.dtype))

      seen = Seen(inner, (joined(live, still, shape), rest, inputs, key, step), train, adapted, forms)
      kept_as: dict[str, Any] = {}

      def value(path: str, kept: Any) -> Any:
        kept_as[path] = kept
        form = forms.get(path)
        if seen.apart.get(path, '') is None:  # every use of it is replaced: what stands here is read by none
          return kept if form is None else jnp.zeros(form.matrix.shape, form.dtype)
        leaf = low_rank.values(form, kept)
        return low_rank.merged(adapted[path], leaf, learned[path]) if path in adapted else leaf

      given = joined(live, still, value)
      factors = {}
      for path in sorted({path for _, path in seen.sites.values()}):  # else each process traces another program
        own, factor = {}, None
        if path in adapted:
          own = {part: learned[path][part] for part in ('a', 'b')}
          if adapted[path].magnitude:
            factor = low_rank.stretch(adapted[path], low_rank.values(forms.get(path), kept_as[path]), learned[path])
        factors[path] = (kept_as[path], own, factor)
      reads = {site: factors[path] for site, (_, path) in seen.sites.items()}

      def visit(site: Any, eqn: Any, operands: Any, read: Any, axes: Any) -> Any:
        here = seen.sites[site.name][0]
        return low_rank.contraction(here)(operands[1 - here.side], *read), ()

      nothing = lambda *_: ()  # noqa: E731
      rules = rewrite.Rules(visit, lambda site: site.name in seen.sites, nothing, nothing, nothing, lambda r, _: r)
      flat = jax.tree.leaves((given, rest, inputs, key, step))
      results, _ = rewrite.run(seen.closed, seen.plan, flat, rules, reads)
      outputs, new = jax.tree.unflatten(jax.tree.structure(seen.shapes), results)
      return outputs, _with(new, state)

    def _with(new: State, state: State) -> State:
      """What the forward left, and this hook's own entries."""
      return with_const({**new, slot: state[slot]}, name, state[CONST][name])

    def after(params: Params, state: State, step: Any) -> State:
      return _with(inner.after(view(params, state), drop_extras(state, name), step), state)

    def export(params: Params, state: State) -> tuple[Params, State]:
      return inner.export(view(params, state), drop_extras(state, name))

    return Model(init, apply, after, export)

  return wrap


def _account_of(name: str) -> Callable[[Network, Model, Any], Account]:
  def account(trained: Network, bare: Model, inputs: Any) -> Account:
    del bare, inputs
    known: LowRank = trained.model_state[f'jl.{name}']
    learned, total = known.counts
    ranks = sorted({adapted.rank for _, adapted in known.adapted})
    told = [f'rank {", ".join(map(str, ranks))} beside {arrays([path for path, _ in known.adapted])}']
    told.append(f'{learned:,} parameters learn beside {total:,} ({100 * learned / max(total, 1):.2f} %)')
    if known.forms:
      kinds = ', '.join(sorted({form.kind for _, form in known.forms}))
      told.append(f'{arrays([path for path, _ in known.forms], 0)} kept as {kinds}')
    left = [f'{path} is merged before each forward: {why}' for path, why in known.whole]
    left += [f'{path}: {why}' for path, why in known.skipped]
    left += _filled(trees.by_path(trained.model_state[CONST].get(name, {})), [path for path, _ in known.adapted])
    return Account('', '; '.join(told), '; '.join(left[:8]) + (f'; and {len(left) - 8} more' if len(left) > 8 else ''))

  return account


def _filled(base: dict[str, Any], adapted: list[str]) -> list[str]:
  """A line where what is learned beside a pruned base gives its zeros values."""
  zeros = {path: float(np.mean(np.asarray(base[path]) == 0)) for path in adapted if path in base}
  pruned = sorted(path for path, share in zeros.items() if share > _PRUNED)
  if not pruned:
    return []
  more = f' ({len(pruned) - 1} more arrays alike)' if len(pruned) > 1 else ''
  return [
    f'{100 * zeros[pruned[0]]:.0f} % of the base {pruned[0]!r} is zero{more}, and what is learned beside it fills '
    'those places: jl.pruning.straight_through behind it keeps them zero'
  ]
