"""How much disk uploads may take: counted in full when one begins, before anything of it is in memory or on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triskele.errors import Busy
from triskele_server.limits import DEFAULT_SERVER_LIMITS, ServerLimits


def free_bytes(folder: Path) -> int:
    """Bytes that the folder's disk has left for this account."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class DiskRoom:
    """Says whether one more upload fits. What it counts is in the store, so a restart forgets nothing."""

    data: Path
    limits: ServerLimits = DEFAULT_SERVER_LIMITS
    free: Callable[[Path], int] = free_bytes

    def check(self, size: int, *, of_round: int, promised: int) -> None:
        """Raise Busy unless `size` bytes fit beside the round's others, and beside what uploads will still write."""
        if of_round + size > self.limits.round_disk_bytes:
            raise Busy(
                f"the uploads of this round take {of_round} bytes at this party, which gives a round "
                f"{self.limits.round_disk_bytes}: ask its operator for more (round_disk_bytes)"
            )
        if self.free(self.data) - promised - size < self.limits.free_disk_bytes:
            raise Busy("this party's disk is full: try again when a round has ended, or ask its operator for room")
