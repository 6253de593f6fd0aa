"""Certificates of a federation, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from triskele_server.provision import provision


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A provisioned federation "demo" with participants alice, bob, carol, dave, and an operator."""
    directory = tmp_path_factory.mktemp("federation") / "demo"
    provision(directory, participants=["alice", "bob", "carol", "dave"], operator=True)
    return directory
