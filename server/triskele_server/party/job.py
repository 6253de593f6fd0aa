"""What the party's service hands to the worker that computes a round, and what comes back; no share bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from prometheus_client import Metric

from triskele.ids import ParticipantId, RoundNumber, ShareIndex, Slot
from triskele.manifest import ManifestDigest
from triskele.release_mask import MaskKey
from triskele_server.party.attested import Attested
from triskele_server.round_state import RoundState

PEER_LOST = "peer_lost"  # the reason of an attempt that ended because a party fell silent


@dataclass(frozen=True)
class HeldShare:
    """One share on disk: 16 bytes if `seed`, else the task's length in little-endian words."""

    index: ShareIndex
    path: Path
    seed: bool


@dataclass(frozen=True)
class HeldSubmission:
    """What this party holds of one submission."""

    slot: Slot
    participant: ParticipantId
    manifest_digest: ManifestDigest
    shares: tuple[HeldShare, HeldShare]  # in the order of triskele.ids.held_shares(party)


@dataclass(frozen=True)
class RoundJob:
    """One attempt at a sealed round."""

    task: bytes  # canonical
    round: RoundNumber
    attempt: int
    submissions: tuple[HeldSubmission, ...]  # by slot
    output: Path  # where the worker writes the aggregate's words
    coin_key: bytes = field(repr=False)  # secret: this party's parts of coins derive from it
    previous: Path | None = None  # the task's last released aggregate, for a rule that starts from it
    clip_bound: Path | None = None  # what the task's bound has become, where it adapts
    rounds_spent: int = 0  # other rounds of the task that were opened, or may have been


@dataclass(frozen=True)
class RoundOutcome:
    """What the computation gave, equal at all parties."""

    output_digest: bytes  # SHA-256 of the output file
    weight_total: int
    coefficient_bits: int
    refused: tuple[tuple[Slot, str], ...]
    accepted: tuple[Slot, ...] | None  # None: the task hides its decisions
    openings: tuple[str, ...]
    attested: Attested
    attempt: int = 0  # which one gave it
    mask_keys: tuple[MaskKey, MaskKey] | None = field(default=None, repr=False)  # not in the party's database
    masked: bool = False
    clip_bound: int | None = None  # of the task's next round, where its bound adapts

    @property
    def stored(self) -> RoundOutcome:
        """The same without secrets."""
        return replace(self, mask_keys=None)


@dataclass(frozen=True)
class Started:
    """The worker process serves Peer; or, with an error, it could not."""

    error: str = ""


@dataclass(frozen=True)
class Abandon:
    """The parent has given a job up."""

    job: int


@dataclass(frozen=True)
class Reached:
    """A job has come to a phase."""

    job: int
    phase: RoundState


@dataclass(frozen=True)
class Ended:
    """A job has ended, with an outcome or a failure (reason, who, detail)."""

    job: int
    outcome: RoundOutcome | None
    failure: tuple[str, str, str] = ("", "", "")


@dataclass(frozen=True)
class Counted:
    """What the worker has counted since it began, for the party's metrics."""

    counts: tuple[Metric, ...]


class RoundRunner(Protocol):
    """Whoever runs the computation of a round: the worker process, or a test's stand-in. It stops when cancelled."""

    async def run(self, job: RoundJob, on_phase: Callable[[RoundState], None]) -> RoundOutcome:
        """Run to the end, telling each phase reached.

        Raises RoundFailed or PartyFault; PeerLost if another attempt may succeed.
        """
        ...
