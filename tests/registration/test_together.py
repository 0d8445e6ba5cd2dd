"""Calls side by side: order, exceptions, threads, and one after the other where numba's pool cannot be shared."""

from __future__ import annotations

import threading
from functools import partial

import numba
import pytest

from histomri.registration import together as module
from histomri.registration.together import together


@pytest.fixture
def two_threads() -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba has one thread only")
    if module.threading_layer() not in module.SHARED_LAYERS:
        pytest.skip("numba's pool cannot be shared here")


def test_results_come_in_the_order_of_the_calls() -> None:
    assert together([partial(pow, 2, k) for k in range(20)]) == [2**k for k in range(20)]
    assert together([]) == []


def _fails() -> int:
    raise KeyError("this one")


def test_the_first_exception_comes_out() -> None:
    with pytest.raises(KeyError, match="this one"):
        together([lambda: 1, _fails, lambda: 2])


def test_calls_share_the_threads_and_leave_the_caller_its_own(two_threads: None) -> None:
    before = numba.get_num_threads()
    numba.set_num_threads(2)
    assert together([numba.get_num_threads] * 2) == [1, 1]
    assert numba.get_num_threads() == 2
    numba.set_num_threads(before)


def test_a_pool_that_cannot_be_shared_is_entered_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "threading_layer", lambda: "workqueue")
    assert together([threading.get_ident] * 3) == [threading.get_ident()] * 3
