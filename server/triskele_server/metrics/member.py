"""What a process says of itself at every scrape: who it is, its clock, its certificates, its disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cryptography import x509
from prometheus_client import REGISTRY, Metric
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from triskele.identity import Identity
from triskele.protocol import PROTOCOL
from triskele.unusable import UNUSABLE_CERTIFICATE
from triskele_server.rpc.tls import TlsFiles


@dataclass(frozen=True)
class MemberCollector(Collector):
    """Read anew at each scrape. What cannot be read is left out: an alert on its absence tells.

    `database` is an SQLite file, None where the state is in a database server. `kept` are folders by the name of the
    metric that tells the bytes of their files.
    """

    identity: Identity
    tls: TlsFiles
    data: Path
    database: Path | None
    kept: tuple[tuple[str, str, Path], ...] = ()

    def collect(self) -> Iterable[Metric]:
        """All metrics of this member."""
        yield _one(
            "triskele_build_info",
            "1; the labels say what runs here",
            1,
            {
                "role": self.identity.role,
                "name": self.identity.name,
                "version": version("triskele"),
                "protocol": str(PROTOCOL),
            },
        )
        yield _one("triskele_clock_timestamp_seconds", "This machine's clock, as Unix seconds", time.time())
        yield self._certificates()
        disk = shutil.disk_usage(self.data)
        yield _one("triskele_disk_free_bytes", "Free bytes of the disk that the data folder is on", disk.free)
        yield _one("triskele_disk_size_bytes", "Size of that disk in bytes", disk.total)
        if self.database is not None:
            held = sum(_size(self.database.with_name(self.database.name + part)) for part in ("", "-wal"))
            yield _one("triskele_database_bytes", "Bytes of the SQLite database and its write-ahead log", held)
        for name, text, folder in self.kept:
            yield _one(name, text, sum(map(_size, folder.rglob("*"))))

    def _certificates(self) -> Metric:
        family = GaugeMetricFamily(
            "triskele_certificate_expiry_timestamp_seconds",
            "Unix seconds at which the certificate ends",
            labels=["certificate"],
        )
        for label, path in (("own", self.tls.certificate), ("authority", self.tls.authority)):
            try:
                certificate = x509.load_pem_x509_certificate(path.read_bytes())
            except (OSError, *UNUSABLE_CERTIFICATE):
                continue
            family.add_metric([label], certificate.not_valid_after_utc.timestamp())
        return family


@contextmanager
def shown(member: MemberCollector) -> Iterator[None]:
    """Part of every scrape of this process until the block ends."""
    REGISTRY.register(member)
    try:
        yield
    finally:
        REGISTRY.unregister(member)


def _one(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = Metric(name, text, "gauge")
    family.add_sample(name, labels or {}, value)
    return family


def _size(path: Path) -> int:
    """Bytes of a file; 0 if it is none, or has just been deleted."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
