"""One upload on its way to disk: chunks in order, a running SHA-256, the commitment at the end."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog

from triskele.errors import InvalidUpload, TriskeleError, Unavailable
from triskele.ids import ParticipantId, ShareIndex
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.ring import WIDE, Ring
from triskele.sharing import Commitment, Salt
from triskele_server.at_rest import StoreDamaged, WordsFile
from triskele_server.metrics import party as metrics
from triskele_server.party.records import Relay, Upload
from triskele_server.party.share_files import RoundKey, ShareFiles
from triskele_server.party.store import PartyStore

_log = structlog.get_logger(__name__)


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable("this party cannot write to its disk just now: try again later") from error


COMMIT_EVERY_BYTES = 8 << 20  # a crash of the party costs a participant at most so much to send again


@dataclass(frozen=True)
class Progress:
    """How far an upload is: bytes of the heavy share that are safely on disk, and whether all of it is there."""

    committed: int
    complete: bool
    relayed: bool = False  # the words are expected from the other holder
    relaying: bool = False  # this party brings, or has brought, the words to the other holder

    @classmethod
    def of(cls, upload: Upload) -> Progress:
        """What the participant, or the party that relays, is told of an upload."""
        relaying = upload.relay in (Relay.DUE, Relay.DONE)
        return cls(upload.committed, upload.complete, upload.relayed, relaying)


class UploadSession:
    """One stream of one upload. Its calls may come from any thread; they run one after another.

    `write` leaves the disk to the kernel; `resume`, `commit`, `finish`, and `close` of an upload that is not complete
    wait for it.

    A call after `close` raises the error that `close` was given.
    """

    def __init__(
        self,
        store: PartyStore,
        files: ShareFiles,
        *,
        key: RoundKey,
        upload: Upload,
        length: int,
        ring: Ring = WIDE,
        commitments: Sequence[Commitment],
        salts: Mapping[ShareIndex, Salt],
        seeds: Mapping[ShareIndex, bytes],
        limits: Limits = DEFAULT_LIMITS,
        place: object = None,
        relay: bytes = b"",
    ) -> None:
        self._store = store
        self._files = files
        self._key = key
        self._upload = upload
        self._limits = limits
        self._seeds = seeds
        self._commitment = commitments[upload.heavy]
        self._salt = salts.get(upload.heavy)  # None: this party holds the two seeds
        self._total = length * ring.word_bytes if self._salt is not None else 0
        self._position = self._committed = upload.committed
        self._complete = upload.complete
        self._file: WordsFile | None = None
        self._hash = hashlib.sha256(self._salt or b"")
        self._closed: TriskeleError | None = None
        self._lock = threading.Lock()
        self._place = place  # lives as long as this session
        self._relay = relay  # what goes before the words to the other holder; empty: they are not brought there

    def __repr__(self) -> str:
        return f"UploadSession({self._key}, slot {self._upload.slot}, {self._position} of {self._total} bytes)"

    @property
    def key(self) -> RoundKey:
        """The round."""
        return self._key

    @property
    def participant(self) -> ParticipantId:
        """Whose upload it is."""
        return self._upload.participant

    @property
    def complete(self) -> bool:
        """Whether the upload needs nothing more."""
        return self._complete

    @property
    def position(self) -> int:
        """Bytes of the heavy share that have come, also in earlier streams."""
        return self._position

    @property
    def commit_due(self) -> bool:
        """Whether so much has come since the last `commit` that it is time for another one."""
        return self._position - self._committed >= COMMIT_EVERY_BYTES

    def resume(self) -> None:
        """Hash what is here already, which takes as long as there is of it; `write` and `finish` would do it."""
        with self._lock:
            self._check_not_closed()
            if not self._complete:
                with _disk():
                    self._opened()

    def write(self, offset: int, data: bytes) -> None:
        """Step (8): take the next chunk. Raises InvalidUpload and takes nothing, or Unavailable if the disk fails."""
        with self._lock:
            self._check_not_closed()
            self._check_chunk(offset, data)
            with _disk():
                self._opened().append(data)
            self._hash.update(data)
            self._position += len(data)
            metrics.UPLOAD_BYTES.inc(len(data))

    def commit(self) -> None:
        """Make sure that what has come survives; call it where `commit_due` says so."""
        with self._lock:
            self._check_not_closed()
            with _disk():
                self._commit()

    def finish(self) -> Progress:
        """Steps (9) to (11). Raises InvalidUpload; what is truncated is kept, what does not match is thrown away."""
        with self._lock:
            self._check_not_closed()
            if self._complete:
                return Progress.of(self._upload)
            if self._position != self._total:  # (9)
                raise InvalidUpload(
                    f"truncated: {self._position} of {self._total} bytes came; send on from offset {self._position}"
                )
            with _disk():
                self._check_commitment()  # (10)
                self._keep()  # (11)
            return Progress.of(self._upload)

    def close(self, error: TriskeleError) -> None:
        """End the stream: what came is committed, later calls raise `error`. Closing again does nothing."""
        with self._lock:
            if self._closed is None:
                self._closed = error
                if isinstance(error, metrics.TakenOver) and not self._complete:
                    metrics.UPLOADS.labels("taken_over", "").inc()
                try:
                    if self._position > self._committed:
                        self._commit()
                finally:
                    self._close_file()

    def _check_not_closed(self) -> None:
        if self._closed is not None:
            raise type(self._closed)(str(self._closed))  # a new one: an exception raised twice collects tracebacks

    def _check_chunk(self, offset: int, data: bytes) -> None:
        if not 1 <= len(data) <= self._limits.max_chunk_bytes:
            raise InvalidUpload(f"chunk: {len(data)} bytes are not in 1 to {self._limits.max_chunk_bytes}")
        if offset != self._position:
            raise InvalidUpload(f"chunk: starts at byte {offset}, expected {self._position}")
        if offset + len(data) > self._total:
            raise InvalidUpload(f"oversized: byte {offset + len(data)} of a share that has {self._total} here")

    def _check_commitment(self) -> None:
        """The seeds were checked before anything was taken; the words can be checked only now."""
        if self._salt is None:
            return
        self._opened()
        if not hmac.compare_digest(self._hash.digest(), self._commitment):
            self._discard()
            self._check_not_closed()

    def _keep(self) -> None:
        self._files.make_folder(self._key)
        if self._file is not None:
            self._file.finish()
        if self._relay:
            self._files.write_relay(self._key, self._upload.participant, self._upload.heavy, self._relay)
        self._files.write_seeds(self._key, self._upload.participant, self._seeds)  # syncs the folder too
        relay = Relay.DUE if self._relay else Relay.NONE
        self._store.complete(self._key, self._upload.participant, self._total, relay)
        self._kept(replace(self._upload, committed=self._total, complete=True, relay=relay))

    def _kept(self, upload: Upload) -> None:
        """All words are there and match."""
        self._upload = upload
        self._complete = True
        self._committed = self._total
        self._close_file()
        if upload.complete:
            metrics.UPLOADS.labels("complete", "").inc()

    def _discard(self) -> None:
        self._closed = InvalidUpload(
            f"share {self._upload.heavy}: does not match the manifest's commitment; the upload was thrown away, "
            "send it again"
        )
        self._close_file()
        self._store.discard(self._key, self._upload.participant)
        self._files.share(self._key, self._upload.participant, self._upload.heavy, seed=False).unlink(missing_ok=True)

    def _commit(self) -> None:
        if self._file is not None:
            self._committed = self._file.sync()
            self._files.sync_folder(self._key)  # the file's name must survive, too
            self._store.commit_offset(self._key, self._upload.participant, self._committed)

    def _opened(self) -> WordsFile:
        """The heavy share's file; on resuming, what is in it is hashed first."""
        if self._file is None:
            self._files.make_folder(self._key)
            file = self._files.open_words(self._key, self._upload.participant, self._upload.heavy, self._position)
            try:
                for block in file.stored():
                    self._hash.update(block)
            except (OSError, StoreDamaged):
                file.close()
                self._hash = hashlib.sha256(self._salt or b"")
                raise
            self._file = file
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class RelayedWords(UploadSession):
    """The words of a relayed upload, brought by the other holder; the participant's own part comes from itself.

    Words that do not match are that party's doing: they are thrown away, and nothing more of this upload is taken from
    there; the participant, who is told so when it asks, sends them itself.
    """

    def _keep(self) -> None:
        self._files.make_folder(self._key)
        if self._file is not None:
            self._file.finish()
        self._files.sync_folder(self._key)
        self._kept(self._store.words_brought(self._key, self._upload.participant, self._total))
        metrics.RELAYS.labels("received").inc()

    def _discard(self) -> None:
        carrier = f"party {self._upload.heavy}"  # share h comes from party h
        self._closed = InvalidUpload(f"relay: the words that {carrier} brought do not match the manifest's commitment")
        self._close_file()
        self._store.take_direct(self._key, self._upload.participant)
        self._files.share(self._key, self._upload.participant, self._upload.heavy, seed=False).unlink(missing_ok=True)
        metrics.RELAYS.labels("mismatch").inc()
        _log.error("relayed_words_do_not_match", party=self._upload.heavy, slot=self._upload.slot)

    def _commit(self) -> None:
        if self._position < self._total:  # all of them count only once they are known to match
            super()._commit()
