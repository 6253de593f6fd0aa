"""The certificates and keys of a participant, read once from its files and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from triskele.config import ParticipantConfig
from triskele.errors import ConfigurationError


@dataclass(frozen=True)
class Credentials:
    """PEM bytes for the connection, and the Ed25519 key and certificate that sign manifests. Never printed."""

    authority: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    signing_key: Ed25519PrivateKey = field(repr=False)
    signing_certificate: x509.Certificate = field(repr=False)

    @classmethod
    def load(cls, config: ParticipantConfig) -> Credentials:
        """Read the five files; raises ConfigurationError naming the key of the configuration and the file."""
        uri = config.identity.uri
        own = _certificate("tls.certificate", config.tls.certificate)
        _check_identity("tls.certificate", config.tls.certificate, own, uri)
        _certificate("tls.authority", config.tls.authority)
        signing = _certificate("signing.certificate", config.signing.certificate)
        _check_identity("signing.certificate", config.signing.certificate, signing, uri)
        key = _ed25519("signing.key", config.signing.key)
        if signing.public_key() != key.public_key():
            raise ConfigurationError(
                f"signing.key ({config.signing.key}) does not belong to signing.certificate "
                f"({config.signing.certificate})"
            )
        return cls(
            authority=_read("tls.authority", config.tls.authority),
            certificate=_read("tls.certificate", config.tls.certificate),
            key=_read("tls.key", config.tls.key),
            signing_key=key,
            signing_certificate=signing,
        )


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting} ({path}): cannot be read ({error.strerror})") from error


def _certificate(setting: str, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(setting, path))
    except ValueError as error:
        raise ConfigurationError(f"{setting} ({path}): is not a PEM certificate") from error


def _check_identity(setting: str, path: Path, certificate: x509.Certificate, uri: str) -> None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        found = []
    if found != [uri]:
        raise ConfigurationError(f"{setting} ({path}): speaks for {', '.join(found) or 'nobody'}, not for {uri}")


def _ed25519(setting: str, path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(setting, path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # from None: the loader's own error could quote what is in the file
        raise ConfigurationError(f"{setting} ({path}): is not an unencrypted PEM private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{setting} ({path}): is not an Ed25519 key")
    return key
