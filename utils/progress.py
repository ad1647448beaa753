"""How far a run is, and what it met on the way: all of it goes into checkpoints."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counts from the start of a run."""

    epoch: int = 0          # whole epochs done
    step: int = 0           # steps done in the epoch after them
    total_steps: int = 0    # steps done in all
    skipped_steps: int = 0  # of these, steps without an update, as their numbers were not finite
    bad_videos: dict[str, str] = field(default_factory=dict)  # path of each unreadable video met -> reason

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain values; `Progress(**state)` takes them back."""
        return asdict(self)
