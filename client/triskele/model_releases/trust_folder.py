"""All that a device trusts, in one folder: root.json of the publisher, party-0.pub to party-2.pub of the three parties.

Beside it, or elsewhere, the device's own memory: the metadata that it saw last and the versions that it accepted.
Without it a device still checks everything, but an older state than the one it saw before can be shown to it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from triskele.errors import ConfigurationError
from triskele.model_releases.releases import ReleaseChain
from triskele.transparency.party_keys import PartyKeys

ROOT_FILE: Final = "root.json"
_MAX_ROOT_BYTES: Final = 1 << 19
_MAX_ACCEPTED_BYTES: Final = 1 << 26


@dataclass(frozen=True)
class TrustFolder:
    """The public keys of a device and where it keeps what it has seen."""

    root: bytes = field(repr=False)  # TUF root metadata
    parties: PartyKeys = field(repr=False)
    state: Path

    @classmethod
    def from_folder(cls, folder: Path, *, signatures: int = 3, state: Path | None = None) -> Self:
        """Read the folder; raises ConfigurationError naming what is missing.

        signatures: how many of the three parties must have signed a certificate, 3 or 2. state: by default state/ in
        the folder; another place for devices whose keys lie on a disk that cannot be written.
        """
        place = folder / ROOT_FILE
        try:
            with place.open("rb") as file:
                root = file.read(_MAX_ROOT_BYTES)
        except OSError as error:
            raise ConfigurationError(
                f"{place}: cannot be read ({error.strerror}): a device needs the publisher's root.json beside the "
                "parties' public keys, from a source that you trust"
            ) from error
        return cls(root, PartyKeys.from_folder(folder, signatures), state or folder / "state")

    @property
    def metadata(self) -> Path:
        """What was seen last of the repository's metadata."""
        return self.state / "metadata"

    @property
    def evidence(self) -> Path:
        """Certificates and proofs that were fetched before."""
        return self.state / "evidence"

    def prepare(self) -> None:
        """Make the folders of the state; raises ConfigurationError."""
        try:
            for folder in (self.metadata, self.evidence):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.state}: cannot be written ({error.strerror})") from error

    def accepted(self) -> Sequence[Mapping[str, Any]]:
        """The versions that this device has accepted, from 0; raises ConfigurationError if the file is damaged."""
        try:
            with self._accepted.open("rb") as file:
                found = json.loads(file.read(_MAX_ACCEPTED_BYTES))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigurationError(self._damaged) from error
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise ConfigurationError(self._damaged)
        return found

    def remember(self, chain: ReleaseChain) -> None:
        """Note the versions down, whole or not at all; raises OSError."""
        unfinished = self._accepted.with_suffix(".part")
        content = json.dumps([release.to_json() for release in chain.releases], sort_keys=True)
        unfinished.write_text(content, encoding="utf-8", newline="\n")
        unfinished.replace(self._accepted)

    @property
    def _accepted(self) -> Path:
        return self.state / "accepted.json"

    @property
    def _damaged(self) -> str:
        return (
            f"{self._accepted}: is damaged. Without it an older model could be passed off as the newest: restore it, "
            "or remove the file if you accept that once"
        )
