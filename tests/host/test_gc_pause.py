"""The collector is held back for as long as it is said, and left as it was found."""

import gc

import pytest

from jaxlite.host.gc_pause import paused


def test_it_is_held_back_inside_and_works_again_after():
  assert gc.isenabled()
  with paused():
    assert not gc.isenabled()
    with paused():
      assert not gc.isenabled()
    assert not gc.isenabled()
  assert gc.isenabled()


def test_an_error_does_not_leave_it_off():
  with pytest.raises(KeyError), paused():
    raise KeyError
  assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
  gc.disable()
  try:
    with paused():
      pass
    assert not gc.isenabled()
  finally:
    gc.enable()
