"""How a device gets its model: nothing is used before everything about it has been checked."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from triskele.errors import ConfigurationError, ModelRefused, NotFound
from triskele.model_releases.certified_round import certified_round
from triskele.model_releases.download import (
    DEFAULT_DOWNLOAD_LIMITS,
    METADATA,
    TARGETS,
    DownloadLimits,
    LastSeen,
    source,
)
from triskele.model_releases.refusals import typed_refusals
from triskele.model_releases.releases import EVIDENCE, Release, ReleaseChain, check_certified
from triskele.model_releases.trust_folder import TrustFolder

_PIECE = 1 << 20


@dataclass(frozen=True)
class VerifiedModel:
    """A model that passed every check. newest: the newest version there is. valid_until: until when its publisher
    vouches for that; then a pull must have seen something newer.
    """

    release: Release
    newest: int
    rounds: int  # certificates checked, of all versions up to the newest
    valid_until: datetime

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return {
            **self.release.to_json(),
            "newest": self.newest,
            "certificates": self.rounds,
            "valid_until": self.valid_until.isoformat(),
        }


@dataclass(frozen=True)
class PulledModel(VerifiedModel):
    """A model that was fetched. fetched: False if the output file had its bytes already."""

    output: Path
    fetched: bool

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return {**super().to_json(), "output": str(self.output), "fetched": self.fetched}


def pull_model(
    place: str,
    trust: TrustFolder,
    output: Path,
    *,
    version: int | None = None,
    authority: Path | None = None,
    limits: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS,
) -> PulledModel:
    """Fetch a version, by default the newest, check it and all that it builds on, and write it to `output`.

    place: https://… or a folder. authority: PEM certificates to trust for https instead of the system's. The file is
    written whole or not at all. Raises ModelRefused saying which check failed, NotFound for a version or a repository
    that is not there, Unavailable or TimedOut if the source cannot be read now, ConfigurationError. One at a time for
    each state of a device.
    """
    reader = _Reader(trust, source(place, authority=authority, limits=limits), place, limits)
    chain = reader.checked_chain()
    if not chain.releases or (version is not None and not 0 <= version < len(chain.releases)):
        there = f"0 to {len(chain.releases) - 1}" if chain.releases else "none"
        raise NotFound(f"{place}: no version {'' if version is None else version}; there are {there}")
    release = chain.releases[-1 if version is None else version]
    return PulledModel(**vars(reader.report(release, chain)), output=output, fetched=reader.fetch(release, output))


def verify_model(
    file: Path,
    trust: TrustFolder,
    place: str | None = None,
    *,
    authority: Path | None = None,
    limits: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS,
) -> VerifiedModel:
    """Check that a file is a released model, with all that it builds on; says which version.

    Without `place` nothing is fetched: the file is checked against what the last pull of this device saw, as long as
    the publisher vouches for that. Raises as `pull_model` does; ModelRefused "unknown_model" for a file that is none.
    """
    fetcher = LastSeen(trust.metadata) if place is None else source(place, authority=authority, limits=limits)
    reader = _Reader(trust, fetcher, place or str(trust.state), limits)
    digest = _sha256(file)
    chain = reader.checked_chain()
    release = next((r for r in reversed(chain.releases) if r.sha256 == digest), None)
    if release is None:
        raise ModelRefused(
            "unknown_model",
            f"{file}: is none of the {len(chain.releases)} versions released by {reader.name}: changed, or newer than "
            "what this device knows. Pull the model again",
        )
    return reader.report(release, chain)


class _Reader:
    """One look at a repository."""

    def __init__(self, trust: TrustFolder, fetcher: FetcherInterface, name: str, limits: DownloadLimits) -> None:
        trust.prepare()
        self.name = name
        self._trust = trust
        self._limits = limits
        self._targets: dict[str, TargetFile] = {}
        with typed_refusals(f"{name}, as root.json of this device has it"):
            self._updater = Updater(
                str(trust.metadata),
                METADATA,
                target_base_url=TARGETS,
                fetcher=fetcher,
                config=UpdaterConfig(max_delegations=0),
                bootstrap=trust.root,
            )

    def checked_chain(self) -> ReleaseChain:
        """All versions, after every check but that of the model's own bytes."""
        # (1) The newest metadata: signed, not older than what was seen before, not expired, all of one state.
        with typed_refusals(self.name):
            self._updater.refresh()
            # what the updater has verified it leaves here; it has no other way to list it
            self._targets = Metadata[Targets].from_file(str(self._trust.metadata / "targets.json")).signed.targets
        # (2) Versions that follow from each other, back to 0, and (3) from those accepted before.
        chain = ReleaseChain.from_targets(self._targets)
        chain.check_continues(self._trust.accepted())
        # (4) Every round that they came from was released, signed by the parties and put into their log.
        for release in chain.releases:
            self._check_rounds(release)
        with typed_refusals(self.name):
            self._trust.remember(chain)
        return chain

    def fetch(self, release: Release, output: Path) -> bool:
        """Write the file of a release to `output`, unless it is there."""
        if output.suffix.lower() != release.suffix:
            raise ConfigurationError(f"{output}: version {release.version} is a {release.suffix} file; name it so")
        if not output.parent.is_dir():
            raise ConfigurationError(f"{output}: the folder {output.parent} does not exist")
        target = self._targets[release.path]
        unfinished = output.with_name(f".{output.name}.part")
        with typed_refusals(f"{self.name}, version {release.version}"):
            if self._updater.find_cached_target(target, str(output)):
                return False
            self._check_length(target, self._limits.model_bytes)
            try:
                self._updater.download_target(target, str(unfinished))
                os.replace(unfinished, output)
            finally:
                unfinished.unlink(missing_ok=True)
        return True

    def report(self, release: Release, chain: ReleaseChain) -> VerifiedModel:
        with typed_refusals(self.name):
            seen = Metadata[Timestamp].from_file(str(self._trust.metadata / "timestamp.json")).signed.expires
        rounds = sum(len(r.rounds) for r in chain.releases)
        return VerifiedModel(release, len(chain.releases) - 1, rounds, seen)

    def _check_rounds(self, release: Release) -> None:
        for named in release.rounds:
            certificate, proof = (
                self._evidence(self._targets[release.evidence_path(named.number, kind)]) for kind in EVIDENCE
            )
            where = f"{self.name}, version {release.version}, round {named.number}"
            check_certified(release, named, certified_round(certificate, proof, self._trust.parties, where))

    def _evidence(self, target: TargetFile) -> Path:
        self._check_length(target, self._limits.evidence_bytes)
        with typed_refusals(f"{self.name}, {target.path}"):
            kept = self._trust.evidence / f"{target.hashes['sha256']}.json"
            if not self._updater.find_cached_target(target, str(kept)):
                self._updater.download_target(target, str(kept))
        return kept

    def _check_length(self, target: TargetFile, most: int) -> None:
        if target.length > most:
            raise ModelRefused(
                "too_large", f"{self.name}, {target.path}: has {target.length} bytes, more than the limit of {most}"
            )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()
