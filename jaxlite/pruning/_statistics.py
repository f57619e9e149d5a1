"""What reaches each weight: norms and Gram matrices of the inputs at every contraction, and mean gradients.

The statistics that one-shot pruning reads. The program of the model is run with a record left at each site; control
flow, frameworks and layouts are `rewrite`'s and `layouts`' business.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite import trees
from jaxlite.contract import Batch, Context, Model, Network
from jaxlite.graph import layouts, provenance, rewrite, walk, zeros
from jaxlite.graph.effects import without_effects
from jaxlite.graph.model import model_tags
from jaxlite.tasks import running
from jaxlite.tasks.lift import dicts_in, examples_in, lift_loss


class Calibration(NamedTuple):
  """What calibration batches say of each weight.

  Attributes:
    norms: by path, the L2 norm of the input that each weight multiplies, float32[...]: of the weight's rank, with
      length 1 along its outputs.
    grams: by path, float32[S, K, K], the sum over batches and positions of x x^T, where K runs over the summed axes
      of the weight in `layouts`' order, and S over its stacked axes and groups: those of a convolution, or equal parts
      of its outputs that meet inputs of their own (a fused weight that is split); empty where not asked for.
    gradients: tree like params, at least float32: the mean gradient of the loss; None without one.
    layouts: of every weight, None where the program mixes its axes; and why a weight has no statistics.
  """

  norms: Mapping[str, jax.Array]
  grams: Mapping[str, jax.Array]
  gradients: Any
  layouts: layouts.Layouts


def gather_statistics(
  model: Model | Network | Callable[[Any, Any], Any],
  params: Any = None,
  model_state: Any = None,
  batches: Iterable[Batch] = (),
  *,
  loss: Callable[[Any, Batch], jax.Array] | None = None,
  grams: bool = True,
) -> Calibration:
  """Runs batches through a network and records what reaches each weight.

  Args:
    model: a Model, run as in evaluation; or a function (params, inputs) -> outputs; or a Network, such as
      `jaxlite.load` gives, which brings its values.
    params: its parameters.
    model_state: of a Model.
    batches: dicts with 'inputs', and with what the loss reads. Batches of one shape are compiled once. Examples whose
      'weight' is 0 (padding) are left out.
    loss: (outputs, batch) -> float[B]; with one, gradients are recorded too, each example's by its weight.
    grams: whether to record Gram matrices, K^2 floats for a weight that sums over K inputs; else norms only.

  Returns:
    A Calibration.

  Raises:
    TypeError: batches that are no dicts, or a single one.
    ValueError: no batch with an example, a network in which no weight meets an activation, a loss that is a scalar, or
      inputs or gradients that are not finite.

  >>> batch = {'inputs': jnp.array([[3.0, 0.0], [4.0, 1.0]])}
  >>> found = gather_statistics(lambda p, x: x @ p['w'], {'w': jnp.ones((2, 3))}, batches=[batch])
  >>> found.norms['w'].tolist(), found.grams['w'].tolist()
  ([[5.0], [1.0]], [[[25.0, 4.0], [4.0, 1.0]]])
  """
  if isinstance(model, Network):
    if params is not None or model_state is not None:
      raise ValueError('gather_statistics: a Network brings its values: give batches= alone')
    network, encode = model, model.encode
    model, params, model_state = network.model, network.params, network.model_state
    if encode is not None:
      given = dicts_in(batches, 'gather_statistics')
      batches = ({**batch, 'inputs': encode(batch['inputs'])} for batch in given)
  batches = dicts_in(batches, 'gather_statistics')
  apply = _forward(model)
  model_state = {} if model_state is None else model_state
  totals, gradients, weights = None, None, []
  record = jax.jit(functools.partial(_moments, apply, grams=grams))
  slope = jax.jit(jax.grad(functools.partial(_objective, apply, loss))) if loss is not None else None
  for batch in filter(None, map(_without_padding, batches)):
    found = record(params, model_state, batch['inputs'])
    totals = found if totals is None else jax.tree.map(jnp.add, totals, found)
    if slope is not None:
      weight = batch['weight'] if 'weight' in batch else np.ones(examples_in(batch)[0], np.float32)
      weights.append(float(np.sum(weight, dtype=float)))
      one = slope(params, model_state, {**batch, 'weight': jnp.asarray(weight)})
      one = jax.tree.map(lambda leaf: running.widened(leaf) * weights[-1], one)
      gradients = one if gradients is None else jax.tree.map(jnp.add, gradients, one)
  if totals is None:
    raise ValueError(
      'gather_statistics reads what reaches the weights, so it needs at least one batch with an example; got none'
    )
  _refuse_infinite(*totals, gradients)
  known, skipped, seen = _read(apply, params, model_state, batch['inputs'])
  told = (
    tuple((path, state.by) for path, state in seen.items() if not state.fine),
    tuple((path, state.bent) for path, state in seen.items() if state.bent),
  )
  leaves = trees.by_path(params)
  squares, moments = totals
  return Calibration(
    norms={path: _laid_out(jnp.sqrt(one), leaves[path], known[path]) for path, one in squares.items()},
    grams=moments,
    gradients=jax.tree.map(lambda one: one / (sum(weights) or 1.0), gradients),
    layouts=layouts.Layouts(tuple(known.items()), tuple(skipped.items()), *told),
  )


def _refuse_infinite(squares: Any, moments: Any, gradients: Any) -> None:
  """A weight whose inputs are not finite would score above all others, and live for that."""
  for what, found in (('the inputs of', squares), ('the inputs of', moments), ('the gradients of', gradients)):
    for path, leaf in trees.by_path(found).items():
      if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(leaf))):
        raise ValueError(
          f'gather_statistics: {what} {path!r} are not finite, or too large for their squares, so no weight can be '
          'scored by them: look at the batches and the params'
        )


def _without_padding(batch: Batch) -> Batch | None:
  """The examples whose weight is not 0, None where there are none."""
  real = np.asarray(batch['weight']) != 0 if 'weight' in batch else np.True_
  if real.all():
    return batch
  _, rows = examples_in(batch)
  return jax.tree.map(lambda leaf, has: leaf[real] if has else leaf, dict(batch), rows) if real.any() else None


def _forward(model: Model | Callable[[Any, Any], Any]) -> Callable[..., Any]:
  if isinstance(model, Model):
    return lambda params, state, inputs: model.apply(params, state, inputs, train=False, key=None)[0]
  if not callable(model):
    raise TypeError(
      f'gather_statistics takes a Model or a function (params, inputs) -> outputs; got {type(model).__name__}'
    )
  pure = without_effects(model, 'gather_statistics')
  return lambda params, state, inputs: pure(params, inputs)


def _objective(apply: Any, loss: Any, params: Any, state: Any, batch: Batch) -> jax.Array:
  outputs = apply(params, state, batch['inputs'])
  return lift_loss(loss)(Context(outputs, batch, params, state, None, None))['task']


class _Program(NamedTuple):
  jaxpr: Any
  plan: provenance.Plan
  uses: Mapping[str, tuple[layouts.Use, ...]]
  weights: frozenset[str]
  shapes: Mapping[str, tuple[int, ...]]


def _trace(apply: Any, params: Any, state: Any, inputs: Any) -> _Program:
  jaxpr = jax.make_jaxpr(apply)(params, state, inputs)
  tags = model_tags(params, state, inputs, None, None)
  plan = provenance.read(jaxpr, tags)
  weights = frozenset().union(*(site.weights for site in plan.all_sites())) & {*trees.paths(params)}
  shapes = {path: tuple(np.shape(leaf)) for path, leaf in trees.by_path(params).items()}
  return _Program(jaxpr, plan, layouts.read(jaxpr, plan, tags), weights, shapes)


def _read(
  apply: Any, params: Any, state: Any, inputs: Any
) -> tuple[dict[str, Any], dict[str, str], dict[str, zeros.State]]:
  program = _trace(apply, params, state, inputs)
  if not program.weights:
    walk.refuse_sealed(program.jaxpr, 'gather_statistics')
    raise ValueError('gather_statistics finds no contraction of a parameter with an activation: pass weights as params')
  known = layouts.layouts_of(program.uses)
  recorded = {use.path for name in _wanted(program) for use in program.uses[name]}
  skipped = {}
  for path in sorted(program.weights - recorded):
    skipped[path] = _why_not(program, path, known.get(path)) or 'it stands in a branch or a while'
  seen = zeros.multiplied(program.jaxpr, program.plan, model_tags(params, state, inputs, None, None))
  return {path: known.get(path) for path in sorted(program.weights)}, skipped, seen


def _wanted(program: _Program) -> frozenset[str]:
  """The sites to record: of clear leaves, always run, the same number of times."""
  known = layouts.layouts_of(program.uses)
  sure = frozenset(_always_run(program.jaxpr, program.plan))
  clear = {path for path in program.weights if not _why_not(program, path, known.get(path))}
  own = {name: {use.path for use in uses} & program.weights for name, uses in program.uses.items()}
  return frozenset(name for name, paths in own.items() if name in sure and paths and paths <= clear)


def _why_not(program: _Program, path: str, layout: layouts.LeafLayout | None) -> str:
  """Why no inputs can be told of a weight, '' where they can."""
  if layout is None:
    return 'the program mixes its axes, or uses it in two ways'
  shape = program.shapes[path]
  sites = {site.name: site for site in program.plan.all_sites()}
  for name, uses in program.uses.items():
    for use in uses:
      if use.path != path:
        continue
      site = sites[name.partition('!')[0]]
      if '!' in name:
        return next(s.why_not for s in program.plan.all_sites() if s.why_not and path in s.weights)
      if use.box is None:
        return 'it is put together with others, or its parts are picked as the program runs'
      many, held = _stacks(site, use), math.prod(use.box[axis][1] for axis in layout.stack(len(shape)))
      if held not in (1, many):
        return 'it is shared by some of the layers that it stands in'
      cut = [axis for axis, (_, size) in enumerate(use.box) if size != shape[axis]]
      first = layout.outputs[:1] if site.kind == 'dot_general' else ()
      if not {*cut} <= {*layout.stack(len(shape)), *first}:
        return 'it is cut along its inputs, or in several ways along its outputs'
  return ''


def _stacks(site: provenance.Site, use: layouts.Use) -> int:
  """How many weights a site multiplies: in the scans around it, and at once."""
  return math.prod(site.lengths) * use.many


def _groups(program: _Program, path: str, layout: layouts.LeafLayout) -> int:
  """Into how many equal parts of its outputs a weight is cut by its uses."""
  if not layout.outputs:
    return 1
  features = program.shapes[path][layout.outputs[0]]
  boxes = [use.box[layout.outputs[0]] for uses in program.uses.values() for use in uses if use.path == path and use.box]
  return features // max(math.gcd(features, *(end for start, size in boxes for end in (start, start + size))), 1)


def _always_run(jaxpr: Any, plan: provenance.Plan) -> Iterable[str]:
  eqns = walk.opened(jaxpr)[0].eqns
  yield from (site.name for site in plan.sites.values() if not site.why_not)
  for index, inner in plan.inner.items():
    if eqns[index].primitive.name not in ('while', 'cond'):
      for one, body in zip(inner, walk.bodies(eqns[index]), strict=False):
        yield from _always_run(body, one)


def _moments(apply: Any, params: Any, state: Any, inputs: Any, *, grams: bool) -> tuple[dict[str, Any], dict[str, Any]]:
  """By path, sums of squares float32[S, K] and Gram matrices float32[S, K, K]."""
  program = _trace(apply, params, state, inputs)
  wanted = _wanted(program)

  def visit(site: provenance.Site, eqn: Any, operands: Any, read: Any, axes: Any) -> tuple[Any, Any]:
    rows = _rows(eqn, operands, site.side, program.uses[site.name][0])
    record = {'squares': jnp.einsum('snk,snk->sk', rows, rows, precision='highest')}
    if grams:
      record['gram'] = jnp.einsum('snk,snl->skl', rows, rows, precision='highest')
    return eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params)), record

  rules = rewrite.Rules(
    visit=visit,
    wanted=lambda site: site.name in wanted,
    merge=lambda one, other: jax.tree.map(jnp.add, one, other),
    fold=lambda record: jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), record),
    absent=lambda lengths: None,  # never asked for: no recorded site stands where it may not run
    across=lambda record, axes: jax.tree.map(lambda leaf: lax.psum(leaf, axes), record),
  )
  _, records = rewrite.run(program.jaxpr, program.plan, jax.tree.leaves((params, state, inputs)), rules, {})
  squares: dict[str, Any] = {}
  moments: dict[str, Any] = {}
  sites = program.plan.weight_sites()
  for name, record in records.items():
    lead = len(sites[name].lengths)
    for use in program.uses[name]:
      if use.path not in program.weights:  # frozen
        continue
      for into, field in ((squares, 'squares'), (moments, 'gram')):
        if field in record:
          one = record[field]
          one = one.reshape(math.prod(one.shape[: lead + 1]), *one.shape[lead + 1 :])
          one = _placed(program, use, _stacks(sites[name], use), one)
          into[use.path] = into[use.path] + one if use.path in into else one
  return squares, moments


def _placed(program: _Program, use: layouts.Use, many: int, record: jax.Array) -> jax.Array:
  """What one use recorded, float32[S of its part, K...], among zeros for the weight's other parts: float32[S, K...]."""
  shape, layout = program.shapes[use.path], use.layout
  stack = layout.stack(len(shape))
  parts = _groups(program, use.path, layout)
  place = [slice(use.box[axis][0], sum(use.box[axis])) for axis in stack]
  own = [use.box[axis][1] for axis in stack]
  if math.prod(own) != many:  # one for all the layers that scale it
    record = jnp.sum(record.reshape(many, -1, *record.shape[1:]), axis=0)
  inside = record.shape[0] // max(math.prod(own), 1)  # groups of a convolution
  record = record.reshape(*own, inside, *record.shape[1:])
  if parts > 1:
    (start, size), wide = use.box[layout.outputs[0]], shape[layout.outputs[0]] // parts
    place.append(slice(start // wide, (start + size) // wide))
  whole = jnp.zeros(
    (*(shape[axis] for axis in stack), max(inside, parts), *record.shape[len(stack) + 1 :]), record.dtype
  )
  whole = whole.at[tuple(place)].set(record)
  return whole.reshape(math.prod(whole.shape[: len(stack) + 1]), *whole.shape[len(stack) + 1 :])


def _rows(eqn: Any, operands: Any, side: int, use: layouts.Use) -> jax.Array:
  """The inputs of a contraction as rows: float32[S, N, K], K in the order of the weight's summed axes."""
  x = operands[1 - side].astype(jnp.float32)
  if eqn.primitive.name == 'conv_general_dilated':
    return _patches(eqn, x, operands[side].shape)
  contracted, batches = eqn.params['dimension_numbers']
  of_sum = [contracted[1 - side][contracted[side].index(axis)] for axis in use.order]
  of_batch = [batches[1 - side][batches[side].index(axis)] for axis in use.batch]
  free = [axis for axis in range(x.ndim) if axis not in of_sum + of_batch]
  moved = jnp.transpose(x, (*of_batch, *free, *of_sum))
  sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (of_batch, free, of_sum)]
  return moved.reshape(sizes)


def _patches(eqn: Any, x: jax.Array, kernel: tuple[int, ...]) -> jax.Array:
  """What each position of a convolution's kernel sees, by groups."""
  given, numbers = eqn.params, eqn.params['dimension_numbers']
  spatial = [kernel[axis] for axis in numbers.rhs_spec[2:]]
  channels, groups = kernel[numbers.rhs_spec[1]], given['feature_group_count']
  found = lax.conv_general_dilated_patches(
    jnp.transpose(x, numbers.lhs_spec),
    spatial,
    given['window_strides'],
    given['padding'],
    lhs_dilation=given['lhs_dilation'],
    rhs_dilation=given['rhs_dilation'],
    precision=lax.Precision.HIGHEST,
  )
  batch, positions = found.shape[0], math.prod(found.shape[2:])
  found = found.reshape(batch, groups, channels, math.prod(spatial), positions)  # channels outermost
  return jnp.transpose(found, (1, 0, 4, 3, 2)).reshape(groups, batch * positions, math.prod(spatial) * channels)


def _laid_out(rows: jax.Array, leaf: Any, layout: layouts.LeafLayout) -> jax.Array:
  """float32[S, K] in the leaf's own axes; the groups of a convolution lie along its outputs."""
  shape = np.shape(leaf)
  stack = layout.stack(len(shape))
  summed = [shape[axis] for axis in layout.summed]
  stacked = [shape[axis] for axis in stack]
  groups = rows.shape[0] // max(math.prod(stacked), 1)
  order = (*stack, *layout.outputs, *layout.summed)
  if groups > 1:
    features, *others = (shape[axis] for axis in layout.outputs)
    ones = (1 for _ in others)
    wide = rows.reshape(*stacked, groups, *ones, *summed)
    wide = jnp.repeat(wide, features // groups, axis=len(stacked))
  else:
    wide = rows.reshape(*stacked, *(1 for _ in layout.outputs), *summed)
  return jnp.transpose(wide, tuple(order.index(axis) for axis in range(len(shape))))
