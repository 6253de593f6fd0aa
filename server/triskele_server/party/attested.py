"""What the three parties agreed on while they computed a round, beyond its outcome: for the round's certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Attested:
    """Equal at all parties, or the round has ended. Nothing in it is secret."""

    rules: bytes  # SHA-256 of the source code of the task's rules
    previous: bytes | None  # SHA-256 of the released words that the rule started from
    versions: tuple[str, str, str]  # of the software of parties 0, 1, 2
    rounds: int  # of the task that were opened or may have been, this one included
    mask_keys: tuple[bytes, bytes, bytes] | None  # digests of keys 0, 1, 2, as certificates have them
    coin: bytes = b""
    weights: tuple[int, ...] | None = None  # of the accepted, by slot; None where secret

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "coin": self.coin.hex(),
            "rules": self.rules.hex(),
            "previous": None if self.previous is None else self.previous.hex(),
            "versions": list(self.versions),
            "rounds": self.rounds,
            "mask_keys": None if self.mask_keys is None else [key.hex() for key in self.mask_keys],
            "weights": None if self.weights is None else list(self.weights),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        previous, keys, weights = content["previous"], content["mask_keys"], content["weights"]
        one, two, three = content["versions"]
        return cls(
            bytes.fromhex(content["rules"]),
            None if previous is None else bytes.fromhex(previous),
            (one, two, three),
            content["rounds"],
            None if keys is None else (bytes.fromhex(keys[0]), bytes.fromhex(keys[1]), bytes.fromhex(keys[2])),
            bytes.fromhex(content["coin"]),
            None if weights is None else tuple(weights),
        )
