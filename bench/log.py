"""What the log costs a round: `python -m bench.log [--entries 10,1000,10000] [--bytes 10000]`.

Appends, proves, has three parties cosign (their consistency checks, signatures and synced files, no network) and proves
inclusion, in SQLite in a temporary folder; medians of 50 rounds at each size. Times are of this machine and its disk.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from triskele.ids import PARTIES, RoundNumber, TaskDigest
from triskele.transparency.checkpoint import Cosignature, check_cosignature
from triskele.transparency.merkle import check_inclusion, leaf_hash
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.store import Store
from triskele_server.party.cosigner import Cosigner

_TASK = TaskDigest(bytes(32))
_TIMES = 50
T = TypeVar("T")


def main() -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", default="10,1000,10000")
    parser.add_argument("--bytes", type=int, default=10_000, help="of an envelope")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load {load}; medians of {_TIMES} rounds, milliseconds; envelopes of {given.bytes} bytes")
    print(f"{'entries':>8} {'append':>8} {'cosign x3':>10} {'prove':>8} {'check':>8} {'proof bytes':>12} {'start':>8}")
    for size in map(int, given.entries.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            _measure(Path(folder), size, given.bytes)


def _measure(folder: Path, size: int, envelope_bytes: int) -> None:
    url = f"sqlite:///{folder / 'coordinator.db'}"
    with closing(Store(url)) as store:
        log = Log(store, "demo")
        for number in range(1, size + 1):
            log.append(_round(number), _envelope(number, envelope_bytes))
        keys = [Ed25519PrivateKey.generate() for _ in PARTIES]
        parties = []
        for party in PARTIES:
            (folder / str(party)).mkdir()
            parties.append(Cosigner(folder / str(party), "demo", keys[party]))
        _cosign(log, parties, keys, 0)
        spent: dict[str, list[float]] = {"append": [], "cosign": [], "prove": [], "check": []}
        hashes = 0
        for number in range(size + 1, size + 1 + _TIMES):
            envelope = _envelope(number, envelope_bytes)
            _timed(spent["append"], partial(log.append, _round(number), envelope))
            _timed(spent["cosign"], partial(_cosign, log, parties, keys, number - 1))
            index = (number * 7919) % size
            proof = _timed(spent["prove"], partial(log.proof, index))
            hashes = len(proof.hashes)
            leaf, head = leaf_hash(_statement(index + 1, envelope_bytes)), log.head()
            _timed(spent["check"], partial(check_inclusion, leaf, index, head.size, proof.hashes, head.root))
        start: list[float] = []
        _timed(start, partial(Log, store, "demo"))
    append, cosign, prove, check = (statistics.median(values) for values in spent.values())
    print(f"{size:>8} {append:>8.2f} {cosign:>10.2f} {prove:>8.2f} {check:>8.3f} {hashes * 32:>12} {start[0]:>8.1f}")


def _cosign(log: Log, parties: list[Cosigner], keys: list[Ed25519PrivateKey], before: int) -> None:
    head, lines = log.head(), []
    for party in PARTIES:
        answer = parties[party].cosign(head.body(), before, log.growth(before, head.size) if before else [])
        if not isinstance(answer, Cosignature):
            raise SystemExit("a party wanted another proof")
        lines.append(check_cosignature(head, answer, "demo", party, [keys[party].public_key()]))
    log.cosigned(head, lines)


def _timed(spent: list[float], action: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = action()
    spent.append((time.perf_counter() - started) * 1000)
    return result


def _round(number: int) -> RoundId:
    return RoundId(_TASK, RoundNumber(number))


def _statement(number: int, envelope_bytes: int) -> bytes:
    return f"{number:08}".encode() * (envelope_bytes * 3 // 32)


def _envelope(number: int, envelope_bytes: int) -> bytes:
    payload = base64.b64encode(_statement(number, envelope_bytes)).decode()
    signatures = [{"keyid": "0" * 64, "sig": "0" * 88}] * 3
    return json.dumps(
        {"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": signatures}
    ).encode()


if __name__ == "__main__":
    main()
