"""Who gets the keys of the mask over a released aggregate, and when."""

from __future__ import annotations

import hmac

from triskele.errors import Conflict, Forbidden, Unavailable, WrongState
from triskele.identity import Identity
from triskele.ids import PartyIndex, ShareIndex, held_shares
from triskele.release_mask import MaskKey
from triskele_server.config import PolicyTable
from triskele_server.party.release_files import ReleaseFiles
from triskele_server.party.share_files import RoundKey
from triskele_server.party.store import PartyStore
from triskele_server.round_state import RoundState, has_ended


class MaskKeys:
    """Hands this party's two keys to members who may read the aggregate, once the round is released here.

    Not before: until then another attempt may open under other keys, and the keys of one attempt only are ever given.
    Runs in threads.
    """

    def __init__(self, store: PartyStore, files: ReleaseFiles, party: PartyIndex, policy: PolicyTable) -> None:
        self._store = store
        self._files = files
        self._party = party
        self._policy = policy

    def hand_out(self, caller: Identity, key: RoundKey, output_digest: bytes) -> dict[ShareIndex, MaskKey]:
        """Keys i and i+1 for the words with this digest.

        Raises Forbidden, NotFound, WrongState where there is no mask, Conflict for other words, Unavailable while
        the round is not released at this party yet.
        """
        if caller.role != "participant" and not (caller.role == "reader" and self._policy.readers):
            raise Forbidden(
                f"this party's policy lets participants unmask aggregates, not a {caller.role} ([policy] readers)"
            )
        record = self._store.round(key)
        spec = record.spec
        if caller.role == "participant":
            spec.check_takes_part(caller.name)
        if not spec.masked:
            raise WrongState(f"{key} has no mask: its task's release is public")
        if not has_ended(record.state):
            raise Unavailable(
                f"{key} is {record.state} at this party: its coordinator has yet to tell it of the release"
            )
        if record.state is not RoundState.RELEASED or record.outcome is None:
            raise WrongState(f"{key} is {record.state}: only a released round has keys")
        if not hmac.compare_digest(record.outcome.output_digest, output_digest):
            raise Conflict(f"{key} was released with other words at this party than those whose keys are asked for")
        first, second = self._files.keys(key, record.outcome.attempt)
        return dict(zip(held_shares(self._party), (first, second), strict=True))
