"""What a scrape shows: the metrics of this process and of the worker that computes for it, added up.

The worker is a process of its own, without a port. It sends what it has counted up the pipe (`worker_counts`); the
parent keeps the latest of it here. Counts survive a worker that dies; the last second before its end may be lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.samples import Sample

Key = tuple[str, tuple[tuple[str, str], ...]]

_PREFIX: Final = "triskele_"
_ADDITIVE: Final = ("counter", "histogram")  # gauges of a worker would double the parent's


def worker_counts() -> tuple[Metric, ...]:
    """What this process has counted so far, for `Exposition.heard` in the parent; picklable."""
    return tuple(f for f in REGISTRY.collect() if f.type in _ADDITIVE and f.name.startswith(_PREFIX))


class Exposition(CollectorRegistry):
    """The registry that /metrics shows. Thread-safe."""

    def __init__(self, own: CollectorRegistry = REGISTRY) -> None:
        super().__init__()
        self._own = own
        self._guard = threading.Lock()
        self._living: tuple[Metric, ...] = ()
        self._dead: tuple[Metric, ...] = ()

    def heard(self, counts: tuple[Metric, ...]) -> None:
        """The worker has counted so much since it began."""
        with self._guard:
            self._living = counts

    def worker_ended(self) -> None:
        """What the worker counted stays; the next one begins at zero."""
        with self._guard:
            self._dead = tuple(added([*self._dead, *self._living]))
            self._living = ()

    def collect(self) -> Iterable[Metric]:
        """All metrics, each name once."""
        with self._guard:
            theirs = (*self._dead, *self._living)
        return added([*self._own.collect(), *theirs])


def added(families: Iterable[Metric]) -> list[Metric]:
    """Families of one name as one, samples of the same labels added up."""
    merged: dict[str, Metric] = {}
    values: dict[str, dict[Key, Sample]] = {}
    for family in families:
        into = values.setdefault(family.name, {})
        merged.setdefault(family.name, family)
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            known = into.get(key)
            into[key] = sample if known is None else known._replace(value=known.value + sample.value)
    return [_with_samples(family, values[name].values()) for name, family in merged.items()]


def _with_samples(family: Metric, samples: Iterable[Sample]) -> Metric:
    made = Metric(family.name, family.documentation, family.type, family.unit)
    made.samples = list(samples)
    return made


EXPOSED: Final = Exposition()
