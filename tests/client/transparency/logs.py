"""Made-up logs: rounds that the parties signed, under a checkpoint that they cosigned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from triskele.ids import PARTIES, TaskName
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele.transparency import checkpoint
from triskele.transparency.certificate import Certificate, open_envelope
from triskele.transparency.checkpoint import Checkpoint
from triskele.transparency.merkle import tree_head
from triskele.transparency.saved_log import SavedLog

from .rounds import FEDERATION, SIGNERS, TASK, digest, enveloped, failed, released

OPENED = ("valid[5]", "enough_accepted[]", "accepted[4]", "masked_aggregate[8]")
PRIVATE = TaskSpec(name=TaskName("voices"), dimension=8, clip_norm=1.0, rule="mean", privacy=Privacy(1.0, 1e-5, 20.0))
PRIVATE_OPENED = ("valid[5]", "masked_aggregate[8]")
NOW = 1_763_990_400


def a_round(number: int, task: TaskSpec = TASK, **changes: Any) -> Certificate:
    values = {"openings": OPENED, "coin": digest(f"coin {task.name} {number}"), "output": None} | changes
    if values["output"] is None:
        del values["output"]
    return released(task, number, **values)


def cosigned(envelopes: Sequence[bytes], signers: Sequence[int] = PARTIES, federation: str = FEDERATION) -> SavedLog:
    """A log of these entries, as the parties would cosign it whatever it holds."""
    root = tree_head(open_envelope(envelope).payload for envelope in envelopes)
    head = Checkpoint(f"{federation}/rounds", len(envelopes), root)
    lines = [
        checkpoint.signature_line(
            checkpoint.cosign(head, SIGNERS[p], NOW + p),
            checkpoint.cosigner(federation, PARTIES[p]),
            SIGNERS[p].public_key(),
        )
        for p in signers
    ]
    return SavedLog(tuple(envelopes), checkpoint.note(head, lines))


def log_of(*certificates: Certificate) -> SavedLog:
    return cosigned([enveloped(certificate.statement) for certificate in certificates])


def history(count: int = 4) -> SavedLog:
    """A log without anything wrong: some rounds, one of which failed."""
    return log_of(*(failed(number=n) if n == 3 else a_round(n) for n in range(1, count + 1)))


def with_checkpoint_of(log: SavedLog, other: SavedLog) -> SavedLog:
    return replace(log, checkpoint=other.checkpoint)
