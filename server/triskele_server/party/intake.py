"""Taking in uploads: the checks, the bytes to disk, the commitment; without gRPC. Blocking: call it from a thread.

    begin   (1) the manifest is signed by the caller, (2) it names the caller, (3) this party has its round,
            (4) it fits the task, (5) the two shares are this party's, (6) the seeds open their commitments,
            (7) nothing else of this participant stands, the round is open, and there is room on the disk
    write   (8) chunks come in order, in size, and not beyond the share's length
    finish  (9) the share is whole, (10) it opens its commitment, (11) all is on disk before it counts

A refused call changes nothing, but for step 10: a share that does not match is thrown away, so that its participant may
send again. An upload is one participant's to one round; a second stream or a status call takes it over from the first.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary, ref

from cryptography import x509

from triskele import manifest as manifests
from triskele.errors import InvalidUpload, TriskeleError, WrongState
from triskele.identity import Identity
from triskele.ids import ParticipantId, PartyIndex, ShareIndex, held_shares
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.manifest import Manifest, ManifestDigest
from triskele.sharing import SALT_BYTES, SEED_BYTES, WORD_BYTES, Salt, commitment_matches
from triskele.task import TaskSpec
from triskele_proto.v1 import types_pb2
from triskele_server.metrics import party as metrics
from triskele_server.party.disk_room import DiskRoom
from triskele_server.party.records import Submission, Upload
from triskele_server.party.share_files import RoundKey, ShareFiles
from triskele_server.party.store import PartyStore
from triskele_server.party.upload import Progress, UploadSession
from triskele_server.round_state import RoundState
from triskele_server.rpc.deny_list import DenyList


@dataclass(frozen=True)
class ReceivedShare:
    """One of the two shares that an upload announces; `seed` is empty for the heavy share, whose words follow."""

    index: int
    salt: bytes = field(repr=False)
    seed: bytes = field(repr=False)


@dataclass
class _Place:
    """Where one participant's upload to one round is handled, one call at a time.

    It exists as long as a stream or a call uses it: an upload that broke off holds no memory.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    session: ref[UploadSession] | None = None

    def take_over(self, error: TriskeleError) -> None:
        """End the stream that writes now, if any; what it has written is kept."""
        session = None if self.session is None else self.session()
        if session is not None:
            session.close(error)
        self.session = None


class Intake:
    """The uploads of all rounds at one party."""

    def __init__(
        self,
        store: PartyStore,
        files: ShareFiles,
        *,
        party: PartyIndex,
        authority: x509.Certificate,
        deny_list: DenyList | None = None,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        limits: Limits = DEFAULT_LIMITS,
        room: DiskRoom | None = None,
    ) -> None:
        self._store = store
        self._files = files
        self._party = party
        self._authority = authority
        self._deny_list = deny_list or DenyList()
        self._now = now
        self._limits = limits
        self._room = room
        self._places: WeakValueDictionary[tuple[RoundKey, ParticipantId], _Place] = WeakValueDictionary()
        self._lock = threading.Lock()

    def status(self, caller: Identity, key: RoundKey, digest: ManifestDigest) -> Progress:
        """How much of the caller's upload is committed. Takes the upload over from a stream that is still open.

        Raises NotFound for an unknown round and Conflict if the upload that stands is of another manifest.
        """
        self._store.round(key)
        participant = ParticipantId(caller.name)
        with self._lock:
            place = self._places.get((key, participant)) or _Place()
        with place.lock:
            place.take_over(_TAKEN_OVER)
        upload = self._store.upload(key, participant)
        if upload is None:
            return Progress(0, complete=False)
        upload.check_manifest(digest)
        return Progress(upload.committed, upload.complete)

    def begin(
        self, caller: Identity, signed: types_pb2.SignedManifest, shares: Sequence[ReceivedShare]
    ) -> UploadSession:
        """Steps (1) to (7): an upload that goes on from what is committed. Raises a ParticipantFault."""
        manifest = manifests.verify(signed, authority=self._authority, identity=caller.uri, now=self._now())  # (1)
        self._deny_list.check(caller, x509.load_der_x509_certificate(signed.certificate).serial_number)
        if manifest.participant != caller.name:  # (2)
            metrics.REPLAYS.labels("another_participant").inc()
            raise InvalidUpload(f"manifest: made for {manifest.participant}, but sent by {caller.name}")
        key = RoundKey(manifest.task, manifest.round)
        record = self._store.round(key)  # (3)
        spec = TaskSpec.from_canonical(record.canonical)
        spec.check_takes_part(manifest.participant)
        manifest.check_belongs_to(spec, key.number)  # (4)
        self._check_shares(manifest, shares)  # (5), (6)
        if record.state is not RoundState.OPEN:
            return self._session(key, manifest, shares, _Place())  # complete, or refused
        with self._lock:
            place = self._places.setdefault((key, manifest.participant), _Place())
        with place.lock:
            place.take_over(_TAKEN_OVER)
            session = self._session(key, manifest, shares, place)
            place.session = ref(session)
            return session

    def close_round(self, key: RoundKey) -> None:
        """End every stream of a round that has left OPEN; call it after the store says so."""
        with self._lock:
            places = [place for (of, _), place in list(self._places.items()) if of == key]
        for place in places:
            with place.lock:
                place.take_over(WrongState(f"{key} takes no uploads any more"))

    def close(self) -> None:
        """End every stream and commit what it has written; for a graceful stop."""
        with self._lock:
            places = list(self._places.values())
        for place in places:
            with place.lock:
                place.take_over(_TAKEN_OVER)

    def _session(
        self, key: RoundKey, manifest: Manifest, shares: Sequence[ReceivedShare], place: _Place
    ) -> UploadSession:
        """Step (7), then a session that goes on from what is committed."""
        return UploadSession(
            self._store,
            self._files,
            key=key,
            upload=self._reserve(key, manifest),
            length=manifest.length,
            commitments=manifest.commitments,
            salts={ShareIndex(s.index): Salt(s.salt) for s in shares},
            seeds={ShareIndex(s.index): s.seed for s in shares if s.index != manifest.heavy},
            limits=self._limits,
            place=place,
        )

    def _reserve(self, key: RoundKey, manifest: Manifest) -> Upload:
        found = self._store.upload(key, manifest.participant)
        if found is not None and found.complete:  # the answer was lost: say again that it is there, whatever the state
            found.check_manifest(manifest.digest)
            metrics.REPLAYS.labels("repeated").inc()
            return found
        submission = Submission(manifest.slot, manifest.participant, manifest.digest)
        size = manifest.length * WORD_BYTES if manifest.heavy in held_shares(self._party) else 0
        return self._store.reserve(key, submission, manifest.heavy, size, self._room)

    def _check_shares(self, manifest: Manifest, shares: Sequence[ReceivedShare]) -> None:
        """Steps (5) and (6)."""
        expected = held_shares(self._party)
        if tuple(s.index for s in shares) != expected:
            raise InvalidUpload(f"shares: party {self._party} takes {expected[0]} and {expected[1]}, in this order")
        for share in shares:
            if len(share.salt) != SALT_BYTES:
                raise InvalidUpload(f"share {share.index}: the salt has {len(share.salt)} bytes, not {SALT_BYTES}")
            if share.index == manifest.heavy:
                if share.seed:
                    raise InvalidUpload(f"share {share.index}: is the heavy one and comes as words, not as a seed")
            elif len(share.seed) != SEED_BYTES:
                raise InvalidUpload(f"share {share.index}: the seed has {len(share.seed)} bytes, not {SEED_BYTES}")
            elif not commitment_matches(manifest.commitments[share.index], Salt(share.salt), share.seed):
                raise InvalidUpload(f"share {share.index}: does not match the manifest's commitment")


_TAKEN_OVER = metrics.TakenOver("this stream was taken over by a later call of the same participant: go on there")
