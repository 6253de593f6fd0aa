"""Participants: the real client's encoding and upload, and what hostile ones send.

Participant i sends the vector e_i, so a 2 in the sum is a double count. `World`-wide, `sent` knows for every manifest
digest which words stand behind it: what a round may count is looked up there.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from triskele.connection import RetryPolicy, typed_errors
from triskele.errors import TriskeleError
from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId, PartyIndex, RoundNumber, ShareIndex, Slot, held_shares
from triskele.limits import Limits
from triskele.manifest import ManifestDigest
from triskele.release_mask import MaskKey, remove_masks
from triskele.submission import Submission, encode_update, prepare
from triskele.task import TaskSpec
from triskele.upload import RelayedUpload, UploadProgress, _PartyUpload, upload_header
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc, party_pb2, party_pb2_grpc, types_pb2

from . import virtual_time
from .network import Channel, Network
from .virtual_time import Incarnation, blocking, context_of, wait

LIMITS = Limits(chunk_bytes=24)  # three words: an upload has several chunks
RETRIES = RetryPolicy(attempts=6, jitter=0.0, first_wait=0.5, longest_wait=8.0, sleep=virtual_time.sleep)
TOO_LONG = 1 << 24  # words of 16 clip norms

Hostility = Literal[
    "too_long", "wrong_words", "truncated", "other_update", "foreign_slot", "foreign_manifest", "not_enrolled", "bytes"
]


@dataclass(frozen=True)
class Sent:
    """What stands behind a manifest digest."""

    participant: ParticipantId
    words: np.ndarray = field(repr=False)  # int64 [d]
    valid: bool = True  # its norm is within the bound


@dataclass(frozen=True)
class Addresses:
    """Where a participant calls."""

    coordinator: str
    parties: Sequence[str]


class Member:
    """One participant: its certificate, key and vector."""

    def __init__(self, network: Network, index: int, folder: Path, addresses: Addresses, vector: np.ndarray) -> None:
        self.index = index
        self.id = ParticipantId(folder.name)
        self.relays = index % 4 != 3  # one of the five uploads to both holders itself
        self.life = Incarnation(self.id, 1)
        self.vector = vector
        self._network = network
        self._addresses = addresses
        self._identity = Identity(network.federation, "participant", self.id)
        key = serialization.load_pem_private_key((folder / "signing.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "signing.crt").read_bytes())
        self._credentials: dict[str, Any] = {"key": key, "certificate": certificate}
        self.sent: dict[ManifestDigest, Sent] = {}
        self.began: dict[tuple[int, ManifestDigest], list[float]] = defaultdict(list)  # when it was enrolled
        self.confirmed: dict[tuple[int, ManifestDigest], float] = {}  # when all three parties had confirmed
        self.confirmed_wrongly: list[str] = []
        self.sent_twice: set[tuple[int, ManifestDigest]] = set()  # words that were to be relayed
        self.last: Submission | None = None

    def start(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one of the methods below as a thread of this participant; the future never fails."""
        return context_of(self.life).run(blocking, _quiet(function), *args)

    # ---- all of these block --------------------------------------------------------------------------------------

    def take_part(
        self, spec: TaskSpec, number: int, now: Callable[[], float], held: Callable[[Submission], list[bytes | None]]
    ) -> None:
        """Enrol and upload as the client does, retries and all; `held` looks at the disks of its words' holders."""
        submission = self._submission(spec, number, self._enrol(spec, number), self.vector)
        self.last = submission
        self.began[number, submission.digest].append(now())
        self._upload(submission)
        self.confirmed.setdefault((number, submission.digest), now())
        if any(words not in (None, submission.heavy_share) for words in held(submission)):
            self.confirmed_wrongly.append(f"round {number}: a holder has other words of {self.id} than were sent")

    def be_hostile(self, kind: Hostility, spec: TaskSpec, number: int, others: Sequence[Member]) -> None:
        """Send what no honest client would."""
        if kind == "not_enrolled":
            self._upload(self._submission(spec, number, Slot(self.index), self.vector))
            return
        slot = self._enrol(spec, number)
        match kind:
            case "too_long":
                self._upload(self._submission(spec, number, slot, self.vector, factor=TOO_LONG))
            case "other_update":  # two different ones, to different parties
                one = self._submission(spec, number, slot, self.vector)
                other = self._submission(spec, number, slot, self.vector / 2)
                for party in PARTIES:
                    self._to_party(party, one if party == self.index % 3 else other)
            case "foreign_slot":
                self._upload(self._submission(spec, number, Slot((slot + 1) % spec.max_participants), self.vector))
            case "foreign_manifest":
                for theirs in [member.last for member in others if member.last is not None]:
                    for party in PARTIES:
                        self._raw(party, _requests(theirs, party))
            case "wrong_words" | "truncated" | "bytes":
                submission = self._submission(spec, number, slot, self.vector)
                for party in PARTIES:
                    requests = list(_requests(submission, party))
                    self._raw(party, _spoilt(requests, kind))

    def replay(self) -> None:
        """Send the very bytes of the last submission once more, whatever round is open now."""
        if self.last is not None:
            for party in PARTIES:
                self._raw(party, _requests(self.last, party))

    def fetch(self, spec: TaskSpec, number: int) -> tuple[bytes, np.ndarray]:
        """The released words as they came, and unmasked; raises as coordinator and parties do."""
        request = coordinator_pb2.FetchResultRequest(task_digest=spec.digest, round=number)

        async def received() -> bytes:
            chunks = self._coordinator().FetchResult(request, timeout=30.0)
            return b"".join([part.chunk.data async for part in chunks])

        with typed_errors("coordinator"):
            released = bytes(wait(received()))
        asked = party_pb2.MaskKeysRequest(
            task_digest=spec.digest, round=number, output_digest=hashlib.sha256(released).digest()
        )
        keys: dict[int, set[bytes]] = defaultdict(set)
        for party in PARTIES:
            with typed_errors(f"party {party}"):
                for held in self._party_client(party).FetchMaskKeys(asked, timeout=30.0).keys:
                    keys[held.index].add(held.key)
        assert [len(keys[index]) for index in range(3)] == [1, 1, 1], "two holders gave different keys"
        words = np.frombuffer(released, "<i8").copy()
        remove_masks(words, {ShareIndex(i): MaskKey(*key) for i, key in keys.items()}, spec.digest, RoundNumber(number))
        return released, words

    # ---- their parts -----------------------------------------------------------------------------------------------

    def _enrol(self, spec: TaskSpec, number: int) -> Slot:
        request = coordinator_pb2.EnrolRequest(task_digest=spec.digest, round=number)

        def once() -> Slot:
            with typed_errors("coordinator"):
                return Slot(wait(self._coordinator().Enrol(request, timeout=LIMITS.rpc_seconds)).slot)

        return RETRIES.call(once)

    def _submission(self, spec: TaskSpec, number: int, slot: Slot, vector: np.ndarray, factor: int = 1) -> Submission:
        key = self._credentials["key"]
        encoded = encode_update(vector, spec, RoundNumber(number), weight=None, clip=False, key=key)
        if factor != 1:
            encoded = replace(encoded, words=encoded.words * factor)
        submission = prepare(encoded, slot=slot, participant=self.id, **self._credentials)
        self.sent[submission.digest] = Sent(self.id, encoded.words.copy(), factor == 1)
        return submission

    def _upload(self, submission: Submission) -> None:
        """To all three parties at the same time; raises the first error once all have ended."""
        relayed = RelayedUpload() if self.relays else None
        uploads = [blocking(self._to_party, party, submission, relayed) for party in PARTIES]
        errors = []
        for each in uploads:
            try:
                wait(each)
            except TriskeleError as error:
                errors.append(error)
        for error in errors:
            raise error

    def _to_party(self, party: PartyIndex, submission: Submission, relayed: RelayedUpload | None = None) -> None:
        client = self._party_client(party)
        stop = threading.Event()
        manifest = submission.manifest

        def progress(reached: UploadProgress) -> None:
            if relayed is not None and manifest.heavy == held_shares(party)[1] and not reached.complete:
                self.sent_twice.add((manifest.round, submission.digest))

        one = _PartyUpload(
            submission,
            party,
            client,
            limits=LIMITS,
            retries=RETRIES,
            progress=progress,
            stop=stop,
            relayed=relayed,
        )
        one.run()

    def _raw(self, party: PartyIndex, requests: Iterable[Any]) -> None:
        """One stream, once, and never mind the answer."""
        client = self._party_client(party)
        try:
            with typed_errors(f"party {party}"):
                client.Upload(iter(requests), timeout=LIMITS.upload_seconds)
        except TriskeleError:
            pass

    def _party_client(self, party: PartyIndex) -> Any:
        return _Blocking(party_pb2_grpc.PartyStub(self._channel(f"party-{party}", self._addresses.parties[party])))

    def _coordinator(self) -> Any:
        return coordinator_pb2_grpc.CoordinatorStub(self._channel("coordinator", self._addresses.coordinator))

    def _channel(self, host: str, address: str) -> Any:
        return Channel(self._network, host, address, self._identity, self.life)


class _Blocking:
    """A stub of grpc.aio as the synchronous one that the client has."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: wait(getattr(self._stub, method)(*args, **kwargs))


def _requests(submission: Submission, party: PartyIndex) -> Iterable[party_pb2.UploadRequest]:
    yield party_pb2.UploadRequest(header=upload_header(submission, party))
    if submission.manifest.heavy in held_shares(party):
        share = submission.heavy_share
        for offset in range(0, len(share), LIMITS.chunk_bytes):
            data = bytes(share[offset : offset + LIMITS.chunk_bytes])
            yield party_pb2.UploadRequest(chunk=types_pb2.Chunk(offset=offset, data=data))


def _spoilt(requests: list[Any], kind: Hostility) -> list[Any]:
    match kind:
        case "truncated":
            return requests[: max(1, len(requests) // 2)]
        case "wrong_words":
            for request in requests[-1:]:
                if request.WhichOneof("part") == "chunk":
                    request.chunk.data = request.chunk.data[:-1] + bytes([request.chunk.data[-1] ^ 1])
                else:
                    request.header.shares[0].seed = bytes(16)
            return requests
        case _:  # chunks twice, in another order, beyond the end
            return [*requests, *requests[1:][::-1], *requests]


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a participant is refused is its own affair; anything but our typed errors is a bug."""

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except TriskeleError as error:
            return error

    return call
