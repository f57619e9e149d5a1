"""Running a program again with other arithmetic at its contractions.

`run` interprets a jaxpr that `provenance.read` has read. Equations without a site inside are bound as they are;
at a site a function of the caller's decides; control flow around a site is emitted anew through JAX's public
functions, so that derivatives, batching and partitioning are JAX's own. Nothing is patched: the caller's
function and every cache of JAX stay what they were.

A site may *read* arrays (ranges, say) and leaves a *record* (what it saw). Both are threaded through control
flow: a scan over layers reads and records one slice an iteration; a weight shared by all iterations records
their merger; so does a while; a branch not taken leaves the record that changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.graph import provenance, sharding, walk

Records = dict[str, Any]


class Rules(NamedTuple):
  """What is done at a site, and how its records combine.

  Attributes:
    visit: (site, eqn, operands, read, axes) -> (result, record). `axes` are the mesh axes over which the
      operands are shards and collectives are allowed here. The result has the equation's shape and dtype.
    wanted: whether a site is rewritten at all.
    merge: (record, record) -> record.
    fold: record with a leading axis -> record.
    absent: (site, lengths of leading axes) -> the record that merges as nothing.
    across: (record, axes) -> record, the same on every shard.
    body: runs a body in place of `Runner.body`, where values are followed from one equation to the next; None leaves
      it to that.
  """

  visit: Callable[..., tuple[Any, Any]]
  wanted: Callable[[provenance.Site], bool]
  merge: Callable[[Any, Any], Any]
  fold: Callable[[Any], Any]
  absent: Callable[[provenance.Site, tuple[int, ...]], Any]
  across: Callable[[Any, tuple[str, ...]], Any]
  body: Callable[..., tuple[list[Any], Records]] | None = None


def run(
  jaxpr: Any, plan: provenance.Plan, args: Sequence[Any], rules: Rules, reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  """Runs a program with its sites rewritten.

  Args:
    jaxpr: closed, as it was read.
    plan: what `provenance.read` gave for it.
    args: its inputs, flat.
    rules: what is done at a site.
    reads: by site name, what it reads, with the site's `lengths` as leading axes; may lack a site.

  Returns:
    (results, flat; records by site name, with the same leading axes).
  """
  ambient = tuple(sorted(sharding.ambient()))  # inside a shard_map, what is seen is a shard's
  results, records = Runner(rules, ambient, True).body(jaxpr, plan, args, reads)
  return results, {name: rules.across(record, ambient) for name, record in records.items()} if ambient else records


class Runner(NamedTuple):
  rules: Rules
  axes: tuple[str, ...]  # of the enclosing shard_maps
  collectives: bool  # whether every shard is sure to come by

  def varying(self, record: Any) -> Any:
    """Marks a record as another on every shard: all ways through control flow must agree on that."""
    return jax.tree.map(lambda leaf: _varying(leaf, self.axes), record)

  def nothing(self, plan: provenance.Plan) -> Records:
    """Returns the records of a body that does not run."""
    records = {}
    for name, site in self.wanted(plan).items():  # scans further out add their axes themselves
      lengths = tuple(n for depth, n in zip(site.stack, site.lengths, strict=True) if depth >= plan.depth)
      records[name] = self.varying(self.rules.absent(site, lengths))
    return records

  def wanted(self, plan: provenance.Plan) -> dict[str, provenance.Site]:
    return {name: site for name, site in plan.weight_sites().items() if self.rules.wanted(site)}

  def body(self, jaxpr: Any, plan: provenance.Plan, args: Sequence[Any], reads: Mapping[str, Any]) -> Any:
    if self.rules.body is not None:
      return self.rules.body(self, jaxpr, plan, args, reads)
    bare, consts = walk.opened(jaxpr)
    env: dict[Any, Any] = dict(zip([*bare.constvars, *bare.invars], [*consts, *args], strict=True))
    last_use = {atom: index for index, eqn in enumerate(bare.eqns) for atom in eqn.invars if not hasattr(atom, 'val')}
    keep = {atom for atom in bare.outvars if not hasattr(atom, 'val')}
    records: Records = {}

    def value(atom: Any) -> Any:
      return atom.val if hasattr(atom, 'val') else env[atom]

    for index, eqn in enumerate(bare.eqns):
      operands = [value(atom) for atom in eqn.invars]
      # What was ambient where the equation was traced: mesh, compute type, metadata; and the scopes of names, by
      # which a profile tells layers.
      scope = str(eqn.source_info.name_stack)
      with eqn.ctx.manager, jax.named_scope(scope) if scope else contextlib.nullcontext():
        results, new = self.equation(eqn, index, plan, operands, reads)
      records.update(new)
      env.update(zip(eqn.outvars, results, strict=True))
      for atom in eqn.invars:  # as JAX's own evaluator: outside jit, memory is freed after the last use
        if not hasattr(atom, 'val') and last_use[atom] == index and atom not in keep:
          env.pop(atom, None)
    return [as_typed(value(atom), atom.aval) for atom in bare.outvars], records

  def equation(
    self, eqn: Any, index: int, plan: provenance.Plan, operands: list[Any], reads: Mapping[str, Any]
  ) -> tuple[list[Any], Records]:
    site = plan.sites.get(index)
    if site is not None and not site.why_not and self.rules.wanted(site):
      result, record = self.rules.visit(
        site, eqn, operands, reads.get(site.name), self.axes if self.collectives else ()
      )
      return [result], {site.name: record}
    plans = plan.inner.get(index, ())
    if not any(self.wanted(inner) for inner in plans):
      return bind(eqn, operands), {}
    name = eqn.primitive.name
    emit = _EMITTERS.get(name, _emit_call)
    return emit(self, eqn, plans, operands, reads)


def _varying(value: jax.Array, axes: Sequence[str]) -> jax.Array:
  already = jax.typeof(value).manual_axis_type.varying if axes else frozenset()
  new = tuple(axis for axis in axes if axis not in already)
  return lax.pcast(value, new, to='varying') if new else value


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
  out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
  return list(out) if eqn.primitive.multiple_results else [out]


def as_typed(value: Any, aval: Any) -> Any:
  """A literal result is a Python or NumPy scalar; control flow wants the dtype that was traced."""
  if isinstance(value, jax.Array) or not hasattr(aval, 'dtype'):
    return value
  return jnp.asarray(value, aval.dtype)


def _emit_call(
  runner: Runner, eqn: Any, plans: Sequence[provenance.Plan], operands: list[Any], reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  # Inlined: the caller's jit compiles it anyway. Shardings that the inner jit asked for are kept.
  pinned = _pin(operands, eqn.params.get('in_shardings', ()))
  results, records = runner.body(eqn.params[walk.CALLS[eqn.primitive.name]], plans[0], pinned, reads)
  return _pin(results, eqn.params.get('out_shardings', ())), records


def _pin(values: list[Any], shardings: Sequence[Any]) -> list[Any]:
  if not shardings:
    return values
  return [
    lax.with_sharding_constraint(value, sharding) if isinstance(sharding, jax.sharding.Sharding) else value
    for value, sharding in zip(values, shardings, strict=True)
  ]


def _emit_remat(
  runner: Runner, eqn: Any, plans: Sequence[provenance.Plan], operands: list[Any], reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  names = runner.wanted(plans[0])

  @functools.partial(jax.checkpoint, policy=eqn.params['policy'], prevent_cse=eqn.params['prevent_cse'])
  def again(operands: list[Any], reads: Mapping[str, Any]) -> tuple[list[Any], Records]:
    return runner.body(eqn.params['jaxpr'], plans[0], operands, reads)

  return again(operands, {name: read for name, read in reads.items() if name in names})


@jax.custom_jvp
def with_gradient_of(values: list[jax.Array], carrier: list[jax.Array]) -> list[jax.Array]:
  """Gives one computation's values the derivatives of another's."""
  del carrier
  return values


@with_gradient_of.defjvp
def _(primals: Any, tangents: Any) -> Any:
  return primals[0], tangents[1]


def _emit_custom(
  runner: Runner, eqn: Any, plans: Sequence[provenance.Plan], operands: list[Any], reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  # Whoever wrote a derivative rule does not want the body's derivative: the rule stays as it is, straight
  # through the quantized value. What the rule does not need of the original body is dead code to XLA.
  stopped = [lax.stop_gradient(operand) for operand in operands]
  results, records = runner.body(eqn.params['call_jaxpr'], plans[0], stopped, reads)
  return with_gradient_of(results, bind(eqn, operands)), records


def _emit_scan(
  runner: Runner, eqn: Any, plans: Sequence[provenance.Plan], operands: list[Any], reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  (plan,) = plans
  num_consts, num_carry = walk.scan_layout(eqn)
  consts, init = operands[:num_consts], operands[num_consts : num_consts + num_carry]
  stacked = {name for name, site in runner.wanted(plan).items() if plan.depth - 1 in site.stack}

  def body(carry: list[Any], slices: Any) -> Any:
    xs, own = slices
    results, records = runner.body(eqn.params['jaxpr'], plan, [*consts, *carry, *xs], {**reads, **own})
    return results[:num_carry], (results[num_carry:], records)

  carry, (ys, records) = lax.scan(
    body,
    init,
    (operands[num_consts + num_carry :], {name: reads[name] for name in sorted(stacked) if name in reads}),
    length=eqn.params['length'],
    reverse=eqn.params['reverse'],
    unroll=eqn.params['unroll'],
  )
  folded = {name: record if name in stacked else runner.rules.fold(record) for name, record in records.items()}
  return [*carry, *ys], folded


def _emit_while(
  runner: Runner, eqn: Any, plans: Sequence[provenance.Plan], operands: list[Any], reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  cond_plan, body_plan = plans
  num_cond, num_body = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
  for_cond, for_body = operands[:num_cond], operands[num_cond : num_cond + num_body]
  inside = runner._replace(collectives=False)  # a shard may leave the loop before its neighbors

  def cond(state: Any) -> Any:
    return inside.body(eqn.params['cond_jaxpr'], cond_plan, [*for_cond, *state[0]], reads)[0][0]

  def body(state: Any) -> Any:
    values, seen = state
    results, records = inside.body(eqn.params['body_jaxpr'], body_plan, [*for_body, *values], reads)
    return results, {name: inside.varying(runner.rules.merge(seen[name], one)) for name, one in records.items()}

  return lax.while_loop(cond, body, (operands[num_cond + num_body :], inside.nothing(body_plan)))


def _emit_cond(
  runner: Runner, eqn: Any, plans: Sequence[provenance.Plan], operands: list[Any], reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  index, *args = operands
  inside = runner._replace(collectives=False)  # not every shard takes this branch
  nothing: Records = {}
  for plan in plans:
    nothing.update(inside.nothing(plan))

  def taken(branch: Any, plan: provenance.Plan, *args: Any) -> tuple[list[Any], Records]:
    results, records = inside.body(branch, plan, args, reads)
    return results, {**nothing, **{name: inside.varying(record) for name, record in records.items()}}

  branches = [
    functools.partial(taken, branch, plan) for branch, plan in zip(eqn.params['branches'], plans, strict=True)
  ]
  platforms = eqn.params.get('branches_platforms')
  if platforms is None:
    return lax.switch(index, branches, *args)
  # Chosen at lowering: a branch need not even lower on another platform.
  chosen = {
    name: branch
    for names, branch in zip(platforms, branches, strict=True)
    for name in (names if names is not None else ('default',))
  }
  return lax.platform_dependent(*args, **chosen)


def _emit_shard_map(
  runner: Runner, eqn: Any, plans: Sequence[provenance.Plan], operands: list[Any], reads: Mapping[str, Any]
) -> tuple[list[Any], Records]:
  manual = tuple(sorted(eqn.params['newly_manual_axes'], key=str))
  names = runner.wanted(plans[0])
  replicated = jax.sharding.PartitionSpec()

  def shard(operands: list[Any], reads: Mapping[str, Any]) -> tuple[list[Any], Records]:
    inside = runner._replace(axes=(*runner.axes, *manual))
    results, records = inside.body(eqn.params['jaxpr'], plans[0], operands, reads)
    return results, {name: runner.rules.across(record, manual) for name, record in records.items()}

  mapped = jax.shard_map(
    shard,
    mesh=eqn.params['mesh'],
    in_specs=(list(eqn.params['in_specs']), replicated),
    out_specs=(list(eqn.params['out_specs']), replicated),
    axis_names=set(manual),
    check_vma=eqn.params['check_vma'],
  )
  return mapped(operands, {name: read for name, read in reads.items() if name in names})


_EMITTERS: dict[str, Callable[..., tuple[list[Any], Records]]] = {
  'scan': _emit_scan,
  'while': _emit_while,
  'cond': _emit_cond,
  'remat': _emit_remat,
  'remat2': _emit_remat,
  'checkpoint': _emit_remat,
  'custom_jvp_call': _emit_custom,
  'custom_vjp_call': _emit_custom,
  'shard_map': _emit_shard_map,
}
