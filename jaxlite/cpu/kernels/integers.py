"""Networks of integers by kernels of this folder: the numbers of a plan as `integer_plan.h` reads it, and its call.

What stands in a plan is said in `integer_plan.h`; `deployment/running/kernels.py` makes one of a list of operations.
Bytes are unsigned in a plan: what is stored as int8, plus 128.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.cpu.kernels import compiler, ffi

VERSION = 2
TARGET = f'jaxlite_cpu_integers_{VERSION}'
WIDE = 16  # sums that stand side by side: outputs are packed in blocks of so many
_CHANNELS = 64  # of a block where each is summed alone
KINDS = (
  *('conv', 'alone', 'add', 'mean', 'pool', 'copy', 'fill', 'quantize', 'dequantize', 'table'),
  *('chain', 'reduce', 'product'),
)
# What a chain does, in the numbering of `vectors.h`.
INSTRUCTIONS = (
  *('load', 'rows', 'bytes', 'constant', 'periodic', 'store', 'grid', 'add', 'sub', 'mul', 'div', 'max', 'min'),
  *('neg', 'square', 'sqrt', 'rsqrt', 'exp', 'tanh', 'logistic', 'abs'),
)
REGISTERS = 16  # blocks that a chain holds at once
LONGEST = 256  # instructions of a chain
MOST_READ = 32  # buffers that a chain reads and writes
_OPERANDS = 64  # of a plan, or results
_NUMBERS = 24  # that a step may have
_ENTRIES = 256  # of a window of which each channel is summed alone


class Buffer(NamedTuple):
  """Where a value lies: place 0 is the arena, 1 an operand, 2 a result; `at` the byte in it, or which one."""

  place: int
  at: int
  bytes: int  # of one example


class Step(NamedTuple):
  """One operation: buffers by their number, and what else its kind needs."""

  kind: str
  x: int
  other: int
  y: int
  numbers: Sequence[int]
  more: Sequence[int] = ()  # buffers that a chain reads and writes


def plan(
  buffers: Sequence[Buffer], steps: Sequence[Step], *, inputs: int, outputs: int, arena: int, weights: int, at_once: int
) -> np.ndarray:
  """Returns a plan, int64.

  Args:
    buffers: all of them.
    steps: in order.
    inputs: how many operands there are, the weights not counted.
    outputs: how many results.
    arena: bytes of one example between the layers.
    weights: bytes of them all.
    at_once: examples that go through the layers together, at most.
  """
  head = [VERSION, inputs, outputs, arena, weights, at_once, len(buffers), len(steps)]
  rows = []
  for one in steps:
    rows += [KINDS.index(one.kind), one.x, one.other, one.y]
    rows += [*one.numbers, *[0] * (_NUMBERS - len(one.numbers))]
  return np.array([*head, *(number for one in buffers for number in one), *rows], np.int64)


def rounded(outputs: int) -> int:
  """Returns a number of outputs as whole blocks."""
  return -(-outputs // WIDE) * WIDE


def packed(w: np.ndarray, groups: int, together: bool) -> np.ndarray:
  """Returns the weights of a convolution as its kernel reads them: [group][block][four bytes of a run][output][4].

  Args:
    w: int8[O, kh, kw, C / groups].
    groups: of channels.
    together: whether the entries of a window's row are one run (no groups, no dilation along it).
  """
  outputs, high, wide, _ = w.shape
  each, runs = outputs // groups, high if together else high * wide
  rows = w.reshape(groups, each, runs, -1)
  length = -(-rows.shape[3] // 4) * 4
  full = np.zeros((groups, rounded(each), runs, length), np.int8)
  full[:, :each, :, : rows.shape[3]] = rows
  return full.reshape(groups, -1, WIDE, runs * length // 4, 4).transpose(0, 1, 3, 2, 4).reshape(-1)


def packed_alone(w: np.ndarray) -> np.ndarray:
  """Returns the weights of a convolution whose channels are summed each alone: [block][four entries][channel][entry].

  Entries are the window's, row by row; of a window of 3 by 3 its columns, each with one of 0. Channels are in the order
  of `in_blocks`.

  Args:
    w: int8[C, kh, kw, 1].

  Raises:
    ValueError: a window of more entries than the kernel takes.
  """
  channels, high, wide, _ = w.shape
  if high * wide > _ENTRIES:
    raise ValueError(f'windows of up to {_ENTRIES} entries; got {high * wide}')
  if (high, wide) == (3, 3):
    w = np.pad(w[..., 0].transpose(0, 2, 1), ((0, 0), (0, 0), (0, 1)))
  entries = w.reshape(channels, -1)
  full = in_blocks(np.pad(entries, ((0, 0), (0, -entries.shape[1] % 4))))
  return full.reshape(-1, _CHANNELS, full.shape[1] // 4, 4).transpose(0, 2, 1, 3).reshape(-1)


def in_blocks(each: np.ndarray) -> np.ndarray:
  """Returns what each channel has, [C, ...], as the kernel that sums them alone reads it: in blocks of 64, of which
  first four of every 16, filled up with 0."""
  full = np.zeros((-(-len(each) // _CHANNELS) * _CHANNELS, *each.shape[1:]), each.dtype)
  full[: len(each)] = each
  rest = each.shape[1:]
  return full.reshape(-1, 4, 4, 4, *rest).swapaxes(1, 2).reshape(len(full), *rest)


def bits(real: Any) -> int:
  """Returns a float32 as a plan holds it.

  >>> bits(1.0)
  1065353216
  """
  return int(np.float32(real).view(np.int32))


@functools.cache
def missing() -> str:
  """Returns why the kernels cannot be used here; '' if they can.

  >>> missing() == '' or missing().startswith('no integers in C')
  True
  """
  try:
    lib = compiler.load('integers', tuned=True)
  except compiler.NoLibrary as error:
    return f'no integers in C: {error}'
  if not _tried(lib):
    return 'no integers in C: their trial came out wrong on this processor'
  ffi.register(TARGET, ctypes.cast(lib.jaxlite_integers, ctypes.c_void_p))
  return ''


def call(
  plan: np.ndarray, weights: jax.Array, results: Sequence[jax.ShapeDtypeStruct], *operands: jax.Array
) -> list[jax.Array]:
  """Runs a plan as an operation of a CPU program.

  Args:
    plan: of `plan`.
    weights: int8[...].
    results: float32 or int8 [B, ...].
    operands: float32 or int8 [B, ...].
  """
  found = jax.ffi.ffi_call(TARGET, list(results), vmap_method='sequential')(*operands, weights, plan=plan)
  return list(found)


def run(
  lib: Any, plan: np.ndarray, weights: np.ndarray, operands: Sequence[np.ndarray], results: Any, members: int = 1
) -> int:
  """Runs a plan without XLA, on this thread, in the parts that `members` threads would share; 0 where all went well, 1
  where the plan cannot be meant."""
  given = (ctypes.c_void_p * _OPERANDS)(*(one.ctypes.data for one in operands))
  found = (ctypes.c_void_p * _OPERANDS)(*(one.ctypes.data for one in results))
  address, size = ctypes.c_void_p(plan.ctypes.data), ctypes.c_int64(len(plan))
  batch = ctypes.c_int64(len(operands[0]) if operands else 0)
  held = ctypes.c_void_p(weights.ctypes.data)
  return int(lib.jaxlite_network(address, size, batch, held, given, found, ctypes.c_int64(members)))


def is_sound(plan: np.ndarray, weights: np.ndarray) -> bool:
  """Tells whether kernels would run a plan: they have limits, say of sizes and of how many operands there are."""
  return run(compiler.load('integers', tuned=True), plan, weights, [], []) == 0


def _tried(lib: Any) -> bool:
  """Sums of the largest bytes there are, which some processors' instructions saturate, dense and of channels alone."""
  rng = np.random.default_rng(0)
  x = rng.choice(np.array([0, 254, 255], np.uint8), (3, 1, 7, 35))
  for groups in (1, 35):
    outputs = 83 if groups == 1 else 35
    w = rng.choice(np.array([-127, 126, 127], np.int8), (outputs, 1, 3, 35 // groups))
    wanted = np.zeros((3, 1, 5, outputs), np.int64)
    for entry in range(3):
      some = x[:, :, entry : entry + 5].astype(np.int64)
      by = w[:, 0, entry].astype(np.int64)
      wanted += some @ by.T if groups == 1 else some * by[:, 0]
    parts = [packed(w, 1, True) if groups == 1 else packed_alone(w)]
    lanes = rounded(outputs) if groups == 1 else -(-outputs // _CHANNELS) * _CHANNELS
    parts += [np.zeros(4 * lanes, np.int8), np.ones(lanes, np.float32).view(np.int8)]
    weights = np.concatenate(parts)
    numbers = [1, 7, 35, 1, 3, 1, 1, 1, 1, 0, 0, 1, 5, outputs, groups, 0, 0, len(parts[0]), 0, 1, 0, 0]
    copied = [1, 1, 1, 1, 245, *[0, 0, 0, 0, 1] * 2, 0, 0, 1]
    buffers = [Buffer(0, 0, 256), Buffer(1, 0, 245), Buffer(2, 0, 20 * outputs)]
    steps = [Step('copy', 1, 0, 0, copied), Step('conv' if groups == 1 else 'alone', 0, 0, 2, numbers)]
    made = plan(buffers, steps, inputs=1, outputs=1, arena=256, weights=len(weights), at_once=2)
    found = np.zeros(wanted.shape, np.float32)
    if run(lib, made, weights, [x], [found]) or not (found == wanted).all():
      return False
  return True
