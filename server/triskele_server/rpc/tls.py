"""The three PEM files that make a process a member of the federation, and their renewal while it runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from triskele.errors import ConfigurationError
from triskele.renewal import Renewed
from triskele.unusable import UNUSABLE_CERTIFICATE

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """Paths of this process's certificate chain, its private key, the federation's authority, and the deny list."""

    certificate: Path
    key: Path
    authority: Path
    denied: Path | None = None

    def server_credentials(self) -> grpc.ServerCredentials:
        """Mutual TLS for a server: a client without a certificate of the authority is turned away in the handshake.

        Every new connection gets the files as they are then. Raises ConfigurationError if they cannot be used now.
        """
        renewed = Renewed((self.certificate, self.key, self.authority), self._configuration, told=_not_renewed)
        changes = _Changes(renewed)
        return grpc.dynamic_ssl_server_credentials(
            changes.last,
            changes.next,  # type: ignore[arg-type]  # its type hints know no None, which is "unchanged"
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Mutual TLS for a client, with the files as they are now; raises ConfigurationError."""
        certificate, key, authority = self._pem()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, authority = self._pem()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def _pem(self) -> tuple[bytes, bytes, bytes]:
        """Certificate chain, key, authority, checked against each other; raises ConfigurationError."""
        certificate, key, authority = _read(self.certificate), _read(self.key), _read(self.authority)
        try:
            own = x509.load_pem_x509_certificate(certificate).public_key()
            matches = load_pem_private_key(key, None).public_key() == own
            x509.load_pem_x509_certificates(authority)
        except UNUSABLE_CERTIFICATE:  # from None: the text could quote what is in the key file
            raise ConfigurationError(
                f"{self.certificate}, {self.key} and {self.authority} must hold a certificate, its private key "
                "without a password, and the authority's certificate, all PEM"
            ) from None
        if not matches:
            raise ConfigurationError(f"{self.certificate} and {self.key} do not belong together")
        return certificate, key, authority


class _Changes:
    """What gRPC asks in each handshake: the configuration if it is another one than last time, else None.

    gRPC takes over every configuration that it is handed, under handshakes that still use the last one. Handing over
    the same one each time let anybody who opened and closed connections quickly end the process (SIGSEGV).
    """

    def __init__(self, renewed: Renewed[grpc.ServerCertificateConfiguration]) -> None:
        self._renewed = renewed
        self._lock = threading.Lock()
        self.last = renewed.current()

    def next(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's threads."""
        found = self._renewed.current()
        with self._lock:
            if found is self.last:
                return None
            self.last = found
            return found


def _not_renewed(error: ConfigurationError) -> None:
    _log.error("certificate_not_renewed", problem=str(error))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); name the PEM file in [tls] of the configuration"
        ) from error
