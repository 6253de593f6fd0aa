"""A checkpoint says how long a log is and what its root is, and the three parties cosign it.

The formats are those of C2SP: tlog-checkpoint, signed-note and tlog-cosignature v1 (Ed25519). The log has no key of
its own. A party cosigns only what continues the checkpoint that it cosigned before, so whoever demands the
cosignatures of all three sees the log that everybody else sees, unless all three are corrupted.

    demo/rounds
    3
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — demo/party-0 jWbPPwAAAABkGFDLEZMHwSRa...
    — demo/party-1 ...
    — demo/party-2 ...
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from triskele.errors import PartyFault
from triskele.ids import PARTIES, PartyIndex
from triskele.transparency.merkle import HASH_BYTES

MAX_SIZE: Final = (1 << 63) - 1  # entries; as many as a database counts
MAX_NOTE_BYTES: Final = 1 << 14
_MAX_BODY_BYTES: Final = 512
_MAX_LINES: Final = 64  # signatures of one note: of a party's older keys and of other cosigners too
_COSIGNATURE_V1: Final = b"\x04"
_SIGNATURE_BYTES: Final = 64
_ORIGIN: Final = re.compile(r"[a-z0-9._-]{1,64}/rounds")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}")
_LINE: Final = re.compile(r"— ([^\s+]{1,200}) ([A-Za-z0-9+/]+={0,2})")


class Keys(Protocol):
    """Of `party_keys.PartyKeys`: the parties' public keys and how many parties must have signed."""

    @property
    def signatures(self) -> int:
        """Two or three."""

    def of(self, party: PartyIndex) -> tuple[Ed25519PublicKey, ...]:
        """The keys of one party."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log: `size` entries from 1 on, `root` as in RFC 9162. Raises PartyFault for anything else."""

    origin: str  # <federation>/rounds
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if _ORIGIN.fullmatch(self.origin) is None:
            raise PartyFault("a checkpoint's origin is not of the form <federation>/rounds")
        if not 1 <= self.size <= MAX_SIZE:
            raise PartyFault(f"a checkpoint of {self.size} entries: there are 1 to 2^63 - 1")
        if len(self.root) != HASH_BYTES:
            raise PartyFault(f"a checkpoint's root of {len(self.root)} bytes: it has {HASH_BYTES}")

    def body(self) -> bytes:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    @classmethod
    def from_body(cls, body: bytes) -> Checkpoint:
        """Decode; raises PartyFault unless these are the very bytes that `body` gives."""
        if len(body) > _MAX_BODY_BYTES:
            raise PartyFault(f"a checkpoint of {len(body)} bytes: it has at most {_MAX_BODY_BYTES}")
        try:
            lines = body.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise PartyFault("a checkpoint holds bytes that are not ASCII") from None
        if len(lines) != 4 or lines[3] or _NUMBER.fullmatch(lines[1]) is None:
            raise PartyFault("a checkpoint is three lines: the log's name, its size and its root")
        found = cls(lines[0], int(lines[1]), _decoded(lines[2]))
        if found.body() != body:
            raise PartyFault("a checkpoint is written in another way than the one")
        return found


class Cosignature(NamedTuple):
    """A party's cosignature: `time` in Unix seconds by the party's clock, `signature` Ed25519."""

    time: int
    signature: bytes


@dataclass(frozen=True)
class CosignedCheckpoint:
    """A checkpoint whose cosignatures were verified, with the time of each party's."""

    checkpoint: Checkpoint
    times: Mapping[PartyIndex, int]


def origin(federation: str) -> str:
    """The name of a federation's log."""
    return f"{federation}/rounds"


def cosigner(federation: str, party: PartyIndex) -> str:
    """The name under which a party cosigns."""
    return f"{federation}/party-{party}"


def cosign(checkpoint: Checkpoint, key: Ed25519PrivateKey, now: int) -> Cosignature:
    """Sign that at `now`, Unix seconds, this is the log. Whether it continues what was cosigned before, ask first."""
    return Cosignature(now, key.sign(_signed(checkpoint, now)))


def check_cosignature(
    checkpoint: Checkpoint, given: Cosignature, federation: str, party: PartyIndex, keys: Iterable[Ed25519PublicKey]
) -> str:
    """The line of a signed note, if one of the party's keys made the signature; raises PartyFault if none did."""
    if not 0 < given.time <= MAX_SIZE or len(given.signature) != _SIGNATURE_BYTES:
        raise PartyFault(f"party {party} gave a cosignature of an impossible time or length", party)
    for key in keys:
        try:
            key.verify(given.signature, _signed(checkpoint, given.time))
        except InvalidSignature:
            continue
        return signature_line(given, cosigner(federation, party), key)
    raise PartyFault(f"party {party} gave a cosignature that none of its keys made", party)


def signature_line(given: Cosignature, name: str, key: Ed25519PublicKey) -> str:
    """The line of a signed note, without its end."""
    content = _key_id(name, key) + given.time.to_bytes(8, "big") + given.signature
    return f"— {name} {base64.b64encode(content).decode()}"


def note(checkpoint: Checkpoint, lines: Iterable[str]) -> bytes:
    """The signed note."""
    return checkpoint.body() + b"\n" + "".join(f"{line}\n" for line in lines).encode()


def unverified(signed: bytes) -> Checkpoint:
    """What a note claims, whoever signed it; raises PartyFault if it is no note."""
    return _parsed(signed)[0]


def verified(signed: bytes, keys: Keys, federation: str) -> CosignedCheckpoint:
    """The checkpoint of `federation`'s log, cosigned by `keys.signatures` different parties.

    Signatures under other names or keys say nothing and are passed over, as signed notes want it; one that claims to be
    by a party's key and is not is refused. Raises PartyFault.
    """
    checkpoint, lines = _parsed(signed)
    if checkpoint.origin != origin(federation):
        raise PartyFault(f"the checkpoint is of the log {checkpoint.origin}, not of {origin(federation)}")
    known = {
        (name, _key_id(name, key)): (party, key)
        for party in PARTIES
        for name in (cosigner(federation, party),)
        for key in keys.of(party)
    }
    times: dict[PartyIndex, int] = {}
    for name, content in lines:
        found = known.get((name, content[:4]))
        if found is None:
            continue
        party, key = found
        if len(content) != 4 + 8 + _SIGNATURE_BYTES:
            raise PartyFault(f"the cosignature of party {party} has an impossible length", party)
        time = int.from_bytes(content[4:12], "big")
        check_cosignature(checkpoint, Cosignature(time, content[12:]), federation, party, (key,))
        times[party] = max(time, times.get(party, 0))
    if len(times) < keys.signatures:
        missing = ", ".join(str(party) for party in PARTIES if party not in times)
        raise PartyFault(
            f"the checkpoint of {checkpoint.size} entries is cosigned by {len(times)} parties, {keys.signatures} are "
            f"needed: no valid cosignature of {missing} under the keys given"
        )
    return CosignedCheckpoint(checkpoint, times)


def _signed(checkpoint: Checkpoint, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n".encode() + checkpoint.body()


def _key_id(name: str, key: Ed25519PublicKey) -> bytes:
    public = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(name.encode() + b"\n" + _COSIGNATURE_V1 + public).digest()[:4]


def _parsed(signed: bytes) -> tuple[Checkpoint, list[tuple[str, bytes]]]:
    if len(signed) > MAX_NOTE_BYTES:
        raise PartyFault(f"a signed checkpoint of {len(signed)} bytes: it has at most {MAX_NOTE_BYTES}")
    body, separator, rest = signed.partition(b"\n\n")
    try:
        lines = rest.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise PartyFault("a signed checkpoint holds bytes that are not UTF-8") from None
    if not separator or lines.pop() or not 1 <= len(lines) <= _MAX_LINES:
        raise PartyFault("a signed checkpoint is a checkpoint, an empty line and lines of signatures")
    matches = [_LINE.fullmatch(line) for line in lines]
    found = [(match[1], _decoded(match[2])) for match in matches if match is not None]
    if len(found) != len(lines) or len(set(found)) != len(found):
        raise PartyFault("a signed checkpoint holds a line twice, or one that is no signature")
    if any(len(content) < 5 for _, content in found):
        raise PartyFault("a signed checkpoint holds a signature of no length")
    return Checkpoint.from_body(body + b"\n"), found


def _decoded(text: str) -> bytes:
    """Base64, in its one canonical form."""
    try:
        content = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise PartyFault("a checkpoint holds text that is not Base64") from None
    if base64.b64encode(content).decode() != text:
        raise PartyFault("a checkpoint holds Base64 that is not written in its one form")
    return content
