"""What each operation of the engine costs: `python -m bench.operations`.

Prints, for parties 0, 1 and 2, the steps that waited for a peer (party 2 counts every value dealt to it) and the
bytes sent per element of 100.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from triskele.ids import PARTIES
from triskele_server.mpc import arithmetic
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session
from triskele_server.mpc.transport import thread_transports

ELEMENTS = 100
OPERATIONS: dict[str, Callable[[ReplicatedTensor], object]] = {
    "multiply": lambda x: arithmetic.multiply(x.session, x.shares, x.shares),
    "comparison, as a word": lambda x: x.lt(0),
    "truncation": lambda x: arithmetic.truncate(x.session, x.shares, 20),
    "exact floor": lambda x: x.rescale(20),
    "ranking": lambda x: x.rank(),
    "1/sqrt": lambda x: x.inv_sqrt(),
    "sqrt": lambda x: x.sqrt(),
    "1/x": lambda x: x.reciprocal(),
}


def measured(operation: Callable[[ReplicatedTensor], object]) -> list[tuple[int, float]]:
    """Rounds and bytes sent per element, by party."""
    transports = thread_transports()
    costs: dict[int, tuple[int, float]] = {}

    def run(party: int) -> None:
        session = Session(transports[party], OpeningLedger([]), b"bench")
        values = arithmetic.constant(session, torch.arange(1, ELEMENTS + 1))
        traffic = session.transport.traffic
        rounds, sent = traffic.rounds, traffic.bytes_sent
        operation(ReplicatedTensor(values, session, 40))
        costs[party] = traffic.rounds - rounds, (traffic.bytes_sent - sent) / ELEMENTS

    threads = [threading.Thread(target=run, args=(party,)) for party in PARTIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [costs[party] for party in PARTIES]


if __name__ == "__main__":
    for name, operation in OPERATIONS.items():
        print(f"{name:22}", *(f"{rounds:3} rounds {sent:7.1f} B" for rounds, sent in measured(operation)), sep="  ")
