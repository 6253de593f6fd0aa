"""The upload of one submission to the three parties: in parallel, in chunks, going on where a broken one stopped.

A party answers `UploadStatus` with the bytes of the heavy share that it has committed; the stream goes on from there.
Of a participant that was admitted just now it has none, and is not asked; should it have some all the same, it says so.
The submission's bytes are always the same (see submission.py), so it does not matter which process sent the first part.

The heavy share goes up once, to party h, which brings it to its other holder, party h - 1. That one is told so first.
Where party h does not bring it, or it has stood still for `Limits.relay_seconds`, or party h - 1 refuses what was
brought, the participant uploads it there itself, from the first byte on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from triskele.connection import RetryPolicy, typed_errors
from triskele.errors import PartyFault, TriskeleError, Unavailable
from triskele.ids import PARTIES, PartyIndex, held_shares
from triskele.limits import Limits
from triskele.submission import Submission
from triskele.tracing import TRACES
from triskele_proto.v1 import party_pb2


@dataclass(frozen=True)
class UploadProgress:
    """How far the upload to one party has come. Bytes of the heavy share; 0 of 0 where both shares are seeds."""

    party: PartyIndex
    sent: int
    total: int
    complete: bool = False  # the party has said that it holds both shares and that they match the manifest


Progress = Callable[[UploadProgress], None]

RELAY_PAUSES = (0.05, 1.0)  # seconds between two looks at a relay: the first, and the longest
LONGEST_RELAY = 10  # times Limits.relay_seconds, however much is still moving


@dataclass
class RelayedUpload:
    """What the uploads to the two holders of the heavy share tell each other."""

    carried: threading.Event = field(default_factory=threading.Event)  # the upload to party h has ended
    relaying: bool = False  # party h has said that it brings the words


def upload(
    submission: Submission,
    parties: Sequence[Any],
    *,
    limits: Limits,
    retries: RetryPolicy,
    progress: Progress | None = None,
    relay: bool = True,
    new: bool = False,
) -> None:
    """Upload to parties 0, 1, 2; returns when each of them has confirmed that it is complete.

    `relay`: whether the heavy share goes up once, or to each of its two holders. `new`: nothing of this submission was
    uploaded before, so that no party need be asked what it has.

    `progress` is called from several threads and must not raise. Repeats what fails as Unavailable, starting to count
    again whenever bytes were committed in between. Raises the first other error, above all Conflict (another update of
    this participant stands already) and WrongState (the round is no longer open), or Unavailable in the end.
    """
    stop = threading.Event()
    relayed = RelayedUpload() if relay else None
    uploads = [
        _PartyUpload(
            submission,
            index,
            parties[index],
            limits=limits,
            retries=retries,
            progress=progress or _ignore,
            stop=stop,
            relayed=relayed,
            new=new,
        )
        for index in PARTIES
    ]
    with ThreadPoolExecutor(len(uploads), thread_name_prefix="triskele-upload") as pool:
        futures = [pool.submit(copy_context().run, one.run) for one in uploads]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            if any(_refused(future) for future in futures):
                stop.set()
        except BaseException:  # KeyboardInterrupt too: the threads must end before the pool can
            stop.set()
            raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Unavailable | _StoppedUpload))


class _StoppedUpload(TriskeleError):
    """Not worth a repetition: another party's refusal is the error to tell."""


class _PartyUpload:
    """The upload to one party, in a thread of its own."""

    def __init__(
        self,
        submission: Submission,
        party: PartyIndex,
        client: Any,
        *,
        limits: Limits,
        retries: RetryPolicy,
        progress: Progress,
        stop: threading.Event,
        relayed: RelayedUpload | None = None,
        new: bool = False,
    ) -> None:
        self._party = party
        self._client = client
        self._submission = submission
        self._limits = limits
        self._retries = retries
        self._progress = progress
        self._stop = stop
        first, second = held_shares(party)
        heavy = submission.manifest.heavy
        self._total = len(submission.heavy_share) if heavy in (first, second) else 0
        self._relayed = relayed
        self._new = new
        self._carries = relayed is not None and heavy == first
        self._awaits = relayed is not None and heavy == second  # until it is known that nothing will come
        self._looked_for = self._stood_still = 0.0  # seconds since party h has everything, and since anything came
        self._brought = -1  # bytes
        self._reached: int | None = None  # bytes committed when the last attempt began

    def run(self) -> None:
        try:
            with TRACES.span("upload", party=self._party):
                while not self._retries.call(self._attempt):
                    pass  # bytes were committed before it broke: the policy counts from the start again
        finally:
            if self._relayed is not None and self._carries:
                self._relayed.carried.set()
        self._progress(UploadProgress(self._party, self._total, self._total, complete=True))

    def _attempt(self) -> bool:
        """Upload what the party has not committed yet.

        True if it is complete then, False if it has a part of it, or broke, but later than last time; raises
        Unavailable if no later.
        """
        self._check_not_stopped()
        if self._awaits:
            if self._brought_by_the_other():
                return True
            self._awaits = False
        unasked = self._new and self._reached is None
        start = 0 if unasked else self._committed()
        if start is None:
            return True
        further = self._reached is not None and start > self._reached
        self._reached = start
        try:
            return self._stream(start, unasked=unasked)
        except Unavailable:
            if further:
                return False
            raise

    def _committed(self) -> int | None:
        """Bytes of the heavy share that the party holds, None if the whole submission is complete there."""
        reply = self._status()
        if reply.complete:
            return None
        return 0 if reply.relayed else int(reply.committed)  # what the other holder has brought does not count

    def _status(self) -> party_pb2.UploadReply:
        manifest = self._submission.manifest
        request = party_pb2.UploadStatusRequest(
            task_digest=manifest.task, round=manifest.round, manifest_digest=self._submission.digest
        )
        with typed_errors(f"party {self._party}"):
            reply: party_pb2.UploadReply = self._client.UploadStatus(request, timeout=self._limits.rpc_seconds)
        if reply.committed > self._total:
            raise PartyFault(
                f"party {self._party} claims to hold {reply.committed} bytes of a share of {self._total}", self._party
            )
        self._heard(reply)
        return reply

    def _heard(self, reply: party_pb2.UploadReply) -> None:
        if self._relayed is not None and self._carries and reply.complete:
            self._relayed.relaying = reply.relaying

    def _brought_by_the_other(self) -> bool:
        """Tell the second holder that the first one brings the words, and wait for them.

        False if they do not come: the first holder does not bring them, not in time, or not the right ones.
        """
        header = upload_header(self._submission, self._party, relayed=True)
        with typed_errors(f"party {self._party}"):
            reply = self._client.Upload(
                iter((party_pb2.UploadRequest(header=header),)), timeout=self._limits.upload_seconds
            )
        pause, longest = RELAY_PAUSES
        while reply.relayed and not reply.complete:
            self._check_not_stopped()
            self._retries.sleep(pause)
            if self._relayed is None or not self._relayed.carried.is_set():
                continue
            if not self._relayed.relaying or not self._in_time(int(reply.committed), pause):
                return False
            pause = min(2 * pause, longest)
            reply = self._status()
        return bool(reply.complete)

    def _in_time(self, brought: int, paused: float) -> bool:
        """Whether a relay is worth a further look. Time is what was slept: a call that hangs has its own deadline."""
        self._looked_for += paused
        self._stood_still = 0.0 if brought > self._brought else self._stood_still + paused
        self._brought = max(brought, self._brought)
        limit = self._limits.relay_seconds
        return self._stood_still < limit and self._looked_for < LONGEST_RELAY * limit

    def _stream(self, start: int, *, unasked: bool) -> bool:
        try:
            with typed_errors(f"party {self._party}"):
                reply = self._client.Upload(self._requests(start), timeout=self._limits.upload_seconds)
        except TriskeleError:
            self._check_not_stopped()  # a stream that we cut short is refused as truncated: not the error to tell
            raise
        self._heard(reply)
        if reply.complete:
            return True
        if unasked and reply.committed:
            return False
        if reply.committed >= self._total:
            raise PartyFault(
                f"party {self._party} holds every byte, but does not call the upload complete", self._party
            )
        raise Unavailable(f"party {self._party} ended the upload after {reply.committed} of {self._total} bytes")

    def _check_not_stopped(self) -> None:
        if self._stop.is_set():
            raise _StoppedUpload(f"party {self._party}: the upload was stopped, because another party refused it")

    def _requests(self, start: int) -> Iterator[party_pb2.UploadRequest]:
        """The header, then the chunks from byte `start` on; runs in a thread of grpc's, paced by the connection."""
        yield party_pb2.UploadRequest(header=upload_header(self._submission, self._party, relay=self._carries))
        share = self._submission.heavy_share
        for offset in range(start, self._total, self._limits.chunk_bytes):
            if self._stop.is_set():
                return
            end = min(offset + self._limits.chunk_bytes, self._total)
            # protobuf takes bytes only: one copy per chunk, never of the share
            yield party_pb2.UploadRequest(chunk={"offset": offset, "data": bytes(share[offset:end])})
            self._progress(UploadProgress(self._party, end, self._total))


def upload_header(
    submission: Submission, party: PartyIndex, *, relay: bool = False, relayed: bool = False
) -> party_pb2.UploadHeader:
    """The manifest and what `party` gets of its two shares beside the heavy one's words: salts and seeds.

    `relay` asks it to bring the words to their other holder, `relayed` tells it that the other holder brings them.
    """
    sharing = submission.sharing
    shares = [
        party_pb2.ShareHeader(index=index, salt=sharing.salts[index], seed=sharing.seeds.get(index, b""))
        for index in held_shares(party)
    ]
    return party_pb2.UploadHeader(manifest=submission.signed, shares=shares, relay=relay, relayed=relayed)


def _refused(future: Future[None]) -> bool:
    """Whether an upload has ended with an error that repeating cannot mend."""
    return future.done() and future.exception() is not None and not isinstance(future.exception(), Unavailable)


def _ignore(_: UploadProgress) -> None:
    """No progress is asked for."""
