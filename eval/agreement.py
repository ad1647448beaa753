"""A user's mistake that one process meets, raised alike in all of them."""
from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from utils.distributed import Process, gather_objects
from utils.errors import AgreedError, InputError, one_line

T = TypeVar("T")


def done_by_all(work: Callable[[], T]) -> T:
    """This process's `work()`; where that is an InputError in any process, all raise the first of them alike."""
    result, problem = None, None
    try:
        result = work()
    except InputError as error:
        problem = one_line(error)
    raise_first(problem)
    return result


def done_by_main(process: Process, work: Callable[[], T]) -> T:
    """The main process's `work()`, in every process; an InputError there is raised in all."""
    return gather_objects(done_by_all(lambda: work() if process.is_main else None))[0]


def raise_first(problem: str | None) -> None:
    """AgreedError in every process, of the first process's `problem` that is not None. All must call this."""
    for found in gather_objects(problem):
        if found is not None:
            raise AgreedError(found)
