"""Certificates of made-up rounds, signed with keys of made-up parties."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from triskele.task import TaskSpec
from triskele.transparency.certificate import (
    Account,
    Blame,
    Certificate,
    Computation,
    LeftOut,
    Output,
    SealedEntry,
    assemble,
    inputs_root,
    sign,
)
from triskele.transparency.party_keys import PartyKeys, key_id

FEDERATION = "demo"
SIGNERS = tuple(Ed25519PrivateKey.from_private_bytes(bytes([party]) * 32) for party in range(1, 4))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
TASK = TaskSpec(name="faces", dimension=8, clip_norm=1.5, rule="multi-krum", rule_options={"num_malicious_nodes": 1})


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def party_keys(signatures: int = 3) -> PartyKeys:
    one, two, three = ((signer.public_key(),) for signer in SIGNERS)
    return PartyKeys((one, two, three), signatures)


def entries(count: int = 5) -> tuple[SealedEntry, ...]:
    return tuple(SealedEntry(slot=i, participant=f"p{i}", manifest=digest(f"manifest {i}")) for i in range(count))


def computation(**changes: Any) -> Computation:
    submissions = changes.pop("submissions", entries())
    values = {
        "attempt": 1,
        "versions": ("0.1.0", "0.1.0", "0.1.0"),
        "rules": digest("rules"),
        "coin": digest("coin"),
        "inputs": inputs_root(submissions),
        "submissions": submissions,
        "previous": None,
        "refused": (LeftOut(slot=4, participant="p4", reason="failed_validity_check"),),
        "accepted": (0, 1, 2),
        "weights": (1, 1, 1),
        "openings": ("valid[5]", "accepted[4]", "masked_aggregate[8]"),
        "output": Output(
            digest=digest("words"),
            weight_total=3,
            coefficient_bits=0,
            mask_keys=(digest("key 0"), digest("key 1"), digest("key 2")),
        ),
        "privacy": None,
        "next_clip_bound": None,
    }
    return Computation(**(values | changes))


def released(task: TaskSpec = TASK, number: int = 1, **changes: Any) -> Certificate:
    left_out = (LeftOut(slot=5, participant="p5", reason="incomplete_upload"),)
    return Certificate(
        Account(
            federation=FEDERATION,
            task=task.content(),
            round=number,
            state="RELEASED",
            left_out=left_out,
            blame=None,
            computation=computation(**changes),
        )
    )


def failed(task: TaskSpec = TASK, number: int = 1) -> Certificate:
    return Certificate(
        Account(
            federation=FEDERATION,
            task=task.content(),
            round=number,
            state="FAILED",
            left_out=(),
            blame=Blame(reason="party_fault", who="party:1", detail="revealed another coin"),
            computation=None,
        )
    )


def enveloped(statement: bytes, signers=SIGNERS) -> bytes:
    return assemble(statement, {key_id(signer.public_key()): sign(statement, signer) for signer in signers})
