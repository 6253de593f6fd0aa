"""The keys of the mask over a released aggregate, fetched from the parties: two holders each, compared."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

from triskele.connection import Connections, RetryPolicy, typed_errors
from triskele.errors import PartyFault
from triskele.ids import PARTIES, PartyIndex, RoundNumber, ShareIndex, held_shares
from triskele.limits import Limits
from triskele.release_mask import MASK_KEY_BYTES, MaskKey
from triskele.task import TaskSpec
from triskele_proto.v1 import party_pb2


def fetch_mask_keys(
    connections: Connections,
    spec: TaskSpec,
    number: RoundNumber,
    digest: bytes,
    *,
    addresses: Sequence[str],
    limits: Limits,
    retries: RetryPolicy,
) -> dict[ShareIndex, MaskKey]:
    """Keys 0, 1, 2 of the mask over the words with this digest.

    `addresses` are of parties 0, 1, 2; a connection is made to the party alone whose certificate it is. Raises
    PartyFault if the two holders of a key give different ones, and what the calls raise: Forbidden for who may not
    read the aggregate, Conflict if a party knows the round with other words, Unavailable.
    """
    request = party_pb2.MaskKeysRequest(task_digest=spec.digest, round=number, output_digest=digest)

    def ask(party: PartyIndex) -> Any:
        with typed_errors(f"party {party}"):
            client = connections.party(party, addresses[party])
            return client.FetchMaskKeys(request, timeout=limits.rpc_seconds)

    def copies(party: PartyIndex) -> dict[ShareIndex, MaskKey]:
        reply = retries.call(lambda: ask(party))
        given = {ShareIndex(k.index): MaskKey(k.key) for k in reply.keys[: len(PARTIES)]}
        if set(given) != set(held_shares(party)) or any(len(k) != MASK_KEY_BYTES for k in given.values()):
            raise PartyFault(f"party {party} gave other mask keys than the two that it holds", party)
        return given

    held = {party: copies(party) for party in PARTIES}
    keys: dict[ShareIndex, MaskKey] = {}
    for index in map(ShareIndex, range(len(PARTIES))):
        one, other = PartyIndex(index), PartyIndex((index + 2) % 3)
        if not hmac.compare_digest(held[one][index], held[other][index]):
            raise PartyFault(
                f"parties {one} and {other} hold the same key of the mask, but gave different ones; nothing is unmasked"
            )
        keys[index] = held[one][index]
    return keys
