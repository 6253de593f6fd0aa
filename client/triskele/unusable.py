"""What the `cryptography` package raises over bytes that a stranger made up, or that a disk damaged (tests/fuzz)."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm

UNUSABLE_KEY: Final = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)

UNUSABLE_CERTIFICATE: Final = (
    *UNUSABLE_KEY,
    InvalidSignature,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
