"""Is a member's certificate what its configuration needs, today and in a month?"""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from triskele.identity import Identity
from triskele_server.operations.findings import Finding, fault, ok, warning
from triskele_server.rpc.tls import TlsFiles

RENEW_DAYS: Final = 30  # a certificate that ends sooner is told about
_ROTATE: Final = "renew it where ca.key is kept: triskele provision rotate"


def check_pair(check: str, files: TlsFiles, identity: Identity, now: datetime.datetime) -> Iterator[Finding]:
    """Findings on a certificate and its key; one `ok` if there is nothing to say."""
    certificate, key, authority = files.certificate, files.key, files.authority
    try:
        own = x509.load_pem_x509_certificate(certificate.read_bytes())
        issuer = x509.load_pem_x509_certificates(authority.read_bytes())
        public = load_pem_private_key(key.read_bytes(), None).public_key()
    except OSError as error:
        yield fault(check, f"{error.filename}: cannot be read ({error.strerror})", "name the file in the configuration")
        return
    except (ValueError, TypeError, UnsupportedAlgorithm):
        yield fault(
            check,
            f"{certificate}, {key} or {authority} is not PEM, or the key has a password",
            "put the files there that `triskele provision` wrote",
        )
        return
    found = [*_problems(check, own, issuer, identity, now)]
    if public != own.public_key():
        found.append(fault(check, f"{key} is not the key of {certificate}", "take both files from the same issue"))
    if key.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        found.append(warning(check, f"{key} can be read by others", f"chmod 600 {key}"))
    yield from found
    if not found:
        yield ok(check, f"{identity.uri} until {own.not_valid_after_utc:%Y-%m-%d}")


def _problems(
    check: str, own: x509.Certificate, issuer: list[x509.Certificate], identity: Identity, now: datetime.datetime
) -> Iterator[Finding]:
    uris = _uris(own)
    if uris != [identity.uri]:
        speaks = ", ".join(uris) or "nobody"
        yield fault(
            check,
            f"the certificate speaks for {speaks}, the configuration for {identity.uri}",
            "put this member's own files there, or correct its name",
        )
    if not any(_issued_by(own, one) for one in issuer):
        yield fault(check, "the certificate is not of the authority in ca.crt", "take ca.crt and certificate together")
    days = (own.not_valid_after_utc - now).total_seconds() / 86400
    if now < own.not_valid_before_utc:
        yield fault(
            check,
            f"the certificate is valid only from {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            "set this machine's clock, or wait",
        )
    elif days < 0:
        yield fault(check, f"the certificate expired on {own.not_valid_after_utc:%Y-%m-%d}", _ROTATE)
    elif days < RENEW_DAYS:
        yield warning(check, f"the certificate expires in {days:.0f} days", _ROTATE)


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
