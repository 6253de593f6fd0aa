"""What a repository says of its models: versions 0, 1, 2, …, each made from the one before. No I/O.

A version is a file with a note: which version it is, the SHA-256 of the version that it was made from, and the rounds
whose aggregates went in, each by its number and by the hash of its entry in the parties' log. The certificate of
each of these rounds and its proof lie beside it. Version 0 is where the training began, so it has no rounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple, NoReturn, Self

from tuf.api.metadata import TargetFile

from triskele.array_files import SUFFIXES
from triskele.errors import ModelRefused

EVIDENCE: Final = ("certificate", "proof")
_PLACE: Final = re.compile(
    r"versions/(?P<version>0|[1-9][0-9]{0,8})/"
    r"(?:model(?P<suffix>\.[a-z]+)|round-(?P<round>[1-9][0-9]{0,18})\.(?P<kind>certificate|proof)\.json)"
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FEDERATION: Final = re.compile(r"[ -~]{1,64}")


class CertifiedRound(NamedTuple):
    """A released round that the parties vouch for: what of its certificate a release refers to."""

    federation: str
    task: str  # the task's digest, hexadecimal
    number: int
    leaf: str  # hash of the certificate's statement as an entry of the log (RFC 9162), hexadecimal


@dataclass(frozen=True)
class Release:
    """One version of a model. Raises ModelRefused if it cannot be one.

    suffix: .npz or .safetensors. sha256, length: of its file. parent: the SHA-256 of the version that it was made from.
    rounds: those whose aggregates went in, in order.
    """

    version: int
    suffix: str
    sha256: str
    length: int
    parent: str | None
    rounds: tuple[CertifiedRound, ...]

    def __post_init__(self) -> None:
        if self.suffix not in SUFFIXES:
            _malformed(f"version {self.version} is a {self.suffix} file; models are {' or '.join(SUFFIXES)}")
        if not _SHA256.fullmatch(self.sha256) or (self.parent is not None and not _SHA256.fullmatch(self.parent)):
            _malformed(f"version {self.version} has a digest that is no SHA-256")
        if (self.version == 0) != (self.parent is None):
            _broken(f"version {self.version} must name the version that it was made from, and version 0 none")
        if (self.version == 0) != (not self.rounds):
            _broken(f"version {self.version} must name the rounds that it came from, and version 0 none")

    @property
    def path(self) -> str:
        """Where its file stands in the repository."""
        return f"versions/{self.version}/model{self.suffix}"

    def evidence_path(self, number: int, kind: str) -> str:
        """Where the "certificate" or the "proof" of one of its rounds stands."""
        return f"versions/{self.version}/round-{number}.{kind}.json"

    def note(self) -> dict[str, Any]:
        """What goes beside the file's digest into the signed metadata."""
        return {
            "version": self.version,
            "parent": self.parent,
            "rounds": [round_._asdict() for round_ in self.rounds],
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, for reports and for what a device remembers."""
        return {"file": self.path, "sha256": self.sha256, "length": self.length, **self.note()}

    @classmethod
    def from_target(cls, target: TargetFile) -> Self:
        """Decode strictly; raises ModelRefused."""
        place = _PLACE.fullmatch(target.path)
        note = target.custom
        if place is None or not isinstance(note, dict) or set(note) != {"version", "parent", "rounds"}:
            _malformed(f"{target.path}: has no note that says which version it is")
        if type(note["version"]) is not int or str(note["version"]) != place["version"]:
            _malformed(f"{target.path}: its note is that of another version")
        if not isinstance(note["parent"], str | None) or not isinstance(note["rounds"], list):
            _malformed(f"{target.path}: its note cannot be read")
        rounds = tuple(_round(target.path, entry) for entry in note["rounds"])
        return cls(
            version=note["version"],
            suffix=place["suffix"] or "",
            sha256=target.hashes["sha256"],
            length=target.length,
            parent=note["parent"],
            rounds=rounds,
        )


@dataclass(frozen=True)
class ReleaseChain:
    """All versions from 0 to the newest. Raises ModelRefused unless they follow from each other."""

    releases: tuple[Release, ...]

    def __post_init__(self) -> None:
        # (1) Versions 0, 1, 2, … without a gap.
        for place, release in enumerate(self.releases):
            if release.version != place:
                _broken(f"version {place} is missing in front of version {release.version}")
        # (2) Each made from the one before.
        for before, release in pairwise(self.releases):
            if release.parent != before.sha256:
                _broken(f"version {release.version} was made from another model than version {before.version}")
        # (3) Of one task of one federation, from rounds that are each later than the one before.
        rounds = [(release.version, round_) for release in self.releases for round_ in release.rounds]
        for (_, earlier), (version, later) in pairwise(rounds):
            if (later.federation, later.task) != (earlier.federation, earlier.task):
                _broken(
                    f"version {version} comes from round {later.number} of another task than the versions before it"
                )
            if later.number <= earlier.number:
                _broken(f"version {version} comes from round {later.number}, which is not after round {earlier.number}")

    @classmethod
    def from_targets(cls, targets: Mapping[str, TargetFile]) -> Self:
        """What signed metadata lists; raises ModelRefused for anything that is no part of a release."""
        releases, evidence = [], set()
        for path, target in targets.items():
            place = _PLACE.fullmatch(path)
            if place is None or target.path != path:
                _malformed(f"{path[:200]!r} is no part of a model release")
            if set(target.hashes) != {"sha256"} or not _SHA256.fullmatch(target.hashes["sha256"]):
                _malformed(f"{path}: must be named by its SHA-256")
            if place["suffix"] is None:
                evidence.add(path)
            else:
                releases.append(Release.from_target(target))
        chain = cls(tuple(sorted(releases, key=lambda release: release.version)))
        wanted = {r.evidence_path(round_.number, kind) for r in releases for round_ in r.rounds for kind in EVIDENCE}
        if evidence != wanted:
            _broken(f"{min(evidence ^ wanted)}: is missing, or belongs to no release")
        return chain

    def extended(self, release: Release) -> ReleaseChain:
        """With one more version at its end; raises ModelRefused if it does not follow."""
        return ReleaseChain((*self.releases, release))

    def check_continues(self, accepted: Sequence[Mapping[str, Any]]) -> None:
        """Raise ModelRefused unless it begins with the versions that were accepted before, unchanged."""
        for place, before in enumerate(accepted):
            if place >= len(self.releases) or self.releases[place].to_json() != before:
                raise ModelRefused(
                    "rewritten",
                    f"version {place} is not what it was when this device accepted it: versions are only added. "
                    "The role 'targets' may be in wrong hands: ask the publisher before you use a newer one",
                )


def check_certified(release: Release, named: CertifiedRound, certified: CertifiedRound) -> None:
    """Raise ModelRefused unless a certificate is that of the round that the release names."""
    if (named.federation, named.task) != (certified.federation, certified.task):
        raise ModelRefused(
            "uncertified", f"version {release.version}: the certificate for round {named.number} is of another task"
        )
    if named != certified:
        raise ModelRefused(
            "uncertified",
            f"version {release.version}: the certificate is of round {certified.number} or of another outcome, "
            f"not the one of round {named.number} that the release names",
        )


def _round(path: str, entry: Any) -> CertifiedRound:
    if not isinstance(entry, dict) or set(entry) != set(CertifiedRound._fields):
        _malformed(f"{path}: names a round in a form that cannot be read")
    texts = [entry["federation"], entry["task"], entry["leaf"]]
    if not all(isinstance(text, str) for text in texts) or type(entry["number"]) is not int or entry["number"] < 1:
        _malformed(f"{path}: names a round in a form that cannot be read")
    if not (_FEDERATION.fullmatch(texts[0]) and _SHA256.fullmatch(texts[1]) and _SHA256.fullmatch(texts[2])):
        _malformed(f"{path}: names a round in a form that cannot be read")
    return CertifiedRound(**entry)


def _malformed(what: str) -> NoReturn:
    raise ModelRefused("malformed", f"{what}: this is not a repository of Triskele's models, or it is damaged")


def _broken(what: str) -> NoReturn:
    raise ModelRefused("broken_chain", f"{what}: the versions do not follow from each other, so none is used")
