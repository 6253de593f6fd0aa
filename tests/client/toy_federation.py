"""A small federation for tests of the client: real gRPC and mutual TLS, one process, no secrecy and no filtering.

It checks what it receives as a party does, adds up in the clear, and breaks where a test tells it to.
"""

import datetime
import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np

from triskele.errors import REASONS, Conflict, InvalidUpload, TriskeleError, WrongState
from triskele.ids import PARTIES, PartyIndex, ShareIndex, held_shares
from triskele.manifest import Manifest, verify
from triskele.release_mask import add_mask
from triskele.sharing import Seed, commitment_matches, expand, heavy_index
from triskele.task import TaskSpec
from triskele.transparency.certificate import (
    Account,
    Certificate,
    Computation,
    LeftOut,
    Output,
    PrivacySpent,
    SealedEntry,
    inputs_root,
    mask_key_digest,
)
from triskele.transparency.checkpoint import Checkpoint, cosign, cosigner, note, origin, signature_line
from triskele.transparency.merkle import tree_head
from triskele_proto.v1 import (
    coordinator_pb2,
    coordinator_pb2_grpc,
    party_pb2,
    party_pb2_grpc,
    types_pb2,
)

from .certificates import Authority, cert_pem
from .transparency.rounds import SIGNERS, enveloped

MASK_KEYS = [bytes([60 + i]) * 32 for i in range(3)]


def caller(context) -> str:
    """The SPIFFE id in the caller's certificate."""
    return context.auth_context()["peer_spiffe_id"][0].decode()


@dataclass
class StoredUpload:
    manifest: Manifest
    shares: dict[int, bytes] = field(default_factory=dict)  # seeds
    heavy: bytearray = field(default_factory=bytearray)
    complete: bool = False
    relayed: bool = False  # the words are expected from the other holder


class ToyParty(party_pb2_grpc.PartyServicer):
    def __init__(self, index, spec: TaskSpec, authority: Authority) -> None:
        self.index = index
        self.spec = spec
        self.authority = authority
        self.uploads: dict[str, StoredUpload] = {}
        self.streams = 0
        self.asked = 0  # how much is here
        self.offsets: list[int] = []  # of every chunk that came
        self.breaks: list[int] = []  # break the next streams off after so many bytes each
        self.refusal: TriskeleError | None = None
        self.closed = False
        self.lies_complete: party_pb2.UploadReply | None = None
        self.announced = 0  # headers of uploads whose words the other holder brings
        self.brings_to: ToyParty | None = None  # without it this party relays nothing
        self.brings: Callable[[bytes], bytes | None] = lambda words: words  # what it brings; None: nothing, ever
        self.mask_keys = dict(zip(held_shares(index), MASK_KEYS[index:] + MASK_KEYS[:index], strict=False))
        self.asked_for_keys: list[bytes] = []  # digests
        self.not_yet = 0  # answers as before the party knows of the release

    def FetchMaskKeys(self, request, context):  # noqa: N802  gRPC's name
        self.asked_for_keys.append(request.output_digest)
        if self.refusal is not None:
            self.abort(context, self.refusal)
        if self.not_yet:
            self.not_yet -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not released here yet")
        return party_pb2.MaskKeysReply(keys=[party_pb2.MaskKey(index=i, key=k) for i, k in self.mask_keys.items()])

    def UploadStatus(self, request, context):  # noqa: N802  gRPC's name
        self.asked += 1
        stored = self.uploads.get(caller(context))
        if stored is None:
            return party_pb2.UploadReply()
        if stored.manifest.digest != request.manifest_digest:
            self.abort(context, Conflict("another update stands already"))
        return self._reply(stored)

    def _reply(self, stored, *, relay=True) -> party_pb2.UploadReply:
        return party_pb2.UploadReply(
            committed=len(stored.heavy),
            complete=stored.complete,
            relayed=stored.relayed,
            relaying=relay and self.brings_to is not None,
        )

    def Upload(self, requests, context):  # noqa: N802  gRPC's name
        header = next(requests).header
        if header.relayed and self.refusal is None:
            return self._announced(header, context)
        self.streams += 1
        if self.lies_complete is not None:
            return self.lies_complete
        try:
            if self.refusal is not None:
                raise self.refusal
            stored = self._begin(header, caller(context))
            if stored.relayed and not stored.complete:
                stored.relayed, stored.heavy = False, bytearray()
            if stored.heavy and (requests := self._from_the_start(requests)) is None:
                return self._reply(stored)
            self._receive(stored, requests, context)
        except TriskeleError as error:
            self.abort(context, error)
        if header.relay and self.brings_to is not None:
            self.brings_to.brought(caller(context), self.brings(bytes(stored.heavy)))
        return self._reply(stored, relay=header.relay)

    def _announced(self, header, context) -> party_pb2.UploadReply:
        self.announced += 1
        try:
            stored = self._begin(header, caller(context))
        except TriskeleError as error:
            self.abort(context, error)
        stored.relayed = stored.relayed or not (stored.heavy or stored.complete)
        return self._reply(stored)

    def brought(self, identity, words: bytes | None) -> None:
        """What the other holder has, after the participant has announced it; what does not match is thrown away."""
        until = time.monotonic() + 10
        while identity not in self.uploads and time.monotonic() < until:
            time.sleep(0.01)
        stored = self.uploads[identity]
        if words is not None:
            heavy = stored.manifest.heavy
            stored.complete = commitment_matches(stored.manifest.commitments[heavy], self.salts[heavy], words)
            stored.relayed = stored.complete
            stored.heavy = bytearray(words if stored.complete else b"")

    def _begin(self, header, identity) -> StoredUpload:
        now = datetime.datetime.now(datetime.UTC)
        manifest = verify(header.manifest, authority=self.authority.certificate, identity=identity, now=now)
        manifest.check_belongs_to(self.spec, manifest.round)
        if tuple(share.index for share in header.shares) != held_shares(self.index):
            raise InvalidUpload("shares: not the two of this party")
        stored = self.uploads.setdefault(identity, StoredUpload(manifest))
        if stored.manifest != manifest:
            raise Conflict("another update stands already")
        self.salts = {share.index: share.salt for share in header.shares}
        for share in header.shares:
            if share.index != manifest.heavy:
                if not commitment_matches(manifest.commitments[share.index], share.salt, share.seed):
                    raise InvalidUpload("commitment: seed")
                stored.shares[share.index] = share.seed
        return stored

    def _from_the_start(self, requests):
        """None if they begin at byte 0, else the same requests."""
        first = next(requests, None)
        if first is not None and first.chunk.offset == 0:
            return None
        return requests if first is None else itertools.chain((first,), requests)

    def _receive(self, stored, requests, context) -> None:
        left = self.breaks.pop(0) if self.breaks else None
        for request in requests:
            self.offsets.append(request.chunk.offset)
            if request.chunk.offset != len(stored.heavy):
                raise InvalidUpload("chunk: out of order")
            if left is not None and left < len(request.chunk.data):
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")
            stored.heavy += request.chunk.data
            left = None if left is None else left - len(request.chunk.data)
        heavy = stored.manifest.heavy
        if heavy in held_shares(self.index):
            if len(stored.heavy) != stored.manifest.length * 8:
                raise InvalidUpload("truncated")
            if not commitment_matches(stored.manifest.commitments[heavy], self.salts[heavy], bytes(stored.heavy)):
                raise InvalidUpload("commitment: heavy share")
        stored.complete = True

    def words(self, identity, index) -> np.ndarray:
        """Share `index` of one participant, as this party holds it."""
        stored = self.uploads[identity]
        if index == stored.manifest.heavy:
            return np.frombuffer(bytes(stored.heavy), "<i8")
        seed = Seed(stored.shares[index])
        return expand(seed, stored.manifest.context, ShareIndex(index)).words(stored.manifest.length)

    @staticmethod
    def abort(context, error: TriskeleError) -> None:
        context.abort(REASONS[type(error)].status, str(error))


def logged(statement: bytes, signers=SIGNERS) -> coordinator_pb2.FetchCertificateReply:
    """A statement signed, and alone in a log whose checkpoint is cosigned."""
    checkpoint = Checkpoint(origin("demo"), 1, tree_head([statement]))
    lines = [
        signature_line(cosign(checkpoint, signer, 1_000_000), cosigner("demo", PartyIndex(i)), signer.public_key())
        for i, signer in enumerate(signers)
    ]
    return coordinator_pb2.FetchCertificateReply(
        envelope=enveloped(statement, signers), index=0, hashes=[], checkpoint=note(checkpoint, lines)
    )


class ToyCoordinator(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.rounds: dict[int, coordinator_pb2.RoundView] = {}
        self.slots: dict[str, int] = {}
        self.first_slot = 0
        self.says_new = False
        self.party_addresses: list[str] = []
        self.finished = False
        self.result: tuple[coordinator_pb2.ResultHeader, bytes] | None = None
        self.uploads: dict[str, StoredUpload] = {}  # at party 0
        self.account: Account | None = None  # of the certificate of the released round
        self.certificate: coordinator_pb2.FetchCertificateReply | None = None
        self.watches = 0
        self.changed = threading.Condition()
        self.canonical = spec.canonical()
        self.version = 0

    def show(self, number: int, state: str, **content) -> None:
        """Put a round into a state, or change what is shown of it."""
        with self.changed:
            self.rounds[number] = coordinator_pb2.RoundView(
                task_digest=self.spec.digest, round=number, state=state, quorum=2, deadline=1e9, **content
            )
            self._notify()

    def finish(self) -> None:
        with self.changed:
            self.finished = True
            self._notify()

    def _notify(self) -> None:
        self.version += 1
        self.changed.notify_all()

    def release(
        self, number: int, words: np.ndarray, weight_total: int, *, coefficient_bits: int = 0, **content
    ) -> None:
        words = words.astype("<i8")
        if self.spec.masked:
            for index, key in enumerate(MASK_KEYS):
                add_mask(words, key, self.spec.digest, number, index)
        data = words.tobytes()
        header = coordinator_pb2.ResultHeader(
            dimension=len(words),
            digest=hashlib.sha256(data).digest(),
            party_addresses=self.party_addresses,
        )
        self.result = header, data
        self.account = self._account(number, header.digest, weight_total, coefficient_bits, content)
        self.certificate = logged(Certificate(self.account).statement)
        self.show(number, "RELEASED", **content)

    def _account(self, number, digest, weight_total, coefficient_bits, content) -> Account:
        """What parties would sign; who did not upload for real is made up, so that the cohort is large enough."""
        held = {u.manifest.slot: u.manifest for u in self.uploads.values()}
        refused = [LeftOut(slot=r.slot, participant=r.participant, reason=r.reason) for r in content.get("refused", ())]
        sealed = {
            slot: SealedEntry(slot=slot, participant=m.participant, manifest=m.digest.hex()) for slot, m in held.items()
        }
        first = max(sealed, default=-1) + 1
        sealed |= {i: SealedEntry(slot=i, participant=f"toy-{i}", manifest="00" * 32) for i in range(first, first + 2)}
        out = {r.slot for r in refused}
        accepted = [*content.get("accepted_slots", held), first, first + 1]
        entries = tuple(entry for _, entry in sorted(sealed.items()))
        masks = [mask_key_digest(key, self.spec.digest, number, i) for i, key in enumerate(MASK_KEYS)]
        return Account(
            federation="demo",
            task=self.spec.content(),
            round=number,
            state="RELEASED",
            left_out=tuple(r for r in refused if r.slot not in sealed),
            blame=None,
            computation=Computation(
                attempt=1,
                versions=("1", "1", "1"),
                rules="00" * 32,
                coin="11" * 32,
                inputs=inputs_root(entries),
                submissions=entries,
                previous=None,
                refused=tuple(r for r in refused if r.slot in sealed),
                accepted=None
                if self.spec.decisions == "hidden"
                else tuple(sorted(slot for slot in accepted if slot not in out)),
                weights=None,
                openings=("valid[2]", "aggregate[1]"),
                output=Output(
                    digest=digest.hex(),
                    weight_total=weight_total,
                    coefficient_bits=coefficient_bits,
                    mask_keys=(masks[0], masks[1], masks[2]) if self.spec.masked else None,
                ),
                privacy=None
                if self.spec.privacy is None
                else PrivacySpent(claim="noise without a DP claim", rounds=1, epsilon=None),
                next_clip_bound=None,
            ),
        )

    def FetchCertificate(self, request, context):  # noqa: N802  gRPC's name
        if self.certificate is None:
            ToyParty.abort(context, WrongState("this round has not ended"))
        return self.certificate

    def ListTasks(self, request, context):  # noqa: N802  gRPC's name
        view = coordinator_pb2.TaskView(
            name=self.spec.name,
            task=self.canonical,
            rounds=9,
            current_round=max(self.rounds, default=0),
            finished=self.finished,
        )
        return coordinator_pb2.ListTasksReply(tasks=[view])

    def ListRounds(self, request, context):  # noqa: N802  gRPC's name
        return coordinator_pb2.ListRoundsReply(rounds=[self.rounds[number] for number in sorted(self.rounds)])

    def WatchRounds(self, request, context):  # noqa: N802  gRPC's name
        self.watches += 1
        sent = {}
        while context.is_active():
            with self.changed:
                version = self.version
                news = [
                    (n, view)
                    for n, view in sorted(self.rounds.items())
                    if n >= request.from_round and sent.get(n) != view
                ]
                finished = self.finished
            for number, view in news:
                sent[number] = view
                yield view
            if finished:
                return
            with self.changed:
                if self.version == version:
                    self.changed.wait(0.1)  # so that a stream whose client is gone ends

    def Enrol(self, request, context):  # noqa: N802  gRPC's name
        view = self.rounds.get(request.round)
        if view is None or view.state != "OPEN":
            ToyParty.abort(context, WrongState("this round takes no participants"))
        with self.changed:
            slot = self.slots.setdefault(caller(context), self.first_slot + len(self.slots))
        return coordinator_pb2.EnrolReply(
            slot=slot, heavy=heavy_index(slot), party_addresses=self.party_addresses, new=self.says_new
        )

    def FetchResult(self, request, context):  # noqa: N802  gRPC's name
        header, data = self.result
        yield coordinator_pb2.ResultChunk(header=header)
        for start in range(0, len(data), 4096):
            chunk = types_pb2.Chunk(offset=start, data=data[start : start + 4096])
            yield coordinator_pb2.ResultChunk(chunk=chunk)


class ToyFederation:
    """A coordinator and three parties on loopback."""

    def __init__(self, spec: TaskSpec, authority: Authority) -> None:
        self.spec = spec
        self.authority = authority
        self.coordinator = ToyCoordinator(spec)
        self.parties = [ToyParty(index, spec, authority) for index in PARTIES]
        self._servers: list[grpc.Server] = []
        for party in self.parties:
            identity = authority.identity("party", str(party.index))
            address, _ = self._serve(identity, party, party_pb2_grpc.add_PartyServicer_to_server)
            self.coordinator.party_addresses.append(address)
        self.coordinator.uploads = self.parties[0].uploads
        self.address, self._coordinator_server = self._start_coordinator("127.0.0.1:0")

    def stop_coordinator(self) -> None:
        self._coordinator_server.stop(0).wait()

    def start_coordinator(self) -> None:
        _, self._coordinator_server = self._start_coordinator(self.address)

    def close(self) -> None:
        for stopped in [server.stop(0) for server in self._servers]:
            stopped.wait()

    def sum_of_uploads(self) -> np.ndarray:
        """What all participants uploaded, added up in the ring; every share must be the same at both its holders."""
        total = np.zeros(self.spec.length, np.int64)
        for identity in self.parties[0].uploads:
            for index in range(3):
                one = self.parties[index].words(identity, index)
                other = self.parties[(index - 1) % 3].words(identity, index)
                assert np.array_equal(one, other)
                total += one
        return total

    def _start_coordinator(self, address):
        identity = self.authority.identity("coordinator", "main")
        return self._serve(
            identity, self.coordinator, coordinator_pb2_grpc.add_CoordinatorServicer_to_server, address=address
        )

    def _serve(self, identity, servicer, add, *, address="127.0.0.1:0"):
        server = grpc.server(ThreadPoolExecutor(16))
        add(servicer, server)
        certificate, key = self.authority.tls(identity)
        root = cert_pem(self.authority.certificate)
        credentials = grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=True)
        port = server.add_secure_port(address, credentials)
        server.start()
        self._servers.append(server)
        return f"127.0.0.1:{port}", server
