"""Machines as their vendors describe them: peak rates, memory, price, and where that is published.

Peaks are never reached: `elsewhere` says how far below them it reckons. What a vendor does not publish is left out: a
bandwidth of 0 is not known, nor is a price of None. A peak of CPU cores is their number times clock times what one does
in a cycle, each of which is published. Prices are not verified: they are those that others quote for Linux on demand
in us-east-1, in dollars, unseen on the vendor's own page (whose price list is behind `PRICES`), and they change. What
is free is so within the quotas that its provider sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlite.errors import nearest

GIB, GB = 1 << 30, 10**9
KINDS = ('cpu', 'gpu', 'tpu')


class Machine(NamedTuple):
  """A machine as it is described.

  Attributes:
    name: for tables.
    cores: CPU cores, which also prepare the input of an accelerator; 0 is not known.
    flops: FLOP/s at the peak by precision; 'float32' is what JAX does with float32 by default.
    memory: bytes that a run may use: of the accelerator where there is one.
    bandwidth: bytes/s of that memory at the peak; 0 is not known.
    price: dollars an hour; 0 is free, None is not known.
    source: where these figures are published.
    kind: 'cpu', 'gpu' or 'tpu'.
    measured: whether the rates are not peaks but were measured there by jaxlite.
    note: for a reader.
  """

  name: str
  cores: int
  flops: dict[str, float]
  memory: int
  bandwidth: float
  price: float | None = None
  source: str = ''
  kind: str = 'cpu'
  measured: bool = False
  note: str = ''


_T4 = 'https://www.nvidia.com/en-us/data-center/tesla-t4/'
_L4 = 'https://www.nvidia.com/en-us/data-center/l4/'
_A100 = 'https://www.nvidia.com/en-us/data-center/a100/'
_H100 = 'https://www.nvidia.com/en-us/data-center/h100/'
_P100 = 'https://www.nvidia.com/en-us/data-center/tesla-p100/'
_V5E = 'https://docs.cloud.google.com/tpu/docs/v5e'
_V3 = 'https://docs.cloud.google.com/tpu/docs/v3'
_PI5 = 'https://www.raspberrypi.com/products/raspberry-pi-5/'
_C6I = 'https://aws.amazon.com/ec2/instance-types/c6i/'
_C7G = 'https://aws.amazon.com/ec2/instance-types/c7g/'
PRICES = 'https://aws.amazon.com/ec2/pricing/on-demand/'
_TPU_NOTE = 'JAX multiplies float32 in bfloat16 there by default'
_TF32_NOTE = 'float32 without TF32, which is faster and rounds more'
_TURING = {'float32': 8.1e12, 'float16': 65e12, 'int8': 130e12}
_AMPERE = {'float32': 19.5e12, 'bfloat16': 312e12, 'float16': 312e12, 'int8': 624e12}
_HOPPER = {'float32': 67e12, 'bfloat16': 989e12, 'float16': 989e12, 'int8': 1979e12}
_TURING_NOTE = 'no bfloat16 in hardware'


def _ice_lake(vcpus: int, price: float) -> Machine:
  """Two hardware threads are one core: 3.5 GHz at most with all of them, two 512-bit multiply-adds a cycle."""
  peak = vcpus / 2 * 3.5e9 * 64
  note = f'{vcpus} vCPUs are {vcpus // 2} cores'
  return Machine(f'AWS c6i, {vcpus} vCPUs', vcpus, {'float32': peak}, 2 * vcpus * GIB, 0, price, _C6I, note=note)


def _graviton_3(vcpus: int, price: float) -> Machine:
  """2.6 GHz, 32 float32 FLOPs a cycle: two multiply-adds of 256 bits."""
  peak = vcpus * 2.6e9 * 32
  return Machine(f'AWS c7g, {vcpus} vCPUs', vcpus, {'float32': peak}, 2 * vcpus * GIB, 0, price, _C7G)


MACHINES = (
  Machine('free notebook, T4', 2, _TURING, 16 * GB, 300e9, 0, _T4, 'gpu', note=_TURING_NOTE),
  Machine('free notebook, P100', 2, {'float32': 9.3e12, 'float16': 18.7e12}, 16 * GB, 732e9, 0, _P100, 'gpu'),
  Machine(
    'free notebook, TPU v5e-1', 0, {'float32': 197e12, 'bfloat16': 197e12, 'int8': 393e12}, 16 * GB, 819e9, 0, _V5E,
    'tpu', note=_TPU_NOTE,
  ),
  Machine(
    'TPU v3-8, one chip of four', 0, {'float32': 123e12, 'bfloat16': 123e12}, 32 * GIB, 900e9, None, _V3, 'tpu',
    note=_TPU_NOTE,
  ),
  Machine('T4 (AWS g4dn.xlarge)', 4, _TURING, 16 * GB, 300e9, 0.526, _T4, 'gpu', note=_TURING_NOTE),
  Machine(
    'L4', 0, {'float32': 30.3e12, 'bfloat16': 121e12, 'float16': 121e12, 'int8': 242e12}, 24 * GB, 300e9, None, _L4,
    'gpu', note=_TF32_NOTE,
  ),
  Machine(
    'A100 40 GB', 0, _AMPERE, 40 * GB, 1555e9, None,
    _A100, 'gpu', note=_TF32_NOTE,
  ),
  Machine(
    'H100 80 GB', 0, _HOPPER, 80 * GB, 3350e9, None,
    _H100, 'gpu', note=_TF32_NOTE,
  ),
  Machine(
    'Raspberry Pi 5, 8 GB', 4, {'float32': 4 * 2.4e9 * 16}, 8 * GIB, 17e9, None, _PI5,
    note='runs hot: without a fan it slows down',
  ),
  _ice_lake(2, 0.085),
  _ice_lake(4, 0.17),
  _ice_lake(8, 0.34),
  _graviton_3(2, 0.0725),
  _graviton_3(4, 0.145),
  _graviton_3(8, 0.29),
)  # fmt: skip


def machine_named(name: str) -> Machine:
  """Returns a machine of the table.

  Raises:
    ValueError: there is none of this name.

  >>> machine_named('free notebook, T4').flops['float32']
  8100000000000.0
  """
  for machine in MACHINES:
    if machine.name == name:
      return machine
  raise ValueError(f'no machine is named {name!r}; near it: {nearest(name, (one.name for one in MACHINES))}')


def described(content: Mapping[str, Any]) -> Machine:
  """Returns a machine from plain data, as a person writes it or a file holds it.

  Args:
    content: 'flops' (FLOP/s of float32, or by precision) and 'memory' (bytes), and what else is known of the fields of
      Machine.

  Raises:
    ValueError: a name is unknown, or a value is no such number.

  >>> described({'flops': 2e11, 'memory': 8 * GIB, 'bandwidth': 4e10}).flops
  {'float32': 200000000000.0}
  """
  unknown = [name for name in content if name not in Machine._fields]
  if unknown:
    raise ValueError(f'a machine has no {unknown[0]!r}; near it: {nearest(str(unknown[0]), Machine._fields)}')
  flops = content.get('flops')
  by_kind = dict(flops) if isinstance(flops, Mapping) else {'float32': flops}
  if 'float32' not in by_kind:
    raise ValueError("a machine's flops name 'float32', which others are compared with")
  kind = content.get('kind', 'cpu')
  if kind not in KINDS:
    raise ValueError(f'a machine is one of {", ".join(KINDS)}; got {kind!r}')
  price = content.get('price')
  return Machine(
    str(content.get('name', 'the described machine')),
    int(_amount(content.get('cores', 0), 'cores', zero=True)),
    {str(name): _amount(value, f'flops of {name}') for name, value in by_kind.items()},
    int(_amount(content.get('memory'), 'memory')),
    _amount(content.get('bandwidth', 0), 'bandwidth', zero=True),
    None if price is None else _amount(price, 'price', zero=True),
    str(content.get('source', 'as described')),
    kind,
    bool(content.get('measured', False)),
    str(content.get('note', '')),
  )


def _amount(value: Any, what: str, zero: bool = False) -> float:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not (0 <= value < float('inf')) or (value == 0 and not zero):
    raise ValueError(f"a machine's {what} is a number {'of at least' if zero else 'above'} 0; got {value!r}")
  return float(value)
