"""Rows by dataset index from several processes: each exactly once, and all of them in the main one alone."""
from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import eval.features.extract
from eval.features.extract import gather_by_index
from utils.distributed import DistContext


def gather_everywhere(monkeypatch, num_rows: int, filled: list[list[int]], skipped: set[int]) -> list:
    """Returns what `gather_by_index` gives each of several processes, which are threads here, or what it raises."""
    monkeypatch.setattr(eval.features.extract, "ROWS_AT_ONCE", 2)
    world_size = len(filled)
    here, items, found = threading.Barrier(world_size, timeout=20), [None] * world_size, [None] * world_size
    rank_of = {}

    def gather_objects(item: object) -> list:
        items[rank_of[threading.get_ident()]] = item
        here.wait()
        gathered = list(items)
        here.wait()
        return gathered

    def run(rank: int) -> None:
        rank_of[threading.get_ident()] = rank
        rows = {index: {"low": np.array([index + 0.1], np.float32), "high": np.array([index, -index], np.float32)}
                for index in filled[rank]}
        try:
            found[rank] = gather_by_index(rows, num_rows, skipped, DistContext(rank, world_size, torch.device("cpu")))
            assert not rows, "held twice"
        except AssertionError as error:
            found[rank] = error

    monkeypatch.setattr(eval.features.extract, "gather_objects", gather_objects)
    running = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return found


@pytest.mark.parametrize("num_rows", [1, 2, 6, 7, 8, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_main_process_gets_every_row_at_its_index_and_the_others_none(monkeypatch, num_rows, world_size):
    skipped = {2, 3} & set(range(num_rows))
    filled = [[index for index in range(rank, num_rows, world_size) if index not in skipped][::-1]
              for rank in range(world_size)]
    main, *others = gather_everywhere(monkeypatch, num_rows, filled, skipped)
    expected = np.arange(num_rows, dtype=np.float64)
    expected[list(skipped)] = np.nan
    low = (expected + 0.1)[:, None].astype(np.float32)
    assert main["low"].dtype == np.float32 and np.array_equal(main["low"], low, equal_nan=True)
    assert np.array_equal(main["high"], np.stack([expected, -expected], axis=1), equal_nan=True)
    assert others == [{}] * (world_size - 1)


def test_no_level_where_no_row_is_filled(monkeypatch):
    assert gather_everywhere(monkeypatch, 3, [[], []], {0, 1, 2}) == [{}, {}]


@pytest.mark.parametrize("filled, skipped", [([[0, 2], []], set()), ([[0, 2], [1, 0]], set()), ([[0], [1]], set()),
                                             ([[0, 2], [1]], {2})])
def test_a_row_filled_twice_or_never_is_noticed(monkeypatch, filled, skipped):
    for error in gather_everywhere(monkeypatch, 3, filled, skipped):
        assert isinstance(error, AssertionError) and "not filled exactly once" in str(error)
