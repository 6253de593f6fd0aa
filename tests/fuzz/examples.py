"""Valid messages that need no keys: what coordinator and parties answer, and files of a party."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from triskele.ids import PARTIES, PartyIndex
from triskele.task import TaskSpec
from triskele.transparency import checkpoint
from triskele.transparency.certificate import (
    Account,
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
from triskele_proto.v1 import control_pb2, coordinator_pb2, types_pb2
from triskele_server.party.checkpoint import Decision

from .material import SPEC

_LENGTH_BYTES = 2


def frame(piece: bytes) -> bytes:
    """A message of a stream with its length before it."""
    return len(piece).to_bytes(_LENGTH_BYTES, "big") + piece


def framed(data: bytes) -> Iterator[bytes]:
    """Messages of a stream out of any bytes: the last one may be cut short."""
    while data:
        size = int.from_bytes(data[:_LENGTH_BYTES], "big")
        yield data[_LENGTH_BYTES : _LENGTH_BYTES + size]
        data = data[_LENGTH_BYTES + size :]


def rich_task() -> TaskSpec:
    options = {"nnm": {"num_malicious_nodes": 1}, "multi-krum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3}}
    return TaskSpec("rich", 9, 0.5, max_weight=10, rule=("nnm", "multi-krum"), rule_options=options)


def task_view() -> coordinator_pb2.TaskView:
    return coordinator_pb2.TaskView(name=SPEC.name, task=SPEC.canonical(), rounds=3, current_round=2)


def round_view() -> coordinator_pb2.RoundView:
    return coordinator_pb2.RoundView(
        task_digest=SPEC.digest,
        round=1,
        state="FAILED",
        enrolled=3,
        uploaded=2,
        quorum=2,
        deadline=1e9,
        blame=types_pb2.Blame(reason="party_fault", who="party:1", detail="it lied"),
        refused=[types_pb2.RefusedSubmission(slot=1, participant="p01", reason="norm")],
        accepted_slots=[0, 2],
        decisions_public=True,
        participants=["p00", "", "p02"],
        openings=["valid[2]"],
    )


def party_reply() -> control_pb2.RoundStatusReply:
    submission = control_pb2.Submission(slot=0, participant="p00", manifest_digest=bytes(32))
    outcome = control_pb2.RoundOutcome(
        output_digest=bytes(32),
        weight_total=2,
        coefficient_bits=20,
        refused=[types_pb2.RefusedSubmission(slot=1, participant="p01", reason="norm")],
        accepted_slots=[0],
        openings=["valid[2]"],
    )
    return control_pb2.RoundStatusReply(
        state="COMBINED", complete=[submission], outcome=outcome, attempt=1, running=True, setback="lost"
    )


def result() -> list[bytes]:
    words = np.arange(SPEC.dimension, dtype="<i8").tobytes()
    header = coordinator_pb2.ResultHeader(dimension=SPEC.dimension, digest=hashlib.sha256(words).digest())
    half = len(words) // 2
    chunks = [types_pb2.Chunk(offset=0, data=words[:half]), types_pb2.Chunk(offset=half, data=words[half:])]
    messages = [coordinator_pb2.ResultChunk(header=header), *(coordinator_pb2.ResultChunk(chunk=c) for c in chunks)]
    return [message.SerializeToString() for message in messages]


def decision() -> Decision:
    weights = ((123, -4), (5, 6))
    return Decision(1, (0, 1), (0, 1), False, weights, (7, 8), 2, 26, (0,), (("valid", (2,)), ("accepted", (2,))))


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones((2, 3), np.float32), b=np.zeros(4))
    return file.getvalue()


class ThreeKeys:
    """Stands for PartyKeys: a key for each party."""

    signatures = 3

    def of(self, party: PartyIndex) -> tuple[Ed25519PublicKey, ...]:
        return (_signing_key(party).public_key(),)


def _signing_key(party: PartyIndex) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([party]) * 32)


def cosigned_checkpoint() -> tuple[bytes, ThreeKeys]:
    """A note that the three parties have signed, and their keys."""
    found = checkpoint.Checkpoint("demo/rounds", 7, bytes(range(32)))
    signed = [checkpoint.cosign(found, _signing_key(party), 1_700_000_000) for party in PARTIES]
    keys = ThreeKeys()
    lines = [
        checkpoint.check_cosignature(found, given, "demo", party, keys.of(party))
        for party, given in zip(PARTIES, signed, strict=True)
    ]
    return checkpoint.note(found, lines), keys


def certificate() -> tuple[bytes, bytes, PartyKeys]:
    """A round's statement, its envelope, and the keys that signed it."""
    task = TaskSpec("face", 8, 1.0, min_accepted=1)
    entries = (SealedEntry(slot=0, participant="p00", manifest="00" * 32),)
    made = Certificate(
        Account(
            federation="demo",
            task=task.content(),
            round=1,
            state="RELEASED",
            left_out=(LeftOut(slot=1, participant="p01", reason="incomplete_upload"),),
            blame=None,
            computation=Computation(
                attempt=1,
                versions=("1", "1", "1"),
                rules="00" * 32,
                coin="11" * 32,
                inputs=inputs_root(entries),
                submissions=entries,
                previous=None,
                refused=(),
                accepted=(0,),
                weights=None,
                openings=("valid[1]",),
                output=Output(digest="22" * 32, weight_total=1, coefficient_bits=0, mask_keys=("00" * 32,) * 3),
                privacy=None,
                next_clip_bound=None,
            ),
        )
    )
    keys = [_signing_key(party) for party in PARTIES]
    signatures = {key_id(key.public_key()): sign(made.statement, key) for key in keys}
    public = [(key.public_key(),) for key in keys]
    return made.statement, assemble(made.statement, signatures), PartyKeys((public[0], public[1], public[2]))
