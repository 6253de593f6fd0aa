"""Which ring a task's updates are shared in: what its file asks for, or Z_{2^32} wherever everything provably fits."""

from __future__ import annotations

from dataclasses import replace

from triskele.errors import InvalidTask
from triskele.ring import NARROW, WIDE
from triskele.task import FRACTION_BITS, TaskSpec
from triskele_server.rules.noise import check_noise
from triskele_server.rules.pipeline import Pipeline
from triskele_server.rules.precision import best_fraction_bits


def with_ring(spec: TaskSpec, ring: object) -> TaskSpec:
    """The task in the ring that its file asks for: 32, 64, or "auto", which is 32 where everything fits.

    Raises InvalidTask where 32 was asked for and does not fit.
    """
    if isinstance(ring, bool) or ring not in ("auto", NARROW.bits, WIDE.bits):
        raise InvalidTask(f"ring {ring!r} is none of 'auto', 32, 64")
    if ring == WIDE.bits:
        return replace(spec, ring_bits=WIDE.bits, fraction_bits=FRACTION_BITS)
    try:
        return narrowed(spec)
    except InvalidTask:
        if ring == NARROW.bits:
            raise
        return replace(spec, ring_bits=WIDE.bits, fraction_bits=FRACTION_BITS)


def narrowed(spec: TaskSpec) -> TaskSpec:
    """The task in the 32-bit ring with the most suitable fraction bits; raises InvalidTask saying why none fit."""
    task = replace(spec, ring_bits=NARROW.bits, fraction_bits=best_fraction_bits(spec, Pipeline.of(spec)))
    check_noise(task)
    return task


def reason_for_wide(spec: TaskSpec) -> str | None:
    """Why a task is in the 64-bit ring; None if it is in the 32-bit one."""
    if spec.narrow:
        return None
    try:
        narrowed(spec)
    except InvalidTask as error:
        return str(error)
    return "the task asks for the 64-bit ring"
