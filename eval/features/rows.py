"""Rows of numbers that several processes fill by dataset index, and the main one gets.

Shapes: N rows, C numbers in a row of a level.
"""
from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from utils.distributed import DistContext, gather_objects

ROWS_AT_ONCE = 1024  # of each process, that pass between processes together

Rows = dict[str, np.ndarray]  # level -> values


class RowTable:
    """A row of each level for N videos: process r of W fills the rows r, r + W, r + 2 W, ...

    Each process holds its own rows alone, until the main one gathers them.
    """

    def __init__(self, num_rows: int, context: DistContext, dtype: type[np.floating]) -> None:
        self.num_rows = num_rows
        self.context = context
        self.dtype = dtype
        self.rows: Rows = {}  # level -> [N / W rounded up, C], NaN where nothing was filled in
        self.times_filled = np.zeros(-(-num_rows // context.world_size), np.int64)

    def fill(self, index: int, row: Mapping[str, np.ndarray]) -> None:
        """Set row `index`, one of this process's, to level -> [C]."""
        place, owner = divmod(index, self.context.world_size)
        assert owner == self.context.rank, f"row {index} is not process {self.context.rank}'s"
        for level, values in row.items():
            if level not in self.rows:
                self.rows[level] = self.new_rows(len(values))
            self.rows[level][place] = values
        self.times_filled[place] += 1

    def new_rows(self, width: int) -> np.ndarray:
        """Rows of NaN for this process."""
        return np.full((len(self.times_filled), width), np.nan, self.dtype)

    def gather(self, skipped: Container[int]) -> Rows:
        """Level -> [N, C] in the main process, NaN for the indices of `skipped`; no level where no row was filled in.

        No level in the other processes either; all must call this, once. That every row but those of `skipped` was
        filled exactly once is checked.
        """
        times = np.stack(gather_objects(self.times_filled), axis=1).reshape(-1)[:self.num_rows]
        expected = [int(index not in skipped) for index in range(self.num_rows)]
        assert times.tolist() == expected, "rows filled other than once"
        widths = next(filter(None, gather_objects({level: rows.shape[1] for level, rows in self.rows.items()})), {})
        gathered = {level: self.gather_level(level, width) for level, width in widths.items()}
        return gathered if self.context.is_main else {}

    def gather_level(self, level: str, width: int) -> np.ndarray | None:
        """All processes' rows [N, C] of a level in the main one, None in the others; this process's own are given up."""
        own = self.rows.pop(level) if level in self.rows else self.new_rows(width)
        if self.context.world_size == 1:
            return own
        rows = np.empty((len(own), self.context.world_size, width), self.dtype) if self.context.is_main else None
        for start in range(0, len(own), ROWS_AT_ONCE):
            for rank, part in enumerate(gather_objects(own[start:start + ROWS_AT_ONCE])):
                if rows is not None:
                    rows[start:start + len(part), rank] = part
        return None if rows is None else rows.reshape(-1, width)[:self.num_rows]
