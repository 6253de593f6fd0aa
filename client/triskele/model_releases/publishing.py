"""Who publishes: a repository of models in a folder, and the steps that change it.

    REPOSITORY/metadata/   TUF metadata; what a device reads first
    REPOSITORY/targets/    models, certificates, proofs
    REPOSITORY/staged/     metadata that still wants signatures; no device looks at it
    REPOSITORY/trust/      what a device is given once, in a way that can be trusted: root.json, party-0.pub, …

Every step ends the same way (`_settle`): it signs what it has keys for, and once enough keys have signed it writes the
new metadata, the timestamp last, so that a device sees the old state or the new one. Each signer checks the step
itself. One step at a time: a folder that several people sign in is passed from one to the next (git, rsync, a bucket).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer
from tuf.ngclient import UpdaterConfig

from triskele.array_files import read_arrays
from triskele.errors import ConfigurationError, Conflict, ModelRefused, NotFound, WrongState
from triskele.ids import PARTIES
from triskele.model_releases.certified_round import certified_round
from triskele.model_releases.refusals import typed_refusals
from triskele.model_releases.releases import EVIDENCE, CertifiedRound, Release, ReleaseChain, check_certified
from triskele.model_releases.role_keys import ROLES, RoleKeys
from triskele.model_releases.trust_folder import ROOT_FILE
from triskele.transparency.logged_certificate import CERTIFICATE, PROOF
from triskele.transparency.party_keys import PartyKeys, key_file

_MAX_TARGETS_BYTES: Final = UpdaterConfig().targets_max_length  # what a device reads
_COMPACT: Final = JSONSerializer(compact=True)
Kind = TypeVar("Kind", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class Thresholds:
    """How many keys of the role must sign. For snapshot and timestamp it is one: a machine does that alone."""

    root: int = 1
    targets: int = 1


@dataclass(frozen=True)
class Lifetimes:
    """How long metadata is valid once it is signed.

    `timestamp` is how long newer models can be kept from a device unnoticed, and how long the publisher may be away.
    """

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=365)
    snapshot: timedelta = timedelta(days=30)
    timestamp: timedelta = timedelta(days=7)


class Awaited(NamedTuple):
    """What a step still wants before devices see it: so many more signatures of a role's keys."""

    role: str
    signatures: int


@dataclass(frozen=True)
class Published:
    """What a step came to.

    releases: what devices see once nothing is awaited. awaited: what is missing until then. keys: of each role the key
    ids, as the newest root has them, signed or not. expires: of each role, of what devices see.
    """

    releases: tuple[Release, ...]
    awaited: tuple[Awaited, ...]
    keys: Mapping[str, Sequence[str]]
    expires: Mapping[str, datetime]

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return {
            "releases": [release.to_json() for release in self.releases],
            "awaited": [entry._asdict() for entry in self.awaited],
            "keys": {role: list(keys) for role, keys in self.keys.items()},
            "expires": {role: when.isoformat() for role, when in self.expires.items()},
        }


@dataclass(frozen=True)
class _State:
    """The metadata in a folder, verified against its root; None: not there yet, or nothing staged."""

    root: Metadata[Root] | None
    timestamp: Metadata[Timestamp] | None
    snapshot: Metadata[Snapshot] | None
    targets: Metadata[Targets] | None
    staged_root: Metadata[Root] | None
    staged_targets: Metadata[Targets] | None

    @property
    def newest_root(self) -> Metadata[Root] | None:
        return self.staged_root or self.root

    @property
    def newest_targets(self) -> Metadata[Targets] | None:
        return self.staged_targets or self.targets


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class ModelRepository:
    """A repository of models in a folder.

    lifetimes: of what is signed from now on. signatures: how many of the three parties must have signed a certificate,
    3 or 2.
    """

    folder: Path
    lifetimes: Lifetimes = Lifetimes()
    signatures: int = 3
    clock: Callable[[], datetime] = field(default=_now, repr=False)

    def create(self, keys: RoleKeys, parties: Path, thresholds: Thresholds = Thresholds()) -> Published:
        """Start a repository with these keys. parties: a folder with party-0.pub, party-1.pub, party-2.pub.

        Raises Conflict if there is one, ConfigurationError for keys that cannot be used or are fewer than must sign.
        """
        if any((self.folder / name).exists() for name in ("metadata", "staged")):
            raise Conflict(f"{self.folder}: there is a repository already; `triskele model rotate` changes its keys")
        PartyKeys.from_folder(parties, self.signatures)
        root = self._new_root(keys, {"root": thresholds.root, "targets": thresholds.targets}, version=1)
        with typed_refusals(str(self.folder)):
            for name in ("metadata", "targets", "staged", "trust"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            for party in PARTIES:
                shutil.copyfile(parties / key_file(party), self.folder / "trust" / key_file(party))
            self._write("staged/root.json", Metadata(root).to_bytes(_COMPACT))
            self._write("staged/targets.json", Metadata(Targets(1, expires=self._until("targets"))).to_bytes(_COMPACT))
        return self._settle(keys)

    def publish(self, model: Path, version: int, certificates: Sequence[Path], keys: RoleKeys) -> Published:
        """Add a version: a .npz or .safetensors file, and of each round that it came from the folder of its logged
        certificate (certificate.json, proof.json); none for version 0.

        Devices see it once enough keys have signed: here, and elsewhere by `sign`. Raises Conflict if the version
        exists or another step awaits signatures, WrongState for a gap, InvalidUpdate for a file that is no model,
        ModelRefused for a certificate that does not fit: one that is not verifiable, of another task, of a round that
        was not released, or of one that is not after those of the version before.
        """
        state = self._read()
        self._check_nothing_staged(state)
        chain = _chain(state.targets)
        if version < len(chain.releases):
            raise Conflict(f"version {version} exists, and versions never change; the next is {len(chain.releases)}")
        if version > len(chain.releases):
            raise WrongState(f"version {version} would leave a gap; the next is {len(chain.releases)}")
        read_arrays(model)
        rounds = {
            self._certified(folder / CERTIFICATE, folder / PROOF, str(folder)): (folder / CERTIFICATE, folder / PROOF)
            for folder in certificates
        }
        with typed_refusals(str(model)):
            target = TargetFile.from_file(f"versions/{version}/model{model.suffix.lower()}", str(model), ["sha256"])
        release = Release(
            version=version,
            suffix=model.suffix.lower(),
            sha256=target.hashes["sha256"],
            length=target.length,
            parent=chain.releases[-1].sha256 if version else None,
            rounds=tuple(sorted(rounds, key=lambda certified: certified.number)),
        )
        chain.extended(release)
        target.unrecognized_fields["custom"] = release.note()
        targets = Metadata(deepcopy(_signed(state.targets)))
        targets.signed.version += 1
        targets.signed.expires = self._until("targets")
        targets.signed.targets[target.path] = target
        with typed_refusals(str(self.folder)):
            self._copy(model, _stored(target))
            for certified, files in rounds.items():
                for kind, file in zip(EVIDENCE, files, strict=True):
                    path = release.evidence_path(certified.number, kind)
                    targets.signed.targets[path] = TargetFile.from_file(path, str(file), ["sha256"])
                    self._copy(file, _stored(targets.signed.targets[path]))
            staged = targets.to_bytes(_COMPACT)
            if len(staged) > _MAX_TARGETS_BYTES:
                raise ConfigurationError(
                    f"{self.folder}: the list of versions would grow over the {_MAX_TARGETS_BYTES} bytes that a device "
                    "reads: start another repository"
                )
            self._write("staged/targets.json", staged)
        return self._settle(keys)

    def sign(self, keys: RoleKeys) -> Published:
        """Sign what awaits signatures, after every check that `publish` made. Raises NotFound if nothing does."""
        state = self._read()
        if state.staged_root is None and state.staged_targets is None:
            raise NotFound(f"{self.folder}: nothing awaits signatures")
        return self._settle(keys)

    def refresh(self, keys: RoleKeys) -> Published:
        """Vouch anew for what is the newest: a new snapshot and timestamp. To be done before the timestamp expires.

        Whatever else awaits signatures goes on waiting for them. Raises ConfigurationError without the two roles' keys.
        """
        return self._settle(keys, renew=True)

    def rotate(
        self, keys: RoleKeys, *, outgoing: RoleKeys | None = None, thresholds: Thresholds | None = None
    ) -> Published:
        """Give every role the keys in `keys`, and another year to the root.

        The keys that were before must sign too: from `outgoing`, or elsewhere by `sign`. Raises as `create` does.
        """
        state = self._read()
        self._check_nothing_staged(state)
        before = _signed(state.root)
        numbers = {role: before.roles[role].threshold for role in ("root", "targets")}
        if thresholds is not None:
            numbers = {"root": thresholds.root, "targets": thresholds.targets}
        root = self._new_root(keys, numbers, version=before.version + 1)
        with typed_refusals(str(self.folder)):
            self._write("staged/root.json", Metadata(root).to_bytes(_COMPACT))
            if before.roles["targets"] != root.roles["targets"]:  # the new keys must vouch for what the old ones did
                targets = Metadata(deepcopy(_signed(state.targets)))
                targets.signed.version += 1
                targets.signed.expires = self._until("targets")
                self._write("staged/targets.json", targets.to_bytes(_COMPACT))
        return self._settle(keys, *(() if outgoing is None else (outgoing,)))

    def look(self) -> Published:
        """What is in the repository and what it waits for; nothing is changed."""
        state = self._read()
        return _report(state, _awaited(state))

    def _settle(self, *keyrings: RoleKeys, renew: bool = False) -> Published:
        """Sign the staged step; once it is signed, write what devices read. renew: write that in any case."""
        state = self._read()
        self._check_step(state)
        with typed_refusals(str(self.folder)):
            if not renew:
                _sign_step(state, keyrings)
            awaited = _awaited(state)
            for role in ("snapshot", "timestamp"):
                if not _signers(_signed(state.newest_root), role, keyrings):
                    awaited = (*awaited, Awaited(role, 1))
            if not awaited:
                return self._write_state(state, keyrings)
            if renew:
                missing = [entry.role for entry in awaited if entry.role in ("snapshot", "timestamp")]
                if missing or state.root is None or state.targets is None:
                    raise ConfigurationError(
                        f"{self.folder}: keys of {' and '.join(missing) or 'root'} are needed for that"
                    )
                kept = _State(state.root, state.timestamp, state.snapshot, state.targets, None, None)
                written = self._write_state(kept, keyrings, done=False)
                return Published(written.releases, awaited, written.keys, written.expires)
            for name, staged in (("root", state.staged_root), ("targets", state.staged_targets)):
                if staged is not None:
                    self._write(f"staged/{name}.json", staged.to_bytes(_COMPACT))
        return _report(state, awaited)

    def _write_state(self, state: _State, keyrings: Sequence[RoleKeys], *, done: bool = True) -> Published:
        """New snapshot and timestamp over root and targets, written in the order in which a device may see them."""
        root, targets = _present(state.newest_root), _present(state.newest_targets)
        files = {}
        if state.staged_root is not None:
            files[f"metadata/{root.signed.version}.root.json"] = files[f"trust/{ROOT_FILE}"] = root.to_bytes(_COMPACT)
        content = targets.to_bytes(_COMPACT)
        files[f"metadata/{targets.signed.version}.targets.json"] = content
        snapshot = Metadata(
            Snapshot(
                version=1 if state.snapshot is None else state.snapshot.signed.version + 1,
                expires=self._until("snapshot"),
                meta={"targets.json": MetaFile.from_data(targets.signed.version, content, ["sha256"])},
            )
        )
        _sign(snapshot, _signers(root.signed, "snapshot", keyrings))
        content = snapshot.to_bytes(_COMPACT)
        files[f"metadata/{snapshot.signed.version}.snapshot.json"] = content
        timestamp = Metadata(
            Timestamp(
                version=1 if state.timestamp is None else state.timestamp.signed.version + 1,
                expires=self._until("timestamp"),
                snapshot_meta=MetaFile.from_data(snapshot.signed.version, content, ["sha256"]),
            )
        )
        _sign(timestamp, _signers(root.signed, "timestamp", keyrings))
        files["metadata/timestamp.json"] = timestamp.to_bytes(_COMPACT)
        for name, content in files.items():
            self._write(name, content)
        if done:
            for name in ("root", "targets"):
                (self.folder / "staged" / f"{name}.json").unlink(missing_ok=True)
        return _report(_State(root, timestamp, snapshot, targets, None, None), ())

    def _check_step(self, state: _State) -> None:
        """Raise ModelRefused unless the staged step is one that may be signed."""
        if state.staged_root is not None:
            before = 0 if state.root is None else state.root.signed.version
            if state.staged_root.signed.version != before + 1 or not state.staged_root.signed.consistent_snapshot:
                raise ModelRefused("malformed", f"{self.folder}: the staged root does not follow the one there is")
        if state.staged_targets is None:
            return
        staged = state.staged_targets.signed
        before = 0 if state.targets is None else state.targets.signed.version
        if staged.version != before + 1 or staged.delegations is not None:
            raise ModelRefused("malformed", f"{self.folder}: the staged targets do not follow those there are")
        seen, wanted = _chain(state.targets).releases, _chain(state.staged_targets).releases
        if wanted[: len(seen)] != seen or len(wanted) > len(seen) + 1:
            raise ModelRefused(
                "rewritten", f"{self.folder}: what is staged changes earlier versions, or adds several: do not sign it"
            )
        for release in wanted[len(seen) :]:
            self._check_new(release, staged.targets)

    def _check_new(self, release: Release, targets: Mapping[str, TargetFile]) -> None:
        with typed_refusals(f"{self.folder}, version {release.version}"):
            self._check_stored(targets[release.path])
            for named in release.rounds:
                found = [targets[release.evidence_path(named.number, kind)] for kind in EVIDENCE]
                certificate, proof = (self._check_stored(target) for target in found)
                check_certified(release, named, self._certified(certificate, proof, f"round {named.number}"))

    def _check_stored(self, target: TargetFile) -> Path:
        path = self.folder / _stored(target)
        with path.open("rb") as file:
            target.verify_length_and_hashes(file)
        return path

    def _certified(self, certificate: Path, proof: Path, where: str) -> CertifiedRound:
        parties = PartyKeys.from_folder(self.folder / "trust", self.signatures)
        return certified_round(certificate, proof, parties, where)

    def _check_nothing_staged(self, state: _State) -> None:
        if state.root is None:
            raise WrongState(f"{self.folder}: the repository's root awaits signatures: `triskele model sign`")
        if state.staged_root is not None or state.staged_targets is not None:
            raise Conflict(
                f"{self.folder}: a step awaits signatures (`triskele model sign`); to give it up, empty staged/"
            )

    def _new_root(self, keys: RoleKeys, thresholds: Mapping[str, int], *, version: int) -> Root:
        root = Root(version, expires=self._until("root"), consistent_snapshot=True)
        for role in ROLES:
            threshold = thresholds.get(role, 1)
            if not 1 <= threshold <= len(keys.public[role]):
                raise ConfigurationError(
                    f"{threshold} keys of the role {role} must sign, but {len(keys.public[role])} are given"
                )
            root.roles[role] = Role([], threshold)
            for key in keys.public[role].values():
                root.add_key(key, role)
        return root

    def _until(self, role: str) -> datetime:
        lifetime: timedelta = getattr(self.lifetimes, role)
        return (self.clock() + lifetime).replace(microsecond=0)

    def _copy(self, given: Path, name: str) -> None:
        """What was copied is hashed again before it is signed."""
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(f".{place.name}.part")
        try:
            shutil.copyfile(given, unfinished)
            unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(f".{place.name}.part")
        unfinished.write_bytes(content)
        unfinished.replace(place)

    def _read(self) -> _State:
        """Raises NotFound if there is no repository, ModelRefused if what is there does not hold."""
        if not (self.folder / "metadata").is_dir():
            raise NotFound(f"{self.folder}: no repository of models; `triskele model init` makes one")
        with typed_refusals(str(self.folder)):
            roots = self._roots()
            timestamp = self._load(Timestamp, "metadata/timestamp.json", roots)
            snapshot: Metadata[Snapshot] | None = None
            targets: Metadata[Targets] | None = None
            if timestamp is not None:
                number = timestamp.signed.snapshot_meta.version
                snapshot = _present(self._load(Snapshot, f"metadata/{number}.snapshot.json", roots))
                number = snapshot.signed.meta["targets.json"].version
                targets = _present(self._load(Targets, f"metadata/{number}.targets.json", roots))
            root = roots[-1] if roots else None
            staged_root, staged_targets = (
                self._load(Root, "staged/root.json"),
                self._load(Targets, "staged/targets.json"),
            )
            # a step that was interrupted after it had been written is no step any more
            if staged_root is not None and root is not None and staged_root.signed == root.signed:
                staged_root = None
            if staged_targets is not None and targets is not None and staged_targets.signed == targets.signed:
                staged_targets = None
            return _State(root, timestamp, snapshot, targets, staged_root, staged_targets)

    def _roots(self) -> list[Metadata[Root]]:
        """Every root from the first on, each signed by itself and by the one before."""
        roots: list[Metadata[Root]] = []
        while (root := self._load(Root, f"metadata/{len(roots) + 1}.root.json")) is not None:
            for signed in (root.signed, *(before.signed for before in roots[-1:])):
                signed.verify_delegate("root", root.signed_bytes, root.signatures)
            roots.append(root)
        return roots

    def _load(
        self, kind: type[Kind], name: str, roots: Sequence[Metadata[Root]] | None = None
    ) -> Metadata[Kind] | None:
        """Metadata in a file, signed as the newest root demands, or the one before if a step was interrupted."""
        try:
            content = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        found: Metadata[Any] = Metadata.from_bytes(content)
        if not isinstance(found.signed, kind):
            raise RepositoryError(f"{name} holds metadata of the role {found.signed.type}")
        if roots is not None:
            _verify(found, roots)
        return found


def _verify(found: Metadata[Any], roots: Sequence[Metadata[Root]]) -> None:
    refusal: UnsignedMetadataError | None = None
    for root in reversed(roots[-2:]):
        try:
            root.signed.verify_delegate(found.signed.type, found.signed_bytes, found.signatures)
        except UnsignedMetadataError as error:
            refusal = refusal or error
        else:
            return
    raise refusal or UnsignedMetadataError("there is no root that could have named the keys")


def _awaited(state: _State) -> tuple[Awaited, ...]:
    """The signatures that the staged step still wants of root and targets."""
    root = _present(state.newest_root).signed
    missing = {"root": 0, "targets": 0}
    if state.staged_root is not None:
        staged = state.staged_root
        result = root.get_root_verification_result(
            None if state.root is None else state.root.signed, staged.signed_bytes, staged.signatures
        )
        missing["root"] = max(result.first.missing, result.second.missing)
    if state.staged_targets is not None:
        targets = state.staged_targets
        found = root.get_verification_result("targets", targets.signed_bytes, targets.signatures)
        missing["targets"] = found.missing
    return tuple(Awaited(role, number) for role, number in missing.items() if number)


def _sign_step(state: _State, keyrings: Sequence[RoleKeys]) -> None:
    root = _signed(state.newest_root)
    if state.staged_root is not None:
        before = [] if state.root is None else [state.root.signed]
        _sign(state.staged_root, [s for signed in (root, *before) for s in _signers(signed, "root", keyrings)])
    if state.staged_targets is not None:
        _sign(state.staged_targets, _signers(root, "targets", keyrings))


def _signers(root: Root, role: str, keyrings: Sequence[RoleKeys]) -> list[Any]:
    """Those of the keys here that a root names for a role."""
    wanted = root.roles[role].keyids
    return [signer for keys in keyrings for keyid, signer in keys.signers[role].items() if keyid in wanted]


def _sign(metadata: Metadata[Any], signers: Sequence[Any]) -> None:
    for signer in signers:
        metadata.sign(signer, append=True)


def _chain(targets: Metadata[Targets] | None) -> ReleaseChain:
    return ReleaseChain.from_targets({} if targets is None else targets.signed.targets)


def _present(metadata: Metadata[Kind] | None) -> Metadata[Kind]:
    if metadata is None:
        raise RepositoryError("a file of metadata is missing")
    return metadata


def _signed(metadata: Metadata[Kind] | None) -> Kind:
    return _present(metadata).signed


def _report(state: _State, awaited: tuple[Awaited, ...]) -> Published:
    root = _signed(state.newest_root)
    seen = {"root": state.root, "targets": state.targets, "snapshot": state.snapshot, "timestamp": state.timestamp}
    return Published(
        releases=_chain(state.newest_targets).releases,
        awaited=awaited,
        keys={role: root.roles[role].keyids for role in ROLES},
        expires={role: metadata.signed.expires for role, metadata in seen.items() if metadata is not None},
    )


def _stored(target: TargetFile) -> str:
    """Where the bytes of a target lie: with their digest in the name, as consistent snapshots have it."""
    return f"targets/{target.get_prefixed_paths()[0]}"
