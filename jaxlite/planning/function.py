"""The cost and memory of one call of any function that JAX compiles: for training loops that are not ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite.graph import sharding, walk
from jaxlite.host import mapping
from jaxlite.host.crowd import free_cores
from jaxlite.host.rates import Rates
from jaxlite.planning.branches import SCHEDULED
from jaxlite.planning.buffers import held
from jaxlite.planning.cost import BY_BYTES, NOT_COUNTED, cost
from jaxlite.planning.duration import Duration, around
from jaxlite.planning.elapsed import elapsed
from jaxlite.planning.flow import size_of
from jaxlite.planning.plan import between, mib, spoken

_SMALL = 50 << 10  # bytes that nobody needs to hear of
_SHOWN = 8  # layers or kinds of work, the dearest


class Call(NamedTuple):
  """What one call of a function takes. The process around it, the data and what else is alive are not in it.

  Where it runs on several devices, all figures are of all of them together.

  Attributes:
    flops: floating-point operations, a multiply-add counted as two.
    bytes: read and written.
    arguments: bytes; with arrays that the function does not take but closes over.
    outputs, temporaries: bytes; of the outputs those that do not take a donated argument's place.
    work: FLOPs and bytes by kind of work, the dearest first.
    time: seconds, with the interval that holds 80 of 100, for as busy as the machine is now; None where it was
      not measured. Where `said` has something that is not counted, it takes longer.
    basis: 'traced', or 'compiled' where XLA has told arguments, outputs and temporaries.
    said: what was assumed or could not be counted.
    devices: that it runs on.
  """

  flops: float
  bytes: float
  arguments: int
  outputs: int
  temporaries: int
  work: dict[str, tuple[float, float]]
  time: Duration | None
  basis: str
  said: tuple[str, ...]
  devices: int = 1

  @property
  def peak(self) -> int:
    """Bytes of arguments, outputs and temporaries together."""
    return self.arguments + self.outputs + self.temporaries

  def __str__(self) -> str:
    known = 'as XLA compiled it' if self.basis == 'compiled' else 'from its trace'
    lines = [
      f'one call: {_count(self.flops)}FLOP, {mib(self.bytes)} read and written; it holds {mib(self.peak)}, {known}:',
      f'  arguments {mib(self.arguments)}, results {mib(self.outputs)}, temporaries {mib(self.temporaries)}',
    ]
    if self.time is not None:
      least = any(_is_doubt(line) for line in self.said)
      about = f'at least {spoken(self.time.low)}' if least else f'about {between(self.time)}'
      lines.append(f'  {about} a call on this machine')
    for name, (flops, size) in list(self.work.items())[:_SHOWN]:
      lines.append(f'  {name}: {_count(flops)}FLOP, {mib(size)}')
    return '\n'.join([*lines, *(f'  {"not known" if _is_doubt(line) else "note"}: {line}' for line in self.said)])


def call(
  function: Callable[..., Any],
  args: Sequence[Any],
  rates: Rates | None = None,
  *,
  donated: Sequence[int] = (),
  compiled: bool = False,
) -> Call:
  """Returns what one call of a function takes; nothing is run.

  Args:
    function: of arrays, jitted or not: what is static or donated in a jitted one is so here.
    args: its arguments, or their shapes (`jax.ShapeDtypeStruct`). What lies in a tree and is no array (an activation
      function, a name) is taken as it is.
    rates: of this machine; None tells no time.
    donated: positions of the arguments whose memory the results may take, as `jax.jit` takes them.
    compiled: asks XLA for the memory; it compiles the function for that.

  Raises:
    TypeError: it cannot be traced: it asks for a value, or an argument is neither array nor tree of such.

  >>> found = call(lambda w, x: jax.nn.relu(x @ w), (jax.numpy.ones((8, 4)), jax.numpy.ones((2, 8))))
  >>> found.flops >= 2 * 2 * 8 * 4, found.arguments
  (True, 192)
  """
  if hasattr(function, 'memory_analysis'):
    raise TypeError(
      'a compiled program tells no more of what it computes: give jl.plan the function it was compiled from'
    )
  if not isinstance(args, list | tuple):
    raise TypeError(f'args= holds the arguments, one after the other: args=(x,) for one; got {type(args).__name__}')
  jitted = hasattr(function, 'trace') and not donated
  kept = tuple(place + len(args) if place < 0 else place for place in donated)  # JAX passes over those below 0
  changed: list[int] = []
  if jitted:
    traced = _said_in_a_line(function.trace, args)  # type: ignore[attr-defined]
    traced = getattr(traced, 'traced', traced)  # NNX wraps JAX's own
  else:
    function, args = _of_arrays(function, args, changed)
    traced = _said_in_a_line(jax.jit(function, donate_argnums=kept).trace, args)
  jaxpr, leaves = traced.jaxpr, jax.tree.leaves(traced.args_info, is_leaf=lambda one: hasattr(one, 'donated'))
  inside = _given_inside(jaxpr)
  given = [index for index, leaf in enumerate(leaves) if leaf.donated or index in inside]
  work = cost(jaxpr, recomputes=jax.default_backend() != 'cpu')
  takes = held(jaxpr, given, jax.default_backend(), kernels=False)
  constants = _constants(jaxpr)
  arguments, outputs, temporaries = takes.arguments + constants, takes.outputs - takes.aliased, takes.temporaries
  devices = max([_devices_of(leaf) for leaf in jax.tree.leaves(args)] + [_meshed(jaxpr)])
  if jitted and jax.device_count() > 1:
    with contextlib.suppress(Exception):  # static arguments: then only the compiled program tells
      devices = max(devices, _meshed(jax.make_jaxpr(function)(*args)))  # a trace of its own does not say where it runs
  said = list(work.said)
  if compiled:
    program = traced.lower().compile()
    told = program.memory_analysis()
    if told is None:
      said.append('XLA tells no memory of this program: what is told is from its trace')
      compiled = False
    else:
      devices = max([_devices_of(one) for one in jax.tree.leaves(program.input_shardings)] + [devices])
      arguments, temporaries = devices * told.argument_size_in_bytes, devices * told.temp_size_in_bytes
      outputs = devices * (told.output_size_in_bytes - told.alias_size_in_bytes)
  if changed:
    said.append('what the function writes into its arguments is counted with its results')
  if constants > _SMALL:
    said.append(
      f'{mib(constants)} of arrays that the function closes over are counted with its arguments'
      if not compiled
      else f'{mib(constants)} of arrays that the function closes over lie in the program, beside what XLA tells'
    )
  if devices > 1:
    said.append(f'figures are of all {devices} devices together')
  time = None
  if rates is not None:
    found = elapsed(work, rates, free_cores(), kernels=False)
    said += found.said
    if SCHEDULED in work.said and found.at_most > 1.05:
      said.append(f'where a counter picks the dearest side of each branch it takes {found.at_most:.1f} times as long')
    if devices > 1 and jax.default_backend() != 'cpu':
      said.append('time is told as if one device did all of it')
    seconds = found.wall + rates.dispatch
    if jax.default_backend() == 'cpu' and devices == 1:
      blocks = [temporaries, *_new_results(jaxpr, [leaves[index] for index in given])]
      if mapped := mapping.anew(blocks):
        more = mapped * mapping.seconds_a_byte()
        seconds += more
        said.append(
          f'{mib(mapped)} of temporaries and results are mapped anew at every call, which takes {spoken(more)} of it: '
          'where a result takes the place of an argument that is donated, it is not'
        )
    time = around(seconds, found.spread, (found.fewer, found.more))
  basis = 'compiled' if compiled else 'traced'
  return Call(
    work.flops, work.bytes, arguments, outputs, temporaries, work.by('kind'), time, basis, tuple(said), devices
  )


def _of_arrays(
  function: Callable[..., Any], args: Sequence[Any], changed: list[int]
) -> tuple[Callable[..., Any], Sequence[Any]]:
  """A function of the arrays alone in some arguments, one list for each, and these.

  What it writes into its arguments, as objects with a state let it, is among its results; how many arrays those are
  goes into `changed`.
  """
  flat = [jax.tree.flatten(one) for one in args]

  def bare(*given: list[Any]) -> Any:
    whole = []
    for (leaves, tree), arrays in zip(flat, given, strict=True):
      left = iter(arrays)
      whole.append(tree.unflatten([next(left) if _is_array(leaf) else leaf for leaf in leaves]))
    before = jax.tree.leaves(whole)
    found = function(*whole)
    pairs = zip(jax.tree.leaves(whole), before, strict=False)
    written = [new for new, old in pairs if new is not old and _is_array(new)]
    changed[:] = [len(written)] if written else []
    if hasattr(found, '__next__'):
      raise TypeError(
        'jl.plan traces what a function computes while it is called, and this one returns a '
        f'{type(found).__name__}, which computes later: give the step itself, which returns arrays'
      )
    return jax.tree.map(lambda leaf: leaf if _is_array(leaf) else None, (found, written))

  return bare, [[leaf for leaf in leaves if _is_array(leaf)] for leaves, _ in flat]


def _is_array(leaf: Any) -> bool:
  if isinstance(leaf, bool | int | float | complex):
    return True
  return hasattr(leaf, 'shape') and hasattr(leaf, 'dtype') and str(leaf.dtype) != 'object'


def _said_in_a_line(trace: Callable[..., Any], args: Sequence[Any]) -> Any:
  try:
    return trace(*args)
  except (TypeError, jax.errors.JAXIndexError) as error:
    if 'as an abstract array' in str(error) and (strange := _strange(args)):
      raise TypeError(
        f'an argument is an array of JAX or NumPy, its shape, a number, or a tree of such; got {strange}: give '
        'numpy.asarray of it'
      ) from None
    if not isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError) and 'concrete' not in str(error):
      raise  # a mistake of another kind
    said = str(error).strip().split('\n')[0].rstrip('.')
    raise TypeError(
      f'jl.plan traces a function and runs nothing, and this one asks for a value: {said}. Give the step that is '
      'compiled, without what looks at its results'
    ) from error


def _strange(args: Sequence[Any]) -> str:
  """The first leaf that JAX takes for no array, in words; '' where there is none."""
  for leaf in jax.tree.leaves(list(args)):
    if _is_array(leaf):
      try:
        jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else None
      except TypeError:
        kind = f'{type(leaf).__module__}.{type(leaf).__name__}'
        return f'{kind} of {leaf.dtype}'
  return ''


def _given_inside(jaxpr: Any) -> frozenset[int]:
  """The arguments that a program hands to a jitted one which is given them to keep, by position."""
  bare, _ = walk.opened(jaxpr)
  places = {var: place for place, var in enumerate(bare.invars)}
  pairs = [pair for eqn in bare.eqns for pair in zip(eqn.invars, eqn.params.get('donated_invars', ()), strict=False)]
  return frozenset(places[atom] for atom, given in pairs if given and not hasattr(atom, 'val') and atom in places)


def _new_results(jaxpr: Any, given: Sequence[Any]) -> list[int]:
  """Bytes of each result that does not lie where an argument lay that is given to be kept."""
  places = [(tuple(one.shape), one.dtype) for one in given]
  found = []
  for var in walk.opened(jaxpr)[0].outvars:
    form = tuple(getattr(var.aval, 'shape', ())), getattr(var.aval, 'dtype', None)
    if form in places:
      places.remove(form)
    else:
      found.append(size_of(var.aval))
  return found


def _is_doubt(line: str) -> bool:
  """Whether a line tells of what is not counted; others say what was assumed."""
  return line.startswith(NOT_COUNTED) or BY_BYTES in line


def _constants(jaxpr: Any) -> int:
  """Bytes of arrays that a program holds beside its arguments, each once; numbers and small tables are its own text."""
  found: dict[int, Any] = {}
  todo = [jaxpr]
  while todo:
    bare, consts = walk.opened(todo.pop())
    literals = [atom.val for eqn in bare.eqns for atom in eqn.invars if hasattr(atom, 'val')]
    found |= {id(one): one for one in (*consts, *literals) if getattr(one, 'ndim', 0)}
    todo += [body for eqn in bare.eqns for body in walk.bodies(eqn)]
  return sum(size_of(one) for one in found.values())


def _devices_of(one: Any) -> int:
  """How many devices an array, or a sharding, lies on; 1 where it does not say."""
  placed = getattr(one, 'sharding', one)
  return int(getattr(placed, 'num_devices', 1) or 1)


def _meshed(jaxpr: Any) -> int:
  """The most devices that a part of a program asks for."""
  found = [1]
  for eqn in walk.equations(jaxpr):
    if eqn.primitive.name == 'shard_map':
      found.append(sharding.devices(eqn))
    placed = eqn.params.get('in_shardings', ())
    found += [_devices_of(one) for one in (placed if isinstance(placed, tuple) else ())]
  return max(found)


def _count(number: float) -> str:
  """A count with its prefix.

  >>> _count(1.5e9), _count(12), _count(0)
  ('1.5 G', '12 ', '0 ')
  """
  for size, prefix in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if number >= size:
      return f'{number / size:.1f} {prefix}'
  return f'{number:.0f} '
