"""What release and signing add to a round: `python -m bench.release --help`.

Processor seconds of the same simulated round with a public and with a masked release, and of everything that a
certificate costs: the statement and its signature at three parties, what one participant checks, and the mask that it
takes off. Medians over the runs, which alternate.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import statistics
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.filter import updates_of
from triskele.ids import PARTIES, RoundNumber, ShareIndex
from triskele.release_mask import MaskKey, remove_masks
from triskele.task import TaskSpec
from triskele.transparency.certificate import (
    Account,
    Certificate,
    Computation,
    Output,
    SealedEntry,
    assemble,
    inputs_root,
    mask_key_digest,
    sign,
)
from triskele.transparency.party_keys import PartyKeys, key_id
from triskele_server.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--rule", default="norm-clip")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    updates = updates_of(np.random.default_rng(0), given.participants, given.dimension)
    rounds: dict[str, list[float]] = {"public": [], "participants": []}
    simulate(updates, rule=given.rule, release="public")  # kernels are compiled
    for _ in range(given.runs):
        for release, spent in rounds.items():
            before = time.process_time()
            made = simulate(updates, rule=given.rule, release=release)  # type: ignore[arg-type]  # one of the two
            spent.append(time.process_time() - before - made.seconds["encode"])
    public, masked = (statistics.median(spent) for spent in rounds.values())
    signing, checking = certificate_seconds(given.participants)
    unmasking = unmasking_seconds(given.dimension)
    print(f"{given.participants} x {given.dimension}, {given.rule}: processor seconds")
    print(f"  the round at three parties, public release   {public:8.3f}")
    print(f"  the same under a mask                        {masked:8.3f}  {100 * (masked / public - 1):+.1f} %")
    print(f"  statement and signature, three parties       {3 * signing:8.4f}  {300 * signing / public:.2f} %")
    print(f"  a participant checks the certificate         {checking:8.4f}")
    print(f"  a participant takes the mask off             {unmasking:8.4f}")


def certificate_seconds(participants: int) -> tuple[float, float]:
    """Of one party to write the statement down and sign it; of a participant to check the envelope."""
    task = TaskSpec("bench", 1000, 1.0, max_participants=max(2, participants))
    signers = [Ed25519PrivateKey.generate() for _ in PARTIES]
    public = [(signer.public_key(),) for signer in signers]
    keys = PartyKeys((public[0], public[1], public[2]))

    def statement() -> bytes:
        entries = tuple(
            SealedEntry(slot=i, participant=f"p{i}", manifest=hashlib.sha256(bytes([i % 256])).hexdigest())
            for i in range(participants)
        )
        masks = [mask_key_digest(MaskKey(bytes(32)), task.digest, RoundNumber(1), ShareIndex(i)) for i in PARTIES]
        return Certificate(
            Account(
                federation="bench",
                task=task.content(),
                round=1,
                state="RELEASED",
                left_out=(),
                blame=None,
                computation=Computation(
                    attempt=1,
                    versions=("0", "0", "0"),
                    rules="00" * 32,
                    coin="00" * 32,
                    inputs=inputs_root(entries),
                    submissions=entries,
                    previous=None,
                    refused=(),
                    accepted=tuple(range(participants)),
                    weights=None,
                    openings=("valid[1]", "masked_aggregate[1]"),
                    output=Output(
                        digest="00" * 32,
                        weight_total=1,
                        coefficient_bits=0,
                        mask_keys=(masks[0], masks[1], masks[2]),
                    ),
                    privacy=None,
                    next_clip_bound=None,
                ),
            )
        ).statement

    made = statement()
    envelope = assemble(made, {key_id(s.public_key()): sign(made, s) for s in signers})
    return (
        _seconds(lambda: sign(statement(), signers[0])),
        _seconds(lambda: Certificate.verified(envelope, keys)),
    )


def unmasking_seconds(dimension: int) -> float:
    """Of a participant to take three streams off the released words."""
    words = np.zeros(dimension, np.int64)
    keys = {ShareIndex(i): MaskKey(secrets.token_bytes(32)) for i in PARTIES}
    task = TaskSpec("bench", 1000, 1.0).digest
    return _seconds(lambda: remove_masks(words, keys, task, RoundNumber(1)), 5)


def _seconds(action: Callable[[], object], times: int = 20) -> float:
    spent = []
    for _ in range(times):
        before = time.process_time()
        action()
        spent.append(time.process_time() - before)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
