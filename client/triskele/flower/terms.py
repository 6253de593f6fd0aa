"""What a TriskeleStrategy tells a TriskeleMod, and what comes back: keys in Flower's records, with strict decoding.

The terms travel in the ConfigRecord that Flower sends with every train message, beside the app's own keys: some mods of
Flower's demand that there is one ConfigRecord only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from triskele.errors import InvalidTask, InvalidUpload
from triskele.ids import RoundNumber, Slot
from triskele.task import TaskSpec

Phase = Literal["direct", "enrol", "tunnel"]

REPLY_KEY = "triskele"  # ConfigRecord of a reply: the signed wish
SEALED_KEY = "triskele-sealed"  # ArrayRecord of a reply: one array of bytes per party
_PHASE, _TASK, _ROUND, _SLOT, _PARTIES = (
    f"triskele-{name}" for name in ("phase", "task", "round", "slot", "party-certificates")
)


@dataclass(frozen=True)
class Terms:
    """Which round of which task, and how the update travels.

    direct: the client asks coordinator and parties itself. enrol: it is asked for its signed wish only. tunnel: it
    seals its shares for the parties with these certificates (DER, parties 0, 1, 2) and puts them into its reply.
    """

    phase: Phase
    task: TaskSpec
    round: RoundNumber
    slot: Slot | None = None
    party_certificates: tuple[bytes, ...] = field(default=(), repr=False)

    def to_config(self) -> dict[str, Any]:
        """The keys and values for Flower's ConfigRecord."""
        config: dict[str, Any] = {_PHASE: self.phase, _TASK: self.task.canonical(), _ROUND: self.round}
        if self.phase == "tunnel":
            config |= {_SLOT: self.slot, _PARTIES: list(self.party_certificates)}
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Terms:
        """Decode what the ServerApp sent, which nobody vouches for; raises InvalidUpload or InvalidTask."""
        if _PHASE not in config:
            raise InvalidUpload(
                "the train message names no Triskele round: use TriskeleStrategy in the ServerApp; no update was sent"
            )
        phase = next((p for p in get_args(Phase) if p == config[_PHASE]), None)
        canonical, number = config.get(_TASK), config.get(_ROUND)
        if (
            phase is None
            or not isinstance(canonical, bytes)
            or not isinstance(number, int)
            or not 1 <= number < 1 << 63
        ):
            raise InvalidUpload("the train message's Triskele terms do not decode; no update was sent")
        spec = TaskSpec.from_canonical(canonical)
        if phase != "tunnel":
            return cls(phase, spec, RoundNumber(number))
        slot, certificates = config.get(_SLOT), config.get(_PARTIES)
        if not isinstance(slot, int) or not 0 <= slot < spec.max_participants or not isinstance(certificates, list):
            raise InvalidTask("the train message's slot or party certificates do not decode; no update was sent")
        if not all(isinstance(certificate, bytes) for certificate in certificates):
            raise InvalidTask("the train message's party certificates are not bytes; no update was sent")
        return cls(phase, spec, RoundNumber(number), Slot(slot), tuple(certificates))
