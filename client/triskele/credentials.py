"""The certificates and keys of a participant, read from its files and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from triskele.config import MemberConfig, ParticipantConfig
from triskele.errors import ConfigurationError
from triskele.renewal import Renewed
from triskele.transparency.party_keys import PartyKeys
from triskele.unusable import UNUSABLE_CERTIFICATE, UNUSABLE_KEY


@dataclass(frozen=True)
class Credentials:
    """Authority (PEM), what a connection needs, and the Ed25519 key and certificate that sign. Never printed."""

    authority: bytes = field(repr=False)
    channel: grpc.ChannelCredentials = field(repr=False)
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
        if _public_key(signing) != key.public_key():
            raise ConfigurationError(
                f"signing.key ({config.signing.key}) does not belong to signing.certificate "
                f"({config.signing.certificate})"
            )
        authority = _read("tls.authority", config.tls.authority)
        return cls(
            authority=authority,
            channel=grpc.ssl_channel_credentials(
                authority, _read("tls.key", config.tls.key), _read("tls.certificate", config.tls.certificate)
            ),
            signing_key=key,
            signing_certificate=signing,
        )

    @classmethod
    def renewed(cls, config: ParticipantConfig) -> Renewed[Credentials]:
        """The same, and read again whenever a file has changed; raises as `load` does, but later keeps what it has."""
        tls, signing = config.tls, config.signing
        files = (tls.authority, tls.certificate, tls.key, signing.certificate, signing.key)
        return Renewed(files, lambda: cls.load(config))


def trusted_parties(config: MemberConfig) -> Renewed[PartyKeys]:
    """The keys that [trust] names, read again whenever a file has changed; raises ConfigurationError."""
    files = config.trust.parties
    return Renewed(files, lambda: PartyKeys.from_files(files, config.trust.signatures))


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting} ({path}): cannot be read ({error.strerror})") from error


def _certificate(setting: str, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(setting, path))
    except UNUSABLE_CERTIFICATE as error:
        raise ConfigurationError(f"{setting} ({path}): is not a PEM certificate") from error


def _check_identity(setting: str, path: Path, certificate: x509.Certificate, uri: str) -> None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
    except UNUSABLE_CERTIFICATE:
        found = []
    if found != [uri]:
        raise ConfigurationError(f"{setting} ({path}): speaks for {', '.join(found) or 'nobody'}, not for {uri}")


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """The key in a certificate, None if it holds none that can be used."""
    try:
        return certificate.public_key()
    except UNUSABLE_CERTIFICATE:
        return None


def _ed25519(setting: str, path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(setting, path), password=None)
    except UNUSABLE_KEY:
        # from None: the loader's own error could quote what is in the file
        raise ConfigurationError(f"{setting} ({path}): is not an unencrypted PEM private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{setting} ({path}): is not an Ed25519 key")
    return key
