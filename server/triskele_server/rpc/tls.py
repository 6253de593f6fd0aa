"""The three PEM files that make a process a member of the federation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from triskele.errors import ConfigurationError


@dataclass(frozen=True)
class TlsFiles:
    """Paths of this process's certificate chain, its private key and the federation's certificate authority."""

    certificate: Path
    key: Path
    authority: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """Mutual TLS for a server: a client without a certificate of the authority is turned away in the handshake."""
        pair = (_read(self.key), _read(self.certificate))
        return grpc.ssl_server_credentials([pair], _read(self.authority), require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Mutual TLS for a client."""
        return grpc.ssl_channel_credentials(_read(self.authority), _read(self.key), _read(self.certificate))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); name the PEM file in [tls] of the configuration"
        ) from error
