"""A publisher with a repository of a model, a device that trusts it, and what an attacker with keys can do to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from triskele.errors import ModelRefused
from triskele.model_releases import ModelRepository, PulledModel, RoleKeys, TrustFolder, pull_model

from .rounds import Parties, certificate


@dataclass
class Publisher:
    """Everything is in a folder of its own. Rounds 1 to 7 are in the log; round 3 failed."""

    folder: Path
    clock: list[timedelta] = field(default_factory=lambda: [timedelta()])

    def __post_init__(self) -> None:
        self.parties = Parties(self.folder / "parties")
        self.keys = RoleKeys.completed(self.folder / "keys")
        self.repository = ModelRepository(self.place, clock=lambda: datetime.now(UTC) + self.clock[0])
        self.repository.create(self.keys, self.parties.folder)
        rounds = [certificate(n, state="FAILED" if n == 3 else "RELEASED") for n in range(1, 8)]
        self.rounds = dict(enumerate(self.parties.log(self.folder / "log", rounds), start=1))

    @property
    def place(self) -> Path:
        return self.folder / "repository"

    @property
    def metadata(self) -> Path:
        return self.place / "metadata"

    def model(self, version: int) -> Path:
        path = self.folder / f"model-{version}.npz"
        if not path.exists():
            np.savez(path, w=np.full(10, float(version)))
        return path

    def publish(self, version: int, *numbers: int) -> None:
        self.repository.publish(self.model(version), version, [self.rounds[n] for n in numbers], self.keys)

    def stored(self, path: str) -> Path:
        """The file of a target."""
        folder, _, name = path.rpartition("/")
        (found,) = (self.place / "targets" / folder).glob(f"*.{name}")
        return found

    def copy(self) -> Path:
        """The repository as it is now, for an attacker to serve later."""
        kept = self.folder / f"kept-{len(list(self.folder.glob('kept-*')))}"
        shutil.copytree(self.place, kept)
        return kept

    def edit(self, role: str, change: Callable[[Any], object]) -> None:
        """What somebody with the keys of `role` and below could do: a new version of the newest metadata."""
        loaded = {"timestamp": Metadata.from_file(str(self.metadata / "timestamp.json"))}
        number = loaded["timestamp"].signed.snapshot_meta.version
        loaded["snapshot"] = Metadata.from_file(str(self.metadata / f"{number}.snapshot.json"))
        number = loaded["snapshot"].signed.meta["targets.json"].version
        loaded["targets"] = Metadata.from_file(str(self.metadata / f"{number}.targets.json"))
        change(loaded[role].signed)
        roles = ("targets", "snapshot", "timestamp")
        below: MetaFile | None = None
        for name in roles[roles.index(role) :]:
            signed = loaded[name].signed
            if below is not None and name == "snapshot":
                signed.meta["targets.json"] = below
            elif below is not None:
                signed.snapshot_meta = below
            signed.version += 1
            loaded[name].sign(next(iter(self.keys.signers[name].values())))
            content = loaded[name].to_bytes()
            file = "timestamp.json" if name == "timestamp" else f"{signed.version}.{name}.json"
            (self.metadata / file).write_bytes(content)
            below = MetaFile.from_data(signed.version, content, ["sha256"])

    def replace_evidence(self, version: int, number: int, folder: Path) -> None:
        """Another certificate and proof in the place of a round's, signed by the publisher's own keys."""

        def replaced(targets: Any) -> None:
            for kind in ("certificate", "proof"):
                path = f"versions/{version}/round-{number}.{kind}.json"
                content = (folder / f"{kind}.json").read_bytes()
                targets.targets[path] = target = TargetFile.from_data(path, content, ["sha256"])
                (self.place / "targets" / target.get_prefixed_paths()[0]).write_bytes(content)

        self.edit("targets", replaced)


@dataclass
class Device:
    """A device that was given the repository's trust folder once."""

    folder: Path

    @property
    def trust(self) -> TrustFolder:
        return TrustFolder.from_folder(self.folder / "trust")

    @property
    def output(self) -> Path:
        return self.folder / "model.npz"

    def pull(self, place: Path | str, version: int | None = None, **options: Any) -> PulledModel:
        return pull_model(str(place), self.trust, self.output, version=version, **options)


@contextmanager
def refused(reason: str, *words: str) -> Iterator[None]:
    """That what is inside raises ModelRefused for this reason, and says so in words."""
    with pytest.raises(ModelRefused) as caught:
        yield
    assert caught.value.reason == reason, str(caught.value)
    for word in words:
        assert word in str(caught.value)
