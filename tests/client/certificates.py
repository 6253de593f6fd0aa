"""Certificates of a federation for tests, as `triskele provision` makes them."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from triskele.identity import Identity

from .transparency.rounds import SIGNERS

FROM = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
UNTIL = datetime.datetime(2125, 1, 1, tzinfo=datetime.UTC)


def key_pem(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def cert_pem(certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


class Authority:
    """A certificate authority of one federation."""

    def __init__(self, federation: str = "demo") -> None:
        self.federation = federation
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} authority")])
        self.certificate = (
            self._builder(self.name, self.key.public_key(), FROM, UNTIL)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, SHA256())
        )

    def identity(self, role, name) -> Identity:
        return Identity(self.federation, role, name)

    def issue(self, identity: Identity, public_key, *, valid_from=FROM, valid_until=UNTIL) -> x509.Certificate:
        names = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.host)]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.host)])
        return (
            self._builder(subject, public_key, valid_from, valid_until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, SHA256())
        )

    def tls(self, identity: Identity) -> tuple[bytes, bytes]:
        """PEM certificate and PEM key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cert_pem(self.issue(identity, key.public_key())), key_pem(key)

    def signing(self, identity: Identity) -> tuple[x509.Certificate, Ed25519PrivateKey]:
        key = Ed25519PrivateKey.generate()
        return self.issue(identity, key.public_key()), key

    def _builder(self, subject, public_key, valid_from, valid_until) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(valid_from)
            .not_valid_after(valid_until)
        )


def write_participant(directory: Path, authority: Authority, name: str, coordinator: str) -> Path:
    """The folder of one participant; returns the path of its participant.toml."""
    directory.mkdir()
    identity = authority.identity("participant", name)
    certificate, key = authority.tls(identity)
    signing, signing_key = authority.signing(identity)
    for file, content in {
        "ca.crt": cert_pem(authority.certificate),
        "tls.crt": certificate,
        "tls.key": key,
        "signing.crt": cert_pem(signing),
        "signing.key": key_pem(signing_key),
        **{f"party-{i}.pub": public_pem(signer) for i, signer in enumerate(SIGNERS)},
    }.items():
        (directory / file).write_bytes(content)
    config = directory / "participant.toml"
    config.write_text(
        f'federation = "{authority.federation}"\nparticipant = "{name}"\ncoordinator = "{coordinator}"\n'
        '[tls]\nauthority = "ca.crt"\ncertificate = "tls.crt"\nkey = "tls.key"\n'
        '[signing]\ncertificate = "signing.crt"\nkey = "signing.key"\n'
        '[trust]\nparties = ["party-0.pub", "party-1.pub", "party-2.pub"]\n',
        encoding="utf-8",
    )
    return config
