"""The arrays that a program holds at once, from its jaxpr: what XLA will take beside arguments and results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from jaxlite.graph import walk
from jaxlite.graph.contractions import flops_of
from jaxlite.planning.by_xla import by_xla
from jaxlite.planning.flow import Flow, Op, Value, opened, size_of
from jaxlite.planning.work import is_of_generator
from jaxlite.planning.writing import IN_COLUMNS, Written, kind, written

_HALVES = ('bfloat16', 'float16')
# Arrays as large as what they read that LAPACK's kernels take beside it: it works in place, on a copy.
_COPIES_OF = {'svd': 1, 'eig': 3, 'schur': 1, 'geqrf': 1, 'householder_product': 1, 'qr': 1}
_RAGGED = ('ragged_dot', 'ragged_dot_general')
_ELSEWHERE = (
  'transpose',
  'tile',
  'rev',
  'slice',
  'pad',
  'concatenate',
  'gather',
  'dynamic_slice',
  'dynamic_update_slice',
)


class Held(NamedTuple):
  """What one program takes.

  Attributes:
    arguments, outputs: bytes of what goes in and comes out.
    aliased: of `outputs`, what lies where a donated argument lay.
    temporaries: bytes of everything else, at the most.
    at_peak: the temporaries that are held then, the largest first.
    equations: of the program with its calls opened.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  at_peak: tuple[Value, ...]
  equations: int


def held(jaxpr: Any, donated: Collection[int] = (), platform: str = 'cpu', kernels: bool = True) -> Held:
  """Returns what a program takes.

  Args:
    jaxpr: of the program, closed or open.
    donated: arguments by position whose memory its results may take.
    platform: that it will run on.
    kernels: whether convolutions and gradients of pools become calls of C, as in a run of ours, whose factors
      (`memory_table`) also stand for what is written where a temporary or a result lies. XLA's own forms for CPU take
      copies of what they read.

  >>> import jax
  >>> from jax import numpy as jnp
  >>> x, w = jnp.ones((100, 100)), jnp.ones((100, 100))
  >>> held(jax.make_jaxpr(lambda x, w: jnp.tanh(x @ w) @ w)(x, w)).temporaries
  80000
  """
  flow = opened(jaxpr, platform)
  free = [flow.values[flow.inputs[i]] for i in donated]
  pool: dict[Any, int] = {}
  for given in free:
    pool[given.shape, given.dtype] = pool.get((given.shape, given.dtype), 0) + 1
  placed: set[int] = set()
  aliased = 0
  outputs = list(dict.fromkeys(value for value in flow.outputs if value >= 0))
  for value in outputs:
    key = flow.values[value].shape, flow.values[value].dtype
    if pool.get(key, 0):
      pool[key] -= 1
      placed.add(value)
      aliased += flow.values[value].bytes
  total = sum(flow.values[value].bytes for value in flow.outputs if value >= 0)  # each has its own, equal ones too
  scratch = [] if kernels else [one for one in outputs if one not in placed and one not in flow.inputs]
  peak, at = _peak(flow, {*flow.inputs, *outputs}, platform, kernels, scratch)
  arguments = sum(flow.values[value].bytes for value in flow.inputs)
  values = tuple(sorted((flow.values[value] for value in at), key=lambda value: -value.bytes))
  return Held(arguments, total, aliased, peak, values, flow.equations)


def _peak(
  flow: Flow, outside: set[int], platform: str, kernels: bool = True, scratch: Sequence[int] = ()
) -> tuple[int, list[int]]:
  """The most bytes of temporaries, and their ids; the better of the program's order and one that frees early."""
  steps = written(flow)
  flow = flow._replace(values=_widened(flow, outside, platform))
  inner = [_inside(one, flow, platform, kernels) + _copies(one, flow, outside, platform) for one in steps]
  if platform == 'cpu' and not kernels:
    inner = [size + more for size, more in zip(inner, by_xla(flow, steps, outside), strict=True)]
  heirs = [one.carried if kernels else one.carried | _in_place(one) for one in steps]
  tries = [
    _simulated(flow, steps, inner, order, outside, scratch, heirs, IN_COLUMNS if platform == 'cpu' else ())
    for order in (list(range(len(steps))), _frugal(flow, steps))
  ]
  return min(tries, key=lambda pair: pair[0])


def _simulated(
  flow: Flow,
  steps: list[Written],
  inner: list[int],
  order: list[int],
  outside: set[int],
  scratch: Sequence[int],
  heirs: list[frozenset[int]],
  columns: Collection[str],
) -> tuple[int, list[int]]:
  first: dict[int, int] = {}
  last: dict[int, int] = {}
  for at, index in enumerate(order):
    for value in steps[index].reads:
      last[value] = at
    for value in steps[index].op.writes:
      first.setdefault(value, at)
  # The memory of a result, until it is written, holds what is no larger and is read before.
  free = sorted(((flow.values[value].bytes, first.get(value, -1), value) for value in scratch), reverse=True)
  until: dict[int, int] = {}  # of such memory, when it is free again
  there: set[int] = set()
  live: dict[int, int] = {}
  now = peak = 0
  kept: list[int] = []
  for at, index in enumerate(order):
    step = steps[index]
    dying = [value for value in step.reads if last[value] == at and value in live]
    taken = inner[index]
    if step.op.name in columns and not any(value in step.carried for value in dying):  # given out in rows, by a copy
      taken += sum(flow.values[value].bytes for value in step.op.writes if value in outside)
    for value in step.op.writes:
      if value in outside or value in live or value in there:
        continue
      size = flow.values[value].bytes
      heir = next((old for old in dying if old in heirs[index] and live.get(old) == size), None)
      if heir is not None:  # it stays where it is
        now -= live.pop(heir)
      else:
        ends = last.get(value, at)
        place = next(
          (one for most, when, one in free if size <= most and ends <= when and until.get(one, -1) < at), None
        )
        if place is not None and size:
          until[place] = ends
          there.add(value)
          continue
      live[value] = size
      now += size
    if now + taken > peak:
      peak, kept = now + taken, list(live)
    for value in dying:
      if value in live:
        now -= live.pop(value)
    for value in step.op.writes:
      if value in live and value not in last:
        now -= live.pop(value)
  return peak, kept


def _in_place(step: Written) -> frozenset[int]:
  """The operands where the result of what is computed entry by entry may lie."""
  by_entry = kind(step.op) in ('cheap', 'dear') and step.op.name not in _ELSEWHERE
  return step.reads if by_entry else frozenset()


def _frugal(flow: Flow, steps: list[Written]) -> list[int]:
  """The program's order, but what frees as much as it takes is done as soon as it can be."""
  makers: dict[int, int] = {value: i for i, step in enumerate(steps) for value in step.op.writes}
  needs = [{makers[value] for value in step.reads if value in makers} - {i} for i, step in enumerate(steps)]
  waiting = [len(one) for one in needs]
  users: list[list[int]] = [[] for _ in steps]
  for i, one in enumerate(needs):
    for maker in one:
      users[maker].append(i)
  left: dict[int, int] = {}
  for step in steps:
    for value in step.reads:
      left[value] = left.get(value, 0) + 1
  done = [False] * len(steps)
  order: list[int] = []

  def gain(i: int) -> int:
    taken = sum(flow.values[value].bytes for value in steps[i].op.writes)
    return sum(flow.values[value].bytes for value in steps[i].reads if value in makers and left[value] == 1) - taken

  def take(start: int) -> None:
    todo = [start]
    while todo:
      i = todo.pop()
      if done[i]:
        continue
      done[i] = True
      order.append(i)
      touched = set()
      for value in steps[i].reads:
        left[value] -= 1
      for user in users[i]:
        waiting[user] -= 1
        touched.add(user)
      todo += [
        user for user in sorted(touched, reverse=True) if not done[user] and not waiting[user] and gain(user) >= 0
      ]

  for i in range(len(steps)):
    if not done[i]:
      take(i)
  return order


def _widened(flow: Flow, outside: set[int], platform: str) -> list[Value]:
  """The values, those of 8 and 16 bits that a product makes or reads as large as in 32: so XLA for CPU multiplies."""
  if platform != 'cpu':
    return flow.values
  cast = {op.writes[0] for op in flow.ops if op.name == 'convert_element_type'}  # and cast back: XLA leaves out both
  hidden = outside | cast
  wide = {
    value
    for op in flow.ops
    for value in (*op.reads, *op.writes)
    if op.name == 'dot_general' and value >= 0 and value not in hidden and _widening(flow.values[value].dtype)
  }
  return [
    value._replace(bytes=_widening(value.dtype) * value.bytes) if i in wide else value
    for i, value in enumerate(flow.values)
  ]


def _widening(dtype: str) -> int:
  """How many times as large a narrow float is in 32 bits; 0 of any other type."""
  return 2 if dtype in _HALVES else 4 if dtype.startswith('float8') else 0


def _copies(step: Written, flow: Flow, outside: set[int], platform: str) -> int:
  """Bytes of copies in 32 bits that a product makes of what lies outside in 16."""
  name = step.op.name
  if platform != 'cpu' or name not in ('dot_general', 'conv_general_dilated'):
    return 0
  around = {value for value in (*step.op.reads, *step.op.writes) if value in outside}
  if name == 'conv_general_dilated':
    return sum(2 * flow.values[value].bytes for value in around if flow.values[value].dtype == 'bfloat16')
  return sum(_widening(flow.values[value].dtype) * flow.values[value].bytes for value in around)


def _inside(step: Written, flow: Flow, platform: str, kernels: bool) -> int:
  """Bytes that an equation takes while it runs, beside what it reads and writes."""
  op = step.op
  if op.name in ('cumlogsumexp', 'top_k'):
    return max((flow.values[value].bytes for value in op.writes), default=0)
  if op.name in _COPIES_OF and platform == 'cpu':
    return _COPIES_OF[op.name] * flow.values[op.reads[0]].bytes if op.reads[0] >= 0 else 0
  if (
    op.name in ('random_bits', 'threefry2x32') and platform == 'cpu' and not is_of_generator(op.eqn)
  ):  # a loop over two arrays of words
    return 2 * sum(flow.values[value].bytes for value in op.writes)
  if op.name == 'bcoo_dot_general' and platform == 'cpu':  # a row of the dense operand for each stored entry
    return op.eqn.outvars[0].aval.dtype.itemsize * flops_of(op.eqn) // 2
  if op.name in _RAGGED and platform == 'cpu':
    return _masked(op, flow)
  bodies = walk.bodies(op.eqn)
  if not bodies or op.name in ('reduce_window', 'select_and_scatter_add', 'reduce'):
    return 0
  if op.name == 'cond':
    return max(held(body, (), platform, kernels).temporaries for body in bodies)
  return max(_body(op.eqn, body, platform, kernels) for body in bodies)


def _masked(op: Op, flow: Flow) -> int:
  """Bytes of the rows of a ragged product, which each group has all of, masked: XLA for CPU has no other. In a gradient
  of the groups' own weights the masked rows of all forward products are still there."""
  own, found = op.reads[0], 0
  groups = op.eqn.invars[2].aval.shape[-1]
  if len(op.eqn.outvars[0].aval.shape) > 2:
    found = groups * size_of(op.eqn.invars[1].aval)
    others = {one.reads[0]: one for one in flow.ops if one.name in _RAGGED and one.reads[0] != own}
    found += sum(one.eqn.invars[2].aval.shape[-1] * size_of(one.eqn.invars[0].aval) for one in others.values())
  return found + groups * size_of(op.eqn.invars[0].aval)


def _body(eqn: Any, jaxpr: Any, platform: str, kernels: bool) -> int:
  """Bytes of one turn of a loop: what it is given is the loop's own, and what it stacks is put there at once."""
  inner = opened(jaxpr, platform)
  outside = set(inner.inputs)
  if eqn.primitive.name == 'scan':
    makers = {value: op for op in inner.ops for value in op.writes}
    stacked = inner.outputs[walk.scan_layout(eqn)[1] :]
    outside |= {value for value in stacked if value in makers and kind(makers[value]) in ('cheap', 'dear')}
  return _peak(inner, outside, platform, kernels)[0]
