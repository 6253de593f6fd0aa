"""The rows of a party's database and what they mean. No column ever holds a share, a seed or a salt."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from triskele.errors import Conflict
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, Slot, TaskDigest
from triskele.manifest import ManifestDigest
from triskele.task import TaskSpec
from triskele_server.metrics import party as metrics
from triskele_server.party.attested import Attested
from triskele_server.party.job import RoundOutcome
from triskele_server.party.share_files import RoundKey
from triskele_server.round_state import RoundState

SCHEMA_VERSION = 5

schema = sa.MetaData()
_ROUND_KEY = ("task", "round")
rounds = sa.Table(
    "rounds",
    schema,
    sa.Column("task", sa.LargeBinary(32), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("canonical", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),  # 0: not started
    sa.Column("blame", sa.JSON(none_as_null=True)),
    sa.Column("outcome", sa.JSON(none_as_null=True)),
    sa.Column("statement", sa.LargeBinary),  # of the round's certificate, once this party has signed it
)
uploads = sa.Table(
    "uploads",
    schema,
    sa.Column("task", sa.LargeBinary(32), primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("participant", sa.String, primary_key=True),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("manifest_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("heavy", sa.Integer, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),  # bytes of words that this party will hold
    sa.Column("committed", sa.BigInteger, nullable=False),  # bytes of the heavy share that are safely on disk
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.Column("sealed", sa.Boolean, nullable=False),
    sa.Column("relayed", sa.Boolean, nullable=False),  # the words come from the other holder
    sa.Column("seeded", sa.Boolean, nullable=False),  # the seed of a relayed upload is on disk
    sa.Column("relay", sa.String, nullable=False),  # whether the words go to the other holder: a Relay
    sa.ForeignKeyConstraint(_ROUND_KEY, ["rounds.task", "rounds.round"]),
)


@dataclass(frozen=True)
class Blame:
    """Why a round ended without a result, and who is to act."""

    reason: str
    who: str
    detail: str = ""


class Relay(StrEnum):
    """Where the bringing of an upload's words to the other holder stands, at the party that brings them."""

    NONE = ""
    DUE = "due"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True)
class Submission:
    """One entry of an input set."""

    slot: Slot
    participant: ParticipantId
    manifest_digest: ManifestDigest


@dataclass(frozen=True)
class Upload(Submission):
    """One participant's upload to this party."""

    heavy: ShareIndex
    size: int  # bytes of words that this party will hold; 0 where both its shares are seeds
    committed: int
    complete: bool
    sealed: bool
    relayed: bool = False  # the words come from the other holder; `committed` is what it has brought
    seeded: bool = False  # of a relayed upload: the participant's own part is on disk
    relay: Relay = Relay.NONE

    @property
    def submission(self) -> Submission:
        """What an input set says of it."""
        return Submission(self.slot, self.participant, self.manifest_digest)

    @property
    def words_there(self) -> bool:
        """Whether all words of a relayed upload are on disk, and match the commitment."""
        return self.relayed and self.committed == self.size

    def check_manifest(self, digest: ManifestDigest) -> None:
        """Raise Conflict unless this is the upload of the manifest with this digest."""
        if self.manifest_digest != digest:
            metrics.REPLAYS.labels("another_manifest").inc()
            raise Conflict(
                f"{self.participant} has begun an upload with another manifest: each participant submits once per round"
            )


@dataclass(frozen=True)
class RoundRecord:
    """One round as this party knows it."""

    key: RoundKey
    canonical: bytes
    state: RoundState
    attempt: int
    blame: Blame | None
    outcome: RoundOutcome | None
    statement: bytes | None = field(default=None, repr=False)

    @cached_property
    def spec(self) -> TaskSpec:
        """The task; raises InvalidTask if it is of another version of Triskele."""
        return TaskSpec.from_canonical(self.canonical)


def upload_record(row: Any) -> Upload:
    """One row of `uploads`."""
    return Upload(
        Slot(row["slot"]),
        ParticipantId(row["participant"]),
        ManifestDigest(row["manifest_digest"]),
        ShareIndex(row["heavy"]),
        row["size"],
        row["committed"],
        row["complete"],
        row["sealed"],
        row["relayed"],
        row["seeded"],
        Relay(row["relay"]),
    )


def round_record(row: Any) -> RoundRecord:
    """One row of `rounds`."""
    return RoundRecord(
        RoundKey(TaskDigest(row["task"]), RoundNumber(row["round"])),
        row["canonical"],
        RoundState(row["state"]),
        row["attempt"],
        None if row["blame"] is None else Blame(**row["blame"]),
        None if row["outcome"] is None else _outcome(row["outcome"]),
        row["statement"],
    )


def outcome_json(outcome: RoundOutcome) -> dict[str, Any]:
    """An outcome as the column `outcome` holds it."""
    return {
        "output_digest": outcome.output_digest.hex(),
        "weight_total": outcome.weight_total,
        "coefficient_bits": outcome.coefficient_bits,
        "refused": [list(r) for r in outcome.refused],
        "accepted": None if outcome.accepted is None else list(outcome.accepted),
        "openings": list(outcome.openings),
        "attempt": outcome.attempt,
        "masked": outcome.masked,
        "attested": outcome.attested.to_json(),
        **({} if outcome.clip_bound is None else {"clip_bound": outcome.clip_bound}),
    }


def _outcome(content: dict[str, Any]) -> RoundOutcome:
    return RoundOutcome(
        bytes.fromhex(content["output_digest"]),
        content["weight_total"],
        content["coefficient_bits"],
        tuple((Slot(slot), reason) for slot, reason in content["refused"]),
        None if content["accepted"] is None else tuple(map(Slot, content["accepted"])),
        tuple(content["openings"]),
        Attested.from_json(content["attested"]),
        content["attempt"],
        masked=content["masked"],
        clip_bound=content.get("clip_bound"),
    )
