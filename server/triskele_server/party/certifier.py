"""This party's signature of a round's certificate: written from what it knows itself, once, when the round ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import ValidationError

from triskele.errors import ConfigurationError, InvalidTask
from triskele.ids import ParticipantId, Slot
from triskele.task import TaskSpec
from triskele.transparency.certificate import (
    CLAIM,
    NO_CLAIM,
    Account,
    Blame,
    Certificate,
    Computation,
    LeftOut,
    Output,
    PrivacySpent,
    SealedEntry,
    inputs_root,
    sign,
)
from triskele.transparency.party_keys import key_id
from triskele.unusable import UNUSABLE_KEY
from triskele_server.party.job import RoundOutcome
from triskele_server.party.records import RoundRecord, Submission
from triskele_server.privacy import epsilon
from triskele_server.round_state import RoundState


class SignedStatement(NamedTuple):
    """What the coordinator puts into an envelope, beside the two other parties' signatures of the same bytes."""

    statement: bytes
    key_id: str
    signature: bytes


@dataclass(frozen=True)
class Told:
    """The coordinator's account of a round: how it ended, whom it left out of the input set, why there is no result."""

    state: RoundState
    left_out: tuple[tuple[Slot, ParticipantId, str], ...] = ()
    blame: tuple[str, str, str] = ("", "", "")  # reason, who, detail


class Certifier:
    """Holds the party's certifying key. `federation` goes into every statement."""

    def __init__(self, federation: str, key: Ed25519PrivateKey) -> None:
        self._federation = federation
        self._key = key
        self._key_id = key_id(key.public_key())

    def statement(self, record: RoundRecord, sealed: Sequence[Submission], told: Told) -> bytes:
        """The statement on a round that has ended here, as `record` says; `sealed` by slot.

        Raises InvalidTask if what the coordinator told cannot stand in a certificate.
        """
        try:
            return Certificate(self._account(record, sealed, told)).statement
        except ValidationError:
            raise InvalidTask(
                "end: the account of the round has names or texts that a certificate cannot hold"
            ) from None

    def _account(self, record: RoundRecord, sealed: Sequence[Submission], told: Told) -> Account:
        released = record.state is RoundState.RELEASED
        computation = None
        task = record.spec
        if released and record.outcome is not None:
            computation = _computation(task, record.outcome, sealed)
        reason, who, detail = told.blame
        return Account(
            federation=self._federation,
            task=task.content(),
            round=record.key.number,
            # Without a result it is the coordinator who says how it ended: a party may have given it up before.
            state="RELEASED" if released else told.state.value,  # type: ignore[arg-type]  # checked by the model
            left_out=tuple(LeftOut(slot=s, participant=p, reason=r) for s, p, r in told.left_out),
            blame=None if released else Blame(reason=reason or "unknown", who=who, detail=detail),
            computation=computation,
        )

    def sign(self, statement: bytes) -> SignedStatement:
        """This party's signature; the same for the same statement."""
        return SignedStatement(statement, self._key_id, sign(statement, self._key))


def load_certifying_key(path: Path) -> Ed25519PrivateKey:
    """Read `signing_key`; raises ConfigurationError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, *UNUSABLE_KEY):  # from None: the loader's error could quote what is in the file
        raise ConfigurationError(f"signing_key ({path}): is not an unencrypted PEM private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"signing_key ({path}): is not an Ed25519 key")
    return key


def _computation(task: TaskSpec, outcome: RoundOutcome, sealed: Sequence[Submission]) -> Computation:
    attested = outcome.attested
    entries = tuple(
        SealedEntry(slot=s.slot, participant=s.participant, manifest=s.manifest_digest.hex()) for s in sealed
    )
    names = {s.slot: s.participant for s in sealed}
    keys = attested.mask_keys
    return Computation(
        attempt=outcome.attempt,
        versions=attested.versions,
        rules=attested.rules.hex(),
        coin=attested.coin.hex(),
        inputs=inputs_root(entries),
        submissions=entries,
        previous=None if attested.previous is None else attested.previous.hex(),
        refused=tuple(LeftOut(slot=s, participant=names[s], reason=reason) for s, reason in outcome.refused),
        accepted=outcome.accepted,
        weights=attested.weights,
        openings=outcome.openings,
        output=Output(
            digest=outcome.output_digest.hex(),
            weight_total=outcome.weight_total,
            coefficient_bits=outcome.coefficient_bits,
            mask_keys=None if keys is None else (keys[0].hex(), keys[1].hex(), keys[2].hex()),
        ),
        privacy=_spent(task, attested.rounds),
        next_clip_bound=outcome.clip_bound,
    )


def _spent(task: TaskSpec, rounds: int) -> PrivacySpent | None:
    """Six digits of epsilon: parties whose numerical libraries differ in the last places still sign the same bytes."""
    from triskele_server.rules.noise import no_claim  # noqa: PLC0415  loads the rules' code, not for `--help`

    if task.privacy is None:
        return None
    if no_claim(task):
        return PrivacySpent(claim=NO_CLAIM, rounds=rounds, epsilon=None)
    spent = epsilon(task.privacy, rounds)
    return PrivacySpent(claim=CLAIM, rounds=rounds, epsilon=f"{spent:.6g}" if math.isfinite(spent) else None)
