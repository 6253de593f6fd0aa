"""Issuing the federation's certificates: a P-256 authority, P-256 certificates for TLS, Ed25519 ones for manifests.

Each leaf carries exactly one URI name, the SPIFFE id; only parties and the coordinator, who serve, get a DNS name.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from triskele.errors import ConfigurationError
from triskele.identity import Identity

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
_BACKDATED = datetime.timedelta(minutes=10)  # members' clocks may be this far behind

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey


@dataclass(frozen=True)
class Credential:
    """A certificate and its private key, PEM; the key is never shown."""

    certificate: bytes
    key: bytes = field(repr=False)


class Authority:
    """The federation's certificate authority, new with every instance or loaded; `now` is the time of issue."""

    def __init__(self, federation: str, now: datetime.datetime, loaded: Credential | None = None) -> None:
        self._now = now
        self._name = _subject(f"Triskele {federation} authority", federation)
        if loaded is None:
            self._key = ec.generate_private_key(ec.SECP256R1())
            self._certificate = self._own_certificate()
        else:
            self._key, self._certificate = _loaded(loaded)
            if self._certificate.subject != self._name:
                raise ConfigurationError(f"ca.crt is not the authority of the federation {federation!r}")

    def _own_certificate(self) -> x509.Certificate:
        builder = (
            self._builder(self._name, self._key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, SHA256())

    def __repr__(self) -> str:
        return "Authority(...)"

    @property
    def credential(self) -> Credential:
        """The authority's own certificate and key."""
        return _credential(self._certificate, self._key)

    def tls(self, identity: Identity) -> Credential:
        """A P-256 certificate to connect with and, for a party or the coordinator, to serve with."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        if identity.role in ("party", "coordinator"):
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names.append(x509.DNSName(identity.host))
        builder = self._leaf(identity, key, names).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return _credential(builder.sign(self._key, SHA256()), key)

    def signing(self, identity: Identity) -> Credential:
        """An Ed25519 certificate to sign manifests with; of no use for TLS."""
        key = ed25519.Ed25519PrivateKey.generate()
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        builder = self._leaf(identity, key, [x509.UniformResourceIdentifier(identity.uri)])
        return _credential(builder.add_extension(usage, critical=False).sign(self._key, SHA256()), key)

    def sealing(self, identity: Identity) -> Credential:
        """An X25519 certificate to seal uploads to a party with; of no use for TLS or for signing."""
        key = x25519.X25519PrivateKey.generate()
        builder = self._leaf(identity, key, [x509.UniformResourceIdentifier(identity.uri)], key_agreement=True)
        return _credential(builder.sign(self._key, SHA256()), key)

    def _leaf(
        self, identity: Identity, key: PrivateKey, names: list[x509.GeneralName], *, key_agreement: bool = False
    ) -> x509.CertificateBuilder:
        own = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        return (
            self._builder(_subject(f"{identity.role} {identity.name}"[:64], identity.federation), key, LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False, key_agreement=key_agreement), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        )

    def _builder(self, subject: x509.Name, key: PrivateKey, days: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _BACKDATED)
            .not_valid_after(self._now + datetime.timedelta(days=days))
        )


def certifying_key() -> Credential:
    """A party's key to sign certificates of rounds with: its public key, in no X.509 certificate, and its private one.

    Whoever checks a certificate has these public keys at hand, so they outlast the authority's certificates.
    """
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Credential(public, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _loaded(credential: Credential) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Raises ConfigurationError unless these PEM texts are an authority's certificate and key."""
    try:
        certificate = x509.load_pem_x509_certificate(credential.certificate)
        key = load_pem_private_key(credential.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # from None: the text could quote what is in the key file
        raise ConfigurationError("ca.crt and ca.key are no certificate and private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError("ca.key does not belong to ca.crt")
    return key, certificate


def _subject(name: str, federation: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _key_usage(*, signs_certificates: bool, key_agreement: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not (signs_certificates or key_agreement),
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=key_agreement,
        encipher_only=False,
        decipher_only=False,
    )


def _credential(certificate: x509.Certificate, key: PrivateKey) -> Credential:
    return Credential(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
