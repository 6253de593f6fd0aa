"""The server of another framework (Flower's ServerApp, for one) as a member of a federation.

A *reader* sees tasks and rounds and fetches aggregates. A *forwarder* may also enrol participants that have signed
their wish, and bring the parties what participants have sealed to them. Neither can submit an update of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from triskele.config import FrameworkServerConfig
from triskele.connection import DEFAULT_RETRIES, Connections, RetryPolicy, typed_errors
from triskele.coordinator import Coordinator, Enrolment
from triskele.credentials import trusted_parties
from triskele.enrolment_wish import EnrolmentWish
from triskele.errors import ConfigurationError, NotFound, PartyFault, RoundFailed
from triskele.ids import RoundNumber
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.renewal import Renewed
from triskele.result import Aggregate
from triskele.sealed import SealContext, SealedUpload
from triskele.task import TaskSpec
from triskele.unusable import UNUSABLE_CERTIFICATE
from triskele.views import RoundView
from triskele_proto.v1 import party_pb2


class FrameworkServer:
    """One reader or forwarder. Use it in a `with` statement, or close it."""

    def __init__(
        self,
        config: FrameworkServerConfig,
        *,
        limits: Limits = DEFAULT_LIMITS,
        retries: RetryPolicy = DEFAULT_RETRIES,
    ) -> None:
        self.forwards = config.forwarder is not None
        self.sealing_certificates = tuple(_der(path) for path in config.sealing)  # of parties 0, 1, 2
        tls = config.tls
        files = (tls.authority, tls.key, tls.certificate)
        credentials = Renewed(files, lambda: grpc.ssl_channel_credentials(*map(_read, files)))
        self._connections = Connections(config, credentials.current, limits)
        self._limits = limits
        self._retries = self._connections.patient(retries)
        self._coordinator = Coordinator(self._connections, trusted_parties(config), limits, self._retries)

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, retries: RetryPolicy = DEFAULT_RETRIES
    ) -> Self:
        """The member that reader.toml or forwarder.toml describes; raises ConfigurationError."""
        return cls(FrameworkServerConfig.load(path), limits=limits, retries=retries)

    def __repr__(self) -> str:
        return f"FrameworkServer(forwards={self.forwards})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def task(self, name: str) -> TaskSpec:
        """The coordinator's task of this name; raises NotFound."""
        return self._coordinator.task(name).spec

    def check_may_read(self, spec: TaskSpec) -> None:
        """Raise ConfigurationError for a forwarder of a task whose aggregates are for participants only."""
        if self.forwards and spec.masked:
            raise ConfigurationError(
                f"the release of task {spec.name!r} is for participants, and a forwarder cannot take the mask off: set "
                'release = "public" in the task, or give a reader too'
            )

    def wait_open(self, spec: TaskSpec, from_round: RoundNumber, timeout: float) -> RoundView:
        """The first open round from `from_round` on. Raises NotFound when the task is finished, or TimeoutError."""
        with self._coordinator.watch(spec, from_round, timeout) as views:
            for view in views:
                if view.state == "OPEN":
                    return view
        raise NotFound(f"task {spec.name!r} is finished: no round from {from_round} on will open")

    def aggregate(self, spec: TaskSpec, number: RoundNumber, timeout: float) -> tuple[RoundView, Aggregate]:
        """Wait for the round's end, fetch what it gave. Raises RoundFailed, TimeoutError, Unavailable, PartyFault.

        Raises Forbidden for a reader where the parties' policy does not let readers unmask.
        """
        view = self._coordinator.wait_ended(spec, number, timeout)
        if view.state == "RELEASED":
            return view, self._coordinator.fetch_aggregate(spec, number)
        blame = view.blame
        if blame is None:
            raise RoundFailed(view.state.lower(), "coordinator", "no reason was given")
        raise RoundFailed(blame.reason, blame.who, blame.detail)

    def enrol_for(self, wish: EnrolmentWish, spec: TaskSpec) -> Enrolment:
        """The slot of a participant that has signed its wish; the same answer when repeated."""
        return self._coordinator.enrol_for(wish, spec)

    def forward(self, upload: SealedUpload, context: SealContext, address: str) -> None:
        """Bring one party what was sealed to it; harmless to repeat. Raises as `Round.submit`."""
        party: Any = self._connections.party(context.party, address)

        def attempt() -> None:
            with typed_errors(f"party {context.party}"):
                reply = party.UploadSealed(_requests(upload, context), timeout=self._limits.upload_seconds)
            if not reply.complete:
                raise PartyFault(f"party {context.party} does not call the sealed upload complete", context.party)

        self._retries.call(attempt)


def _requests(upload: SealedUpload, context: SealContext) -> Iterator[party_pb2.SealedUploadRequest]:
    header = party_pb2.SealedUploadHeader(
        task_digest=context.task, round=context.round, participant=context.participant, sealed=upload.header
    )
    yield party_pb2.SealedUploadRequest(header=header)
    for offset, sealed in upload.chunks:
        yield party_pb2.SealedUploadRequest(chunk=party_pb2.SealedChunk(offset=offset, sealed=sealed))


def _der(path: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(_read(path)).public_bytes(Encoding.DER)
    except UNUSABLE_CERTIFICATE as error:
        raise ConfigurationError(f"sealing ({path}): is not a PEM certificate") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
