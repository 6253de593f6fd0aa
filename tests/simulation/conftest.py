"""One set of certificates for all lists of operations; torch computes in one thread."""

from __future__ import annotations

import pytest
import torch

from triskele_server.provision import PortPlan, Provisioned, provision

from .operations import MEMBERS

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    """A federation's folder; each list of operations has data folders of its own."""
    return provision(
        tmp_path_factory.mktemp("simulation") / "federation", participants=MEMBERS, ports=PortPlan.from_base(7000)
    )
