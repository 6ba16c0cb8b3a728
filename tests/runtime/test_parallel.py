from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.runtime.parallel import for_each


def squares(number: int) -> tuple[int, np.ndarray, int]:
    return number**2, np.full(2, number), os.getpid()


def refuse_three(number: int) -> int:
    if number == 3:
        raise BadInput("number 3: can't be used. Take another.")
    return number


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    raise KeyError(f"programming error {number}")


@pytest.mark.parametrize("processes", [0, 1, 2, 5, None])
def test_results_come_in_the_order_of_the_items(processes: int | None) -> None:
    results = list(for_each(squares, range(7), description="x", processes=processes))
    assert [square for square, _, _ in results] == [n**2 for n in range(7)]
    assert all(isinstance(array, np.ndarray) for _, array, _ in results)
    own = {process == os.getpid() for _, _, process in results}
    if processes is not None:
        assert own == {processes <= 1}


@pytest.mark.parametrize("processes", [0, 2])
def test_bad_input_comes_through_as_its_one_line(processes: int) -> None:
    results = for_each(refuse_three, range(6), description="x", processes=processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadInput) as caught:
        next(results)
    assert str(caught.value) == "number 3: can't be used. Take another."


def test_a_process_that_is_killed_ends_the_work_with_its_reason() -> None:
    with pytest.raises(BadInput, match="preparing: a process was ended from outside"):
        list(for_each(die, range(4), description="preparing", processes=2))


@pytest.mark.parametrize("processes", [0, 2])
def test_other_errors_keep_their_kind(processes: int) -> None:
    with pytest.raises(KeyError, match="programming error"):
        list(for_each(fail, range(3), description="x", processes=processes))


def test_nothing_to_do_gives_nothing() -> None:
    items: list[Path] = []
    assert list(for_each(str, items, description="x")) == []
