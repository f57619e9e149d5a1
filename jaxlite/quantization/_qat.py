"""Quantization-aware training: `fake_quant` as a hook."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxlite.contract import Hook, Model, Params, State, drop_extras
from jaxlite.graph import walk
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _program as quant_program
from jaxlite.quantization._account import account_of
from jaxlite.quantization._numerics import BitsLike, check_bits
from jaxlite.quantization._points import Points
from jaxlite.quantization._program import Rules
from jaxlite.quantization._ranges import Activations, check_step, ema_ranges, given_ranges


def fake_quant(
  bits: BitsLike = 8,
  *,
  rules: Rules | None = None,
  activations: Activations | None = None,
  decay: float | None = None,
  begin: int = 0,
  attention: bool = False,
  every: bool = False,
  real: bool = False,
  name: str = 'fake_quant',
) -> Hook:
  """Trains the model as it will run in integers (quantization-aware training).

  Every contraction of a weight with an activation is quantized, as in `quantize`. Activation ranges are moving
  averages in `model_state['jl.<name>'] = {site: (lowest, highest)}`: a train step adopts the first range that it
  sees and then moves by 1 - decay; evaluation takes them as they stand. Uses of one weight are numbered as evaluation
  has them (`w`, `w#2`), then those that only training has. Evaluation always shows the integers,
  also before `begin`. On export the ranges go and the weights stay float: rounding them is deployment's.

  First derivatives pass straight through; second ones (Hessians, a gradient of a gradient) see the rounding, whose
  slope is zero: take those of the model without the hook.

  A batch norm is trained as it will be deployed, whether or not it is folded into its contraction: a factor per
  output channel changes no integer but its sign, see `_numerics.py`.

  Args:
    bits: 2 to 8, of weights and activations, or a pair of theirs; (4, None) leaves activations float.
    rules: {regular expression on a site's name, the path of its weight: bits, as above, or None to keep it float};
      the first match decides.
    activations: where their ranges come from: `ema_ranges(decay, freeze=)`, `dynamic_ranges()` or
      `frozen_ranges(ranges)`; None is `ema_ranges()`.
    decay: short for `activations=ema_ranges(decay)`.
    begin: optimizer steps before which training is float; ranges are collected all the same.
    attention: also quantize products of two activations, named `<activations>`; each end of their range is
      float32[2], one for either operand.
    every: also quantize both operands of additions of activations (named `<add>`, each end of their range float32[2]),
      what means and norms sum (`<sum>`) and products of activations, each value where it is made, so that the network
      is deployed in integers without examples. Evaluation then computes by deployment's rule, with biases that are
      whole numbers on the grid of their sum and batch norms in its scale: it shows the very integers that are deployed,
      where nothing but contractions, additions, means, pools, ReLU and such lie between. What training does to a bias
      is not rounded: half a step of a sum is next to nothing of a step of its result. The network's results stay float.
      As in deployed integers, a NaN among the inputs of evaluation becomes a number: look for it before.
    real: execute int8 operands into int32 instead of integer-valued float32; for evaluation and deployment, on the
      params and state that the fake model was trained to.
    name: of the hook.

  Returns:
    The Hook. Its model's `init` raises ValueError where nothing can be quantized, a rule matches nothing, or a weight
    is used several times and what feeds its uses does not tell which of training is which of evaluation.

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    2018, https://arxiv.org/abs/1712.05877

  >>> import jax, jax.numpy as jnp
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['dense']['kernel'], s
  >>> base = Model(init=lambda key, x: ({'dense': {'kernel': jnp.ones((2, 2))}}, {}), apply=apply)
  >>> model = fake_quant(bits=8).model(base)
  >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 2)))
  >>> _, state = model.apply(params, state, jnp.array([[0.0, 2.0]]), train=True, key=None, step=0)
  >>> [float(end) for end in state['jl.fake_quant']['dense/kernel']]
  [0.0, 2.0]
  """
  number = check_bits(bits, name)
  for pattern, value in (rules or {}).items():
    if value is not None:
      check_bits(value, f'{name}: rule {pattern!r}')
  if activations is not None and decay is not None:
    raise ValueError(f'{name}: decay is short for activations=ema_ranges(decay): give one of them')
  source = activations or ema_ranges(0.99 if decay is None else decay)
  check_step(begin, f'{name}: begin')
  entry = f'jl.{name}'

  def training(
    model: Model, params: Params, state: State, inputs: Any, key: Any, step: Any, known: Any = None
  ) -> quant_program.Passes:
    return quant_program.trace_training(
      model,
      params,
      state,
      inputs,
      key=key,
      step=step,
      bits=number,
      rules=rules,
      what=name,
      known=known,
      pairs=attention,
      every=every,
    )

  def wrap(model: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = model.init(key, inputs)
      passes = training(model, params, state, inputs, key, jnp.zeros((), jnp.int32))
      plan = passes.program.plan
      walk.refuse_sealed(passes.program.jaxpr, name)
      chosen = quant_program.check(plan, number, rules, name, passes.alone)
      quant_program.whole(plan, chosen, name)
      if source.ranges is not None:  # a calibration sees the uses of evaluation
        chosen = {**chosen, **quant_program.bits_of_sites(passes.alone, number, rules, name)}
      sites = {**passes.alone, **plan.weight_sites()}
      chosen = quant_program.reached(chosen, sites, passes.joins)
      ranged = [n for n, own in chosen.items() if own is not None and own.activation is not None]
      shapes = {n: quant_program.range_shape(sites[n]) for n in ranged}
      if source.ranges is not None:
        return params, {**state, entry: given_ranges(source.ranges, shapes, name, spared=passes.extra)}
      return params, {**state, entry: {n: numerics.unseen(shapes[n]) for n in shapes if source.kept}}

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if entry not in state:
        raise ValueError(f'{name} needs its ranges, model_state[{entry!r}]: init with the model that this recipe wraps')
      inner, ranges = _without(state, entry), state[entry]
      if train:
        passes = training(model, params, inner, inputs, key, step, ranges if source.kept else ())
        program, leaves, joins = passes.program, passes.leaves, passes.joins
      else:
        program, leaves = quant_program.trace_model(
          model, params, inner, inputs, train=False, key=key, step=step, pairs=attention, every=every
        )
        joins = program.reading.names if program.reading is not None else frozenset()
      sites = program.plan.weight_sites()
      chosen = quant_program.reached(quant_program.bits_by_site(program.plan, number, rules, name), sites, joins)
      # A use that only this pass has, and what its like has no range for, is quantized by what it sees.
      shapes = {n: quant_program.range_shape(site) for n, site in sites.items()}
      known = {n: span for n, span in ranges.items() if n in sites and span[0].shape == shapes[n]}
      active = jnp.asarray(step) >= begin if train and begin and step is not None else None

      moves: dict[int, tuple[Any, Any, numerics.Range]] = {}  # by what was seen, which is held: no id comes again

      def moved(stored: numerics.Range | None, seen: numerics.Range) -> numerics.Range:
        before, _, found = moves.get(id(seen[0]), (None, None, None))
        if found is None or before is not stored:  # outside of loops and branches a site has moved its range already
          found = source.used(stored, seen, step)
          moves[id(seen[0])] = (stored, seen, found)
        return found

      choose = moved if train else quant_program.stored_or
      observe = source.ranges is None
      visit = quant_program.in_integers(chosen, choose, real=real, active=active, observe=observe)
      combine = quant_program.RANGES if observe else quant_program.NOTHING
      points = None
      if every:
        live = program.reading.live if program.reading is not None and not train else None
        points = Points(chosen, choose, {}, real, active, observe, live)
      (outputs, inner), seen = quant_program.run(program, leaves, chosen, visit, combine, known, points)
      if train and observe:
        ranges = {n: moved(span, seen[n]) if n in known else span for n, span in ranges.items()}
      return outputs, {**inner, entry: ranges}

    def after(params: Params, state: State, step: Any) -> State:
      new = model.after(params, _without(state, entry), step)
      return {**new, entry: state[entry]} if entry in state else new

    def export(params: Params, state: State) -> tuple[Params, State]:
      return model.export(params, drop_extras(state, name))

    return Model(init, apply, after, export)

  return Hook(name, model=wrap, account=account_of(wrap, entry, number, rules), reads=True)


def _without(state: State, entry: str) -> State:
  return {key: value for key, value in state.items() if key != entry}
