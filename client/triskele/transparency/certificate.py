"""The certificate of a round: what was agreed, who was in, who was left out and why, what was opened, what came out.

An in-toto statement in a DSSE envelope. Each party writes the statement down from what it knows itself and signs it
once the round has ended at it; only equal bytes come together in one envelope. The fields of `Account` with "as told"
are the coordinator's word, which parties carry but cannot check.

Canonical bytes: JSON with sorted keys and without white space. What is not exactly that is refused, so no byte of a
certificate can be changed unnoticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature, SSlibKey

from triskele.errors import InvalidTask, PartyFault
from triskele.ids import PARTIES, ParticipantId, RoundNumber, ShareIndex, Slot, TaskDigest
from triskele.limits import DEFAULT_LIMITS
from triskele.manifest import ManifestDigest
from triskele.release_mask import MaskKey
from triskele.task import TaskSpec
from triskele.transparency.merkle import tree_head
from triskele.transparency.party_keys import PartyKeys, key_id

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:triskele:round:v1"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES: Final = DEFAULT_LIMITS.max_message_bytes - (1 << 16)
CLAIM: Final = "differential privacy"
NO_CLAIM: Final = "noise without a DP claim"

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, StringConstraints(max_length=500)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class SealedEntry(_Part):
    """One submission of the input set; `manifest` is the SHA-256 of what its participant signed."""

    slot: _Count
    participant: _Name
    manifest: _Digest


class LeftOut(_Part):
    """Who is not in the aggregate, and the reason code; `explanations.explain` says it in words."""

    slot: _Count
    participant: _Name
    reason: _Name


class Blame(_Part):
    """Why a round ended without a result, and by whose doing."""

    reason: _Name
    who: _Text
    detail: _Text


class Output(_Part):
    """The released words: the mean is words / weight_total / 2^coefficient_bits * C / 2^20, once the mask is off.

    `digest` is the SHA-256 of the words as they were released, `mask_keys` those of keys 0, 1, 2 of the mask.
    """

    digest: _Digest
    weight_total: Annotated[int, Field(ge=1, lt=1 << 63)]
    coefficient_bits: Annotated[int, Field(ge=0, lt=63)]
    mask_keys: tuple[_Digest, _Digest, _Digest] | None


class PrivacySpent(_Part):
    """What the task's noise has cost: rounds that were opened or may have been, this one included, and their epsilon.

    `epsilon` has six digits, at the task's delta; None where there is no claim, or no bound.
    """

    claim: Literal["differential privacy", "noise without a DP claim"]
    rounds: _Count
    epsilon: Annotated[str, StringConstraints(pattern=r"^[0-9.e+-]{1,16}$")] | None


class Computation(_Part):
    """What the three parties computed and agreed on, of a released round."""

    attempt: _Count
    versions: tuple[_Name, _Name, _Name]  # of the software of parties 0, 1, 2
    rules: _Digest  # of the source code of the task's rules
    coin: _Digest
    inputs: _Digest  # the input set's root: see `inputs_root`
    submissions: tuple[SealedEntry, ...]  # the input set, by slot
    previous: _Digest | None  # of the aggregate that the rule started from
    refused: tuple[LeftOut, ...]  # by the validity check
    accepted: tuple[_Count, ...] | None  # slots; None where the task hides its decisions
    weights: tuple[int, ...] | None  # of the accepted slots, where they are public
    openings: tuple[_Text, ...]  # the opening ledger, "name[shape]" in order
    output: Output
    privacy: PrivacySpent | None
    next_clip_bound: _Count | None  # of a bound that adapts: the next round's, in units of 2^-40 of the clip norm


class Account(_Part):
    """The predicate of the statement: one ended round of one task."""

    federation: _Name
    task: dict[str, Any]
    round: Annotated[int, Field(ge=1, lt=1 << 63)]
    state: Literal["RELEASED", "FAILED", "EXPIRED"]
    left_out: tuple[LeftOut, ...]  # when the input set was fixed, as told by the coordinator
    blame: Blame | None  # of a round without a result, as told by the coordinator
    computation: Computation | None  # of a released one


class Certificate:
    """One round as the parties vouch for it. Valid by construction: raises PartyFault for what contradicts itself."""

    def __init__(self, account: Account) -> None:
        self.account = account
        try:
            self.task = TaskSpec.from_canonical(_canonical(account.task))
        except InvalidTask as error:
            raise PartyFault(f"certificate: its task cannot be used: {error}") from error
        _check(account, self.task)

    @property
    def round(self) -> RoundNumber:
        """The round's number, from 1."""
        return RoundNumber(self.account.round)

    @property
    def released(self) -> Computation:
        """What a released round gave; raises PartyFault if the round ended without a result."""
        if self.account.computation is None:
            raise PartyFault(f"certificate: round {self.round} ended as {self.account.state}, without a result")
        return self.account.computation

    @cached_property
    def statement(self) -> bytes:
        """The canonical bytes that are signed; in the log they are a leaf."""
        account = self.account
        if account.computation is None:
            subject = {"name": self.task.name, "digest": {"sha256": self.task.digest.hex()}}
        else:
            subject = {
                "name": f"{self.task.name}/{self.round}",
                "digest": {"sha256": account.computation.output.digest},
            }
        return _canonical(
            {
                "_type": STATEMENT_TYPE,
                "subject": [subject],
                "predicateType": PREDICATE_TYPE,
                "predicate": account.model_dump(mode="json"),
            }
        )

    @classmethod
    def from_statement(cls, statement: bytes) -> Self:
        """Decode; anything but the canonical bytes of a valid statement raises PartyFault."""
        try:
            content = json.loads(statement)
            account = Account.model_validate_json(json.dumps(content["predicate"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValidationError is a ValueError
            raise PartyFault(f"certificate: is not a statement about a round{_where(error)}") from None
        certificate = cls(account)
        if certificate.statement != statement:
            raise PartyFault("certificate: is not in canonical form")
        return certificate

    @classmethod
    def verified(cls, envelope: bytes, keys: PartyKeys) -> Self:
        """The certificate in a DSSE envelope, if enough parties have signed it. Raises PartyFault saying what is wrong.

        Steps: (1) the envelope decodes, and is in canonical form; (2) every signature under a party's key holds, and
        `keys.signatures` of the three parties have signed; (3) the statement is a valid one.
        """
        opened = open_envelope(envelope)
        signers = set()
        for party in PARTIES:
            for key in keys.of(party):
                signature = opened.signatures.get(key_id(key))
                if signature is None:
                    continue
                try:
                    SSlibKey.from_crypto(key, signature.keyid).verify_signature(signature, opened.pae())
                except UnverifiedSignatureError:
                    raise PartyFault(f"certificate: the signature of party {party} does not hold", party) from None
                signers.add(party)
        if len(signers) < keys.signatures:
            missing = ", ".join(str(p) for p in PARTIES if p not in signers)
            raise PartyFault(
                f"certificate: {len(signers)} of the three parties have signed it, {keys.signatures} must; there is no "
                f"signature of party {missing} under a key that is known here"
            )
        return cls.from_statement(opened.payload)

    def check_is_of(self, federation: str, task: TaskDigest, number: RoundNumber) -> None:
        """Raise PartyFault unless this is the certificate of that round."""
        if (self.account.federation, self.task.digest, self.round) != (federation, task, number):
            raise PartyFault(
                f"certificate: is that of round {self.round} of task {self.task.name!r} in federation "
                f"{self.account.federation!r}, not the one that was asked for"
            )

    def accepted(self, slot: int) -> bool | None:
        """Whether the submission in `slot` is in the aggregate; None where decisions are hidden."""
        computation = self.released
        if slot in {entry.slot for entry in (*computation.refused, *self.account.left_out)}:
            return False
        return None if computation.accepted is None else slot in computation.accepted

    def check_accounts_for(self, slot: Slot, participant: ParticipantId, manifest: ManifestDigest) -> None:
        """Raise PartyFault unless a complete submission is in the input set as it was made, or was left out by name."""
        found = [e for e in self.released.submissions if slot == e.slot or participant == e.participant]
        if found == [SealedEntry(slot=slot, participant=participant, manifest=manifest.hex())]:
            return
        if not found and participant in {entry.participant for entry in self.account.left_out}:
            return
        raise PartyFault(
            f"the round's certificate does not account for the submission of {participant!r} in slot {slot}: the "
            "parties' input set has another one there, or none, and the coordinator does not say why"
        )


def sign(statement: bytes, key: Ed25519PrivateKey) -> bytes:
    """A party's signature of a statement, 64 bytes."""
    return key.sign(Envelope(statement, PAYLOAD_TYPE, {}).pae())


def assemble(statement: bytes, signatures: Mapping[str, bytes]) -> bytes:
    """The envelope of a statement and its signatures by key id; canonical JSON."""
    found = {keyid: Signature(keyid, signature.hex()) for keyid, signature in sorted(signatures.items())}
    return _canonical(Envelope(statement, PAYLOAD_TYPE, found).to_dict())


def open_envelope(envelope: bytes) -> Envelope:
    """Decode without a look at the signatures; raises PartyFault for anything but a canonical envelope."""
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise PartyFault(f"certificate: an envelope of {len(envelope)} bytes is over the limit of {MAX_ENVELOPE_BYTES}")
    try:
        content = json.loads(envelope)
        signatures = {s["keyid"]: base64.b64decode(s["sig"], validate=True) for s in content["signatures"]}
        payload = base64.b64decode(content["payload"], validate=True)
        again = assemble(payload, signatures)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PartyFault("certificate: is not a DSSE envelope") from None
    if again != envelope:
        raise PartyFault("certificate: the envelope is not in canonical form")
    return Envelope(payload, PAYLOAD_TYPE, {k: Signature(k, s.hex()) for k, s in signatures.items()})


def inputs_root(submissions: Sequence[SealedEntry]) -> str:
    """The RFC 9162 tree head over the submissions by slot, in hexadecimal: one of them can be proved without the rest.

    A leaf is: slot u32 | name length u16 | name | manifest digest (big endian).
    """
    return tree_head([_leaf(entry) for entry in submissions]).hex()


def mask_key_digest(key: MaskKey, task: TaskDigest, number: RoundNumber, index: ShareIndex) -> str:
    """What a certificate says of a key of the mask: SHA-256, which of 32 random bytes tells nothing."""
    context = task + struct.pack(">QB", number, index)
    return hashlib.sha256(b"triskele/v1/mask-key" + context + key).hexdigest()


def _leaf(entry: SealedEntry) -> bytes:
    name = ParticipantId(entry.participant).encode()
    return struct.pack(">IH", entry.slot & 0xFFFFFFFF, len(name)) + name + bytes.fromhex(entry.manifest)


def _check(account: Account, task: TaskSpec) -> None:
    """Raise PartyFault unless the account agrees with itself and with its task."""
    computation = account.computation
    if (account.state == "RELEASED") != (computation is not None) or (computation is None) != (
        account.blame is not None
    ):
        raise PartyFault(
            f"certificate: an account of a round that is {account.state} must say what it gave, or why not"
        )
    if computation is not None:
        _check_computation(computation, task)


def _check_computation(given: Computation, task: TaskSpec) -> None:
    slots = [entry.slot for entry in given.submissions]
    refused = [entry.slot for entry in given.refused]
    counted = set(slots) - set(refused)
    problems = {
        "its submissions are not in the order of their slots, each once": slots == sorted(set(slots)),
        "a participant is named twice": len({e.participant for e in given.submissions}) == len(slots),
        "its input set does not have the root that it names": given.inputs == inputs_root(given.submissions),
        "it refuses what was not submitted, or twice": len(set(refused)) == len(refused)
        and {(e.slot, e.participant) for e in given.refused} <= {(e.slot, e.participant) for e in given.submissions},
        "its decisions are public, or hidden, against the task": (given.accepted is None)
        == (task.decisions == "hidden"),
        "it accepts what was not submitted, or was refused": given.accepted is None
        or (set(given.accepted) <= counted and list(given.accepted) == sorted(set(given.accepted))),
        "its weights are not those of the accepted": given.weights is None
        or (given.accepted is not None and len(given.weights) == len(given.accepted)),
        "fewer submissions are in it than the task's min_accepted": len(counted) >= task.min_accepted
        and (given.accepted is None or len(given.accepted) >= task.min_accepted),
        "its mask, or lack of one, is against the task": (given.output.mask_keys is not None) == task.masked,
        "its noise, or lack of it, is against the task": (given.privacy is not None) == (task.privacy is not None),
        "it opened nothing": bool(given.openings),
    }
    for problem, fine in problems.items():
        if not fine:
            raise PartyFault(f"certificate: {problem}")


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _where(error: Exception) -> str:
    """Which field a validation tripped over; never what stood in it."""
    if not isinstance(error, ValidationError):
        return ""
    fields = {".".join(map(str, e["loc"])) for e in error.errors(include_url=False, include_input=False)}
    return ": " + ", ".join(sorted(fields)[:5])
