"""Every metric of the servers, one module per process that has it; docs/metrics.md lists them all.

    rpc          calls served and made; both processes, and a party's worker
    member       what a process says of itself: version, clock, certificates, disk
    coordinator  rounds, cohorts, decisions, as the coordinator sees them
    party        rounds, uploads, storage at one party
    mpc          the steps of the computation; counted in a party's worker
    exposition   what a scrape shows: this process and its worker as one

A process exposes what it imports. Labels are bounded: method, code, reason, state, step, party; a task's name only
where the operator's own task files bound it; never a participant, a task digest or a round. No metric holds a value
that the round's opening ledger does not list, nor a share, a key or an address. Every value of a label that is known
beforehand is there from the start, at zero: `increase` of a series that begins with its first event would miss it.
"""

from __future__ import annotations

from prometheus_client import disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # shipped without types; a second series per counter that nobody asks for
