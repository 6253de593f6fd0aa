"""One federation for the tests of this folder: real certificates, made once."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from triskele.identity import Identity
from triskele_server.rpc.certificates import Authority, Credential
from triskele_server.rpc.tls import TlsFiles

FEDERATION = "bank.example"


class Members:
    """Issues credentials of one authority and writes them where TlsFiles can point to."""

    def __init__(self, folder: Path, federation: str = FEDERATION) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.authority = Authority(federation, datetime.datetime.now(datetime.UTC))
        (folder / "ca.crt").write_bytes(self.authority.credential.certificate)

    def tls(self, role: str, name: str, federation: str = FEDERATION) -> TlsFiles:
        return self.files(f"{federation}-{role}-{name}", self.authority.tls(Identity(federation, role, name)))

    def files(self, label: str, credential: Credential) -> TlsFiles:
        certificate, key = self._folder / f"{label}.crt", self._folder / f"{label}.key"
        certificate.write_bytes(credential.certificate)
        key.write_bytes(credential.key)
        return TlsFiles(certificate, key, self._folder / "ca.crt")


@pytest.fixture(scope="session")
def members(tmp_path_factory) -> Members:
    return Members(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="session")
def strangers(tmp_path_factory) -> Members:
    """The same names, but another authority."""
    return Members(tmp_path_factory.mktemp("strangers"))
