"""A certificate and the proof that it stands in the log: what a participant checks before it uses a result.

As a folder it can be checked anywhere, without a network: certificate.json is the DSSE envelope, proof.json its place
in the log and the cosigned checkpoint, party-0.pub to party-2.pub are the keys (which belong to whoever checks: those
in a stranger's folder prove nothing).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triskele.connection import Connections, RetryPolicy, typed_errors
from triskele.errors import ConfigurationError, PartyFault
from triskele.ids import RoundNumber, TaskDigest
from triskele.limits import Limits
from triskele.transparency.certificate import MAX_ENVELOPE_BYTES, Certificate
from triskele.transparency.checkpoint import MAX_NOTE_BYTES, verified
from triskele.transparency.merkle import HASH_BYTES, check_inclusion, leaf_hash
from triskele.transparency.party_keys import PartyKeys
from triskele_proto.v1 import coordinator_pb2

CERTIFICATE = "certificate.json"
PROOF = "proof.json"
_MAX_HASHES = 63


@dataclass(frozen=True)
class LoggedCertificate:
    """Unchecked until `verified`. `hashes` is the RFC 9162 inclusion proof, `checkpoint` a signed note."""

    envelope: bytes = field(repr=False)
    index: int
    hashes: tuple[bytes, ...] = field(repr=False)
    checkpoint: bytes = field(repr=False)

    def verified(self, keys: PartyKeys) -> Certificate:
        """The certificate, if enough parties signed it, and cosigned a checkpoint of the log that it is in.

        Raises PartyFault saying what does not hold.
        """
        certificate = Certificate.verified(self.envelope, keys)
        log = verified(self.checkpoint, keys, certificate.account.federation).checkpoint
        check_inclusion(leaf_hash(certificate.statement), self.index, log.size, self.hashes, log.root)
        return certificate

    def write(self, folder: Path) -> None:
        """Write the two files; raises ConfigurationError."""
        proof = {
            "index": self.index,
            "hashes": [h.hex() for h in self.hashes],
            "checkpoint": self.checkpoint.decode("utf-8"),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CERTIFICATE).write_bytes(self.envelope)
            (folder / PROOF).write_bytes((json.dumps(proof, indent=1) + "\n").encode())
        except OSError as error:
            raise ConfigurationError(f"{folder}: cannot be written ({error.strerror})") from error

    @classmethod
    def read(cls, certificate: Path, proof: Path) -> LoggedCertificate:
        """Read the two files. Raises ConfigurationError if one cannot be read, PartyFault if it is no proof."""
        content = _json(_bytes(proof, MAX_NOTE_BYTES + _MAX_HASHES * 4 * HASH_BYTES))
        try:
            hashes = tuple(bytes.fromhex(h) for h in content["hashes"][: _MAX_HASHES + 1])
            index, checkpoint = content["index"], content["checkpoint"].encode()
            if set(content) != {"hashes", "index", "checkpoint"} or type(index) is not int:
                raise TypeError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise PartyFault(f"{proof.name}: is not a proof of a certificate's place in the log") from None
        return cls(_bytes(certificate, MAX_ENVELOPE_BYTES), index, hashes, checkpoint)


def fetch_certificate(
    connections: Connections, task: TaskDigest, number: RoundNumber, *, limits: Limits, retries: RetryPolicy
) -> LoggedCertificate:
    """The certificate of an ended round, unchecked.

    Raises WrongState if the round has not ended, NotFound, Unavailable while the parties have not signed it yet.
    """
    request = coordinator_pb2.FetchCertificateRequest(task_digest=task, round=number)

    def fetch() -> Any:
        with typed_errors("coordinator"):
            return connections.coordinator().FetchCertificate(request, timeout=limits.rpc_seconds)

    reply = retries.call(fetch)
    return LoggedCertificate(reply.envelope, reply.index, tuple(reply.hashes), reply.checkpoint)


def _bytes(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error


def _json(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {}
