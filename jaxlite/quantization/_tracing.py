"""A function or a model as a traced program, and training's sites by the names that evaluation has."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite.contract import Model, Params, State
from jaxlite.graph import joins, provenance, uses
from jaxlite.graph.model import model_leaves, model_tags
from jaxlite.quantization._numerics import Bits, BitsLike, check_bits

Rules = Mapping[str, BitsLike | None]


class Program(NamedTuple):
  """A function at some shapes.

  Attributes:
    jaxpr: closed.
    plan: read from it.
    out_tree: the structure of its results.
    reading: what is known of its values, where every one of them may be quantized.
  """

  jaxpr: Any
  plan: provenance.Plan
  out_tree: Any
  reading: joins.Reading | None = None


def trace(
  fn: Callable[..., Any],
  args: Sequence[Any],
  tags: Sequence[provenance.Tag],
  *,
  pairs: bool = False,
  inputs: Sequence[bool] | None = None,
) -> Program:
  """Traces and reads a function.

  Args:
    fn: takes `args`.
    args: pytrees of arrays.
    tags: one per leaf of `args`, in order.
    pairs: whether products of two activations are sites too.
    inputs: for every value to be quantized: of each leaf, whether it is the network's input. Sums of activations are
      sites then, and what integers can make of the program is read.
  """
  jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  if inputs is None:
    return Program(jaxpr, provenance.read(jaxpr, tags, pairs=pairs), jax.tree.structure(shapes))
  jaxpr = joins.inlined(jaxpr)
  plan = provenance.read(jaxpr, tags, pairs=True, meets=True)
  return Program(jaxpr, plan, jax.tree.structure(shapes), joins.read(jaxpr, plan, inputs))


def trace_model(
  model: Model,
  params: Params,
  state: State,
  inputs: Any,
  *,
  train: bool,
  key: Any,
  step: Any,
  pairs: bool = False,
  every: bool = False,
) -> tuple[Program, list[Any]]:
  """Traces a model's apply.

  Returns:
    (the program, its inputs, flat).
  """

  def fn(params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
    return model.apply(params, state, inputs, train=train, key=key, step=step)

  args = (params, state, inputs, key, step)
  given = [len(jax.tree.leaves(one)) for one in args]
  live = [index == 2 for index, count in enumerate(given) for _ in range(count)] if every else None
  return trace(fn, args, model_tags(*args), pairs=pairs, inputs=live), jax.tree.leaves(args)


class Passes(NamedTuple):
  """Training as traced, its uses of weights named as evaluation's.

  Attributes:
    program: of the training pass.
    leaves: its inputs, flat.
    extra: the names of uses that only training has.
    alone: the sites that only evaluation has.
    joins: of the sums of activations, those that integers can make, as evaluation shows them.
  """

  program: Program
  leaves: list[Any]
  extra: frozenset[str] = frozenset()
  alone: Mapping[str, provenance.Site] = {}
  joins: frozenset[str] = frozenset()


def trace_training(
  model: Model,
  params: Params,
  state: State,
  inputs: Any,
  *,
  key: Any,
  step: Any,
  bits: Bits,
  rules: Rules | None,
  what: str,
  known: Collection[str] | None = None,
  pairs: bool = False,
  every: bool = False,
) -> Passes:
  """Traces a model's apply in training, and in evaluation where the uses of a weight could be taken for one another.

  Args:
    model: its functions.
    params: its parameters.
    state: its state.
    inputs: one batch.
    key: the root key or None.
    step: int32[] or None.
    bits: where no rule speaks.
    rules: by regular expression on a site's name; what they keep float need not be told apart.
    what: names the asking part in an error.
    known: the names of what is kept; None where nothing is yet.
    pairs: whether products of two activations are sites too.

  Raises:
    ValueError: the uses of a weight cannot be told apart.
  """
  kinds = {'pairs': pairs, 'every': every}
  program, leaves = trace_model(model, params, state, inputs, train=True, key=key, step=step, **kinds)
  names = program.plan.weight_sites().keys()
  numbered = any('#' in one for one in (*names, *(known or ()), *(rules or {})))
  if known is not None and not numbered and not every:
    return Passes(program, leaves)
  other, _ = trace_model(model, params, state, inputs, train=False, key=None, step=None, **kinds)
  reached = frozenset() if other.reading is None else other.reading.names
  sites = other.plan.weight_sites()
  found = uses.named_alike(
    (program.jaxpr, program.plan),
    (other.jaxpr, other.plan),
    model_leaves(params, state, inputs, key, step),
    model_leaves(params, state, inputs, None, None),
  )
  for base, (ours, theirs) in found.unclear.items():
    if base in joins.NAMES.values() and not {*theirs} & reached:
      continue  # nothing is kept of any
    if any(bits_of(name, bits, rules, what) is not None for name in (*ours, *theirs)):
      raise ValueError(
        f'{what}: a range belongs to one use of a weight, and of {base} training has {len(ours)} and evaluation '
        f'{len(theirs)} that cannot be told apart by what feeds them: put each in a jax.named_scope of its own, the '
        f'same in both, or keep it float, rules={{{f"^{re.escape(base)}(#|$)"!r}: None}}'
      )
  plan = uses.renamed(program.plan, found.names)
  extra = frozenset(found.names.values()) - sites.keys()
  alone = {name: sites[name] for name in sorted(found.alone)}
  for name in sorted(reached & alone.keys()):
    if bits_of(name, bits, rules, what) is not None:
      raise ValueError(
        f'{what}: every=True keeps a range of each sum of activations, and of {name} in evaluation nothing tells which '
        f'of training it is: put it in a jax.named_scope, the same in both, or keep it float, rules={{{name!r}: None}}'
      )
  return Passes(program._replace(plan=plan), leaves, extra, alone, reached)


def bits_of(name: str, bits: Bits | None, rules: Rules | None, what: str) -> Bits | None:
  """Returns the bits of a site: of the first rule that matches its name, else those given."""
  for pattern, value in (rules or {}).items():
    if re.search(pattern, name):
      return None if value is None else check_bits(value, f'{what}: rule {pattern!r}')
  return bits
