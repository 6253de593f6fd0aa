"""Any bytes give a value or our typed error, never another exception: every decoder (targets.py)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .material import Material
from .mutations import damaged, flips, truncations
from .targets import Target, check, targets

_MOST = 500  # damaged versions of one example that are tried one by one


@pytest.fixture(scope="session")
def by_name(material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in targets(material, tmp_path_factory.mktemp("scratch"))}


NAMES = (
    *("task", "signed-manifest", "enrolment-wish", "sealed-upload", "sealed-piece", "party-certificate"),
    *("round-view", "task-view", "enrolment", "result-stream", "party-status", "peer-frames", "identity"),
    *("upload-header", "round-key", "party.toml", "coordinator.toml", "task.toml", "participant.toml"),
    *("forwarder.toml", "sealing.key", "denied", "tls.crt", "tls.key", "ca.crt", "tls-certificate.pem"),
    *("signing-certificate.pem", "signing-key.pem", "update.npz", "update.safetensors", "decision", "coin"),
    *("coin-commitments", "checkpoint", "cosigned-checkpoint", "cosigned", "statement", "certificate", "saved-log"),
    *("coin-encrypted", "decision-encrypted", "coin-key", "share-words", "share-encrypted", "previous-aggregate"),
)


def test_every_target_is_run_here(by_name: dict[str, Target]) -> None:
    assert sorted(by_name) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_valid(by_name: dict[str, Target], name: str) -> None:
    assert all(check(by_name[name], example) for example in by_name[name].examples)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_byte_by_byte_it_is_a_value_or_a_typed_error(by_name: dict[str, Target], name: str) -> None:
    target = by_name[name]
    for example in target.examples:
        versions = [*truncations(example), *flips(example)]
        for data in versions[:: max(1, len(versions) // _MOST)]:
            check(target, data)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_a_value_or_a_typed_error(by_name: dict[str, Target], name: str) -> None:
    target = by_name[name]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(damaged(target.examples), st.binary(max_size=300)))
    def run(data: bytes) -> None:
        check(target, data)

    run()
