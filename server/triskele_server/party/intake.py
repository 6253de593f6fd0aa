"""Taking in uploads: the checks, the bytes to disk, the commitment; without gRPC. Blocking: call it from a thread.

    begin   (1) the manifest is signed by the caller, (2) it names the caller, (3) this party has its round,
            (4) it fits the task, (5) the two shares are this party's, (6) the seeds open their commitments,
            (7) nothing else of this participant stands, the round is open, and there is room on the disk
    write   (8) chunks come in order, in size, and not beyond the share's length
    finish  (9) the share is whole, (10) it opens its commitment, (11) all is on disk before it counts

A heavy share may go up once (docs/protocol.md, "One upload"): its first holder, party h, then brings the words to the
second one, party h - 1. `announce` takes what the participant tells the second holder: steps (1) to (7), and its seed
is kept. `begin_relay` takes the words from the first one, which the participant's signed manifest speaks for.

A refused call changes nothing, but for step 10: a share that does not match is thrown away, so that its participant may
send again. An upload is one participant's to one round; a second stream or a status call takes it over from the first.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary, ref

from cryptography import x509

from triskele import manifest as manifests
from triskele.errors import Forbidden, InvalidUpload, TriskeleError, Unavailable, WrongState
from triskele.identity import Identity
from triskele.ids import ParticipantId, PartyIndex, ShareIndex, held_shares
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.manifest import Manifest, ManifestDigest
from triskele.ring import Ring
from triskele.sharing import SALT_BYTES, SEED_BYTES, Salt, commitment_matches
from triskele_proto.v1 import party_pb2, types_pb2
from triskele_server.metrics import party as metrics
from triskele_server.party.disk_room import DiskRoom
from triskele_server.party.records import Submission, Upload
from triskele_server.party.share_files import RoundKey, ShareFiles
from triskele_server.party.store import PartyStore
from triskele_server.party.upload import Progress, RelayedWords, UploadSession
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
    relay: ref[UploadSession] | None = None  # from the other holder

    def take_over(self, error: TriskeleError) -> None:
        """End the participant's stream that writes now, if any; what it has written is kept."""
        _close(self.session, error)
        self.session = None

    def take_relay_over(self, error: TriskeleError) -> None:
        """The same for the other holder's stream."""
        _close(self.relay, error)
        self.relay = None


@dataclass(frozen=True)
class _Claim:
    """A signed manifest that holds, and what the store says of its round."""

    manifest: Manifest
    key: RoundKey
    ring: Ring
    is_open: bool


def _close(session: ref[UploadSession] | None, error: TriskeleError) -> None:
    open_session = None if session is None else session()
    if open_session is not None:
        open_session.close(error)


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
        relays: bool = False,
    ) -> None:
        """`relays`: whether this party can reach the one that holds its first share too."""
        self._store = store
        self._files = files
        self._party = party
        self._authority = authority
        self._deny_list = deny_list or DenyList()
        self._now = now
        self._limits = limits
        self._room = room
        self._relays = relays
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
        return Progress.of(upload)

    def begin(
        self,
        caller: Identity,
        signed: types_pb2.SignedManifest,
        shares: Sequence[ReceivedShare],
        *,
        relay: bool = False,
    ) -> UploadSession:
        """Steps (1) to (7): an upload that goes on from what is committed. Raises a ParticipantFault.

        `relay`: the participant asks this party to bring the words to the other holder.
        """
        claim = self._checked(caller, signed)
        self._check_shares(claim.manifest, shares)  # (5), (6)
        header = self._relay_header(signed, claim.manifest, shares) if relay else b""
        if not claim.is_open:
            return self._session(claim, shares, _Place(), header)  # complete, or refused
        place = self._place(claim)
        with place.lock:
            place.take_over(_TAKEN_OVER)
            place.take_relay_over(_SENT_DIRECTLY)
            session = self._session(claim, shares, place, header)
            place.session = ref(session)
            return session

    def announce(self, caller: Identity, signed: types_pb2.SignedManifest, shares: Sequence[ReceivedShare]) -> Progress:
        """Steps (1) to (7), and the participant's part of an upload whose words the other holder brings.

        An upload whose words the participant has begun to send itself stays so: what is told says which it is.
        """
        claim = self._checked(caller, signed)
        manifest = claim.manifest
        self._check_shares(manifest, shares)  # (5), (6)
        if manifest.heavy != held_shares(self._party)[1]:
            raise InvalidUpload(f"relayed: party {self._party} is not the second holder of share {manifest.heavy}")
        place = self._place(claim) if claim.is_open else _Place()
        with place.lock:
            place.take_over(_TAKEN_OVER)
            upload = self._reserve(claim, relayed=True)
            if upload.complete or not upload.relayed:
                return Progress.of(upload)
            return Progress.of(self._seeded(claim, upload, shares))

    def begin_relay(self, caller: Identity, signed: types_pb2.SignedManifest, salt: bytes) -> UploadSession:
        """The words of a participant's upload from `caller`, the party that holds them too. Raises a ParticipantFault.

        The participant's signature says that there is such an upload; who brings it can be nobody but party h.
        """
        told = Manifest.from_proto(signed.manifest)
        participant = Identity(caller.federation, "participant", told.participant)
        claim = self._checked(participant, signed)
        manifest = claim.manifest
        self._check_relays(caller, manifest.heavy)
        if len(salt) != SALT_BYTES:
            raise InvalidUpload(f"relay: the salt has {len(salt)} bytes, not {SALT_BYTES}")
        place = self._place(claim) if claim.is_open else _Place()
        with place.lock:
            place.take_relay_over(_BROUGHT_AGAIN)
            upload = self._reserve(claim, relayed=True)
            if not (upload.complete or upload.relayed):
                raise WrongState(str(_SENT_DIRECTLY))  # a new one: an exception raised twice collects tracebacks
            session = RelayedWords(
                self._store,
                self._files,
                key=claim.key,
                upload=replace(upload, complete=upload.complete or upload.words_there),
                length=manifest.length,
                ring=claim.ring,
                commitments=manifest.commitments,
                salts={manifest.heavy: Salt(salt)},
                seeds={},
                limits=self._limits,
                place=place,
            )
            place.relay = ref(session)
            return session

    def relay_status(self, caller: Identity, key: RoundKey, participant: ParticipantId, digest: bytes) -> Progress:
        """How much of an upload `caller` has brought; raises as `status`, and Forbidden for another party."""
        self._store.round(key)
        upload = self._store.upload(key, participant)
        if upload is None:
            return Progress(0, complete=False, relayed=True)
        self._check_relays(caller, upload.heavy)
        upload.check_manifest(ManifestDigest(digest))
        return Progress.of(upload)

    def _checked(self, caller: Identity, signed: types_pb2.SignedManifest) -> _Claim:
        """Steps (1) to (4)."""
        manifest = manifests.verify(signed, authority=self._authority, identity=caller.uri, now=self._now())  # (1)
        self._deny_list.check(caller, x509.load_der_x509_certificate(signed.certificate).serial_number)
        if manifest.participant != caller.name:  # (2)
            metrics.REPLAYS.labels("another_participant").inc()
            raise InvalidUpload(f"manifest: made for {manifest.participant}, but sent by {caller.name}")
        key = RoundKey(manifest.task, manifest.round)
        record = self._store.round(key)  # (3)
        spec = record.spec
        spec.check_takes_part(manifest.participant)
        manifest.check_belongs_to(spec, key.number)  # (4)
        return _Claim(manifest, key, spec.ring, record.state is RoundState.OPEN)

    def _check_relays(self, caller: Identity, heavy: ShareIndex) -> None:
        if caller.name != str(heavy) or heavy != held_shares(self._party)[1]:
            raise Forbidden(f"relay: {caller.uri} does not bring share {heavy} to party {self._party}")

    def _place(self, claim: _Claim) -> _Place:
        with self._lock:
            return self._places.setdefault((claim.key, claim.manifest.participant), _Place())

    def _relay_header(
        self, signed: types_pb2.SignedManifest, manifest: Manifest, shares: Sequence[ReceivedShare]
    ) -> bytes:
        """What goes before the words to the other holder; empty where this party does not bring them."""
        if not self._relays or manifest.heavy != held_shares(self._party)[0]:
            return b""
        salt = next(s.salt for s in shares if s.index == manifest.heavy)
        return party_pb2.RelayHeader(manifest=signed, salt=salt).SerializeToString()

    def _seeded(self, claim: _Claim, upload: Upload, shares: Sequence[ReceivedShare]) -> Upload:
        """Keep the participant's own part of a relayed upload, which is complete then if the words are there."""
        try:
            self._files.make_folder(claim.key)
            self._files.write_seeds(claim.key, upload.participant, _seeds(claim.manifest, shares))
        except OSError as error:
            raise Unavailable("this party cannot write to its disk just now: try again later") from error
        seeded = self._store.seeded(claim.key, upload.participant)
        if seeded.complete:
            metrics.UPLOADS.labels("complete", "").inc()
        return seeded

    def close_round(self, key: RoundKey) -> None:
        """End every stream of a round that has left OPEN; call it after the store says so."""
        with self._lock:
            places = [place for (of, _), place in list(self._places.items()) if of == key]
        for place in places:
            with place.lock:
                place.take_over(WrongState(f"{key} takes no uploads any more"))
                place.take_relay_over(WrongState(f"{key} takes no uploads any more"))

    def close(self) -> None:
        """End every stream and commit what it has written; for a graceful stop."""
        with self._lock:
            places = list(self._places.values())
        for place in places:
            with place.lock:
                place.take_over(_TAKEN_OVER)
                place.take_relay_over(_BROUGHT_AGAIN)

    def _session(self, claim: _Claim, shares: Sequence[ReceivedShare], place: _Place, relay: bytes) -> UploadSession:
        """Step (7), then a session that goes on from what is committed."""
        manifest = claim.manifest
        upload = self._reserve(claim)
        if upload.relayed and not upload.complete:
            if upload.words_there:
                upload = self._seeded(claim, upload, shares)
            else:
                upload = self._store.take_direct(claim.key, upload.participant)
        return UploadSession(
            self._store,
            self._files,
            key=claim.key,
            upload=upload,
            length=manifest.length,
            ring=claim.ring,
            commitments=manifest.commitments,
            salts={ShareIndex(s.index): Salt(s.salt) for s in shares},
            seeds=_seeds(manifest, shares),
            limits=self._limits,
            place=place,
            relay=relay,
        )

    def _reserve(self, claim: _Claim, *, relayed: bool = False) -> Upload:
        manifest = claim.manifest
        submission = Submission(manifest.slot, manifest.participant, manifest.digest)
        size = manifest.length * claim.ring.word_bytes if manifest.heavy in held_shares(self._party) else 0
        upload = self._store.reserve(claim.key, submission, manifest.heavy, size, self._room, relayed=relayed)
        if upload.complete:  # the answer was lost: say again that it is there, whatever the round's state
            metrics.REPLAYS.labels("repeated").inc()
        return upload

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


def _seeds(manifest: Manifest, shares: Sequence[ReceivedShare]) -> dict[ShareIndex, bytes]:
    return {ShareIndex(s.index): s.seed for s in shares if s.index != manifest.heavy}


_SENT_DIRECTLY = WrongState("relay: the participant sends the words itself")
_TAKEN_OVER = metrics.TakenOver("this stream was taken over by a later call of the same participant: go on there")
# Not for ever, as a refusal is: the party that brings the words asks once more where to go on.
_BROUGHT_AGAIN = Unavailable("this relay was broken off here, by this party's end or a later one of the same words")
