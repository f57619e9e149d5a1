"""Blocks that are mapped anew: which are, and that what it takes was measured."""

from jaxlite.host import mapping


def test_only_large_blocks_are_mapped_anew():
  assert mapping.anew([]) == mapping.anew([mapping.LARGE, 5, 0]) == 0
  assert mapping.anew([mapping.LARGE + 1, mapping.LARGE + 2, 9]) == 2 * mapping.LARGE + 3


def test_a_fresh_byte_takes_longer_than_none_and_less_than_a_microsecond():
  assert 0 < mapping.seconds_a_byte() < 1e-6


def test_where_nothing_can_be_mapped_it_takes_nothing(monkeypatch):
  monkeypatch.setattr(mapping, 'available', lambda: 0)
  assert mapping.seconds_a_byte.__wrapped__() == 0
