"""SPIFFE identities: who a certificate speaks for, `spiffe://<federation>/<role>[/<name>]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from triskele.errors import ConfigurationError

Role = Literal["participant", "party", "coordinator", "operator", "reader", "forwarder"]

_PATTERN = re.compile(rf"spiffe://([a-z0-9._-]{{1,64}})/({'|'.join(get_args(Role))})/([a-z0-9._-]{{1,64}})")


@dataclass(frozen=True)
class Identity:
    """One identity of a federation; `name` is the participant's id, the party's index, or any label."""

    federation: str
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """The SPIFFE id, the certificate's only URI name."""
        return f"spiffe://{self.federation}/{self.role}/{self.name}"

    @property
    def host(self) -> str:
        """The DNS name in a server's certificate; clients verify it, so no member can pose as another."""
        return f"{self.role}-{self.name}.{self.federation}.triskele"

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Decode a SPIFFE id of ours; raises ConfigurationError."""
        match = _PATTERN.fullmatch(uri)
        if match is None:
            raise ConfigurationError(f"not an identity of a Triskele federation: {uri[:120]!r}")
        federation, role, name = match.groups()
        return cls(federation, next(r for r in get_args(Role) if r == role), name)
