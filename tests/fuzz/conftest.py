"""One provisioned federation for all fuzzing of decoders and services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from triskele_server.local_federation import LocalFederation

from .federation import running_federation
from .material import Material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material.write(tmp_path_factory.mktemp("fuzz") / "federation")


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    with running_federation(tmp_path_factory.mktemp("ports") / "federation", "canary", "hostile") as running:
        yield running
