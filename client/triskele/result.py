"""The aggregate of a released round: fetched, checked against its digest, unmasked, decoded."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triskele.connection import Connections, RetryPolicy, typed_errors
from triskele.coordinates import spread
from triskele.encoding import decode
from triskele.errors import PartyFault
from triskele.ids import PARTIES, RoundNumber
from triskele.limits import Limits
from triskele.mask_keys import fetch_mask_keys
from triskele.release_mask import remove_masks
from triskele.ring import Ring, Words
from triskele.task import TaskSpec
from triskele_proto.v1 import coordinator_pb2

_MAX_COEFFICIENT_BITS = 62


@dataclass(frozen=True)
class Aggregate:
    """What a round gave. `mean` is float64 [entries] in model units, as `coordinates.spread` gives it.

    `weight_total` is the sum of the weights in it.
    """

    mean: NDArray[np.float64] = field(repr=False)
    weight_total: int
    digest: bytes  # SHA-256 of the little-endian words as they were released, under their mask if there is one


class _Released(NamedTuple):
    header: coordinator_pb2.ResultHeader
    words: Words
    digest: bytes


def fetch_aggregate(
    connections: Connections, spec: TaskSpec, number: RoundNumber, *, limits: Limits, retries: RetryPolicy
) -> Aggregate:
    """The aggregate of a released round.

    Raises WrongState if the round is not released, PartyFault if what the coordinator sends is not what it announced or
    the parties' mask keys do not agree, Forbidden for who may not read it, Unavailable when somebody cannot be reached.
    """
    request = coordinator_pb2.FetchResultRequest(task_digest=spec.digest, round=number)

    def fetch() -> _Released:
        with typed_errors("coordinator"):
            return _read(iter(connections.coordinator().FetchResult(request, timeout=limits.upload_seconds)), spec)

    header, words, digest = retries.call(fetch)
    if spec.masked:
        addresses = tuple(header.party_addresses)
        if len(addresses) != len(PARTIES):
            raise PartyFault("the coordinator sent a masked result without saying where the parties are")
        keys = fetch_mask_keys(connections, spec, number, digest, addresses=addresses, limits=limits, retries=retries)
        remove_masks(words, keys, spec.digest, number)
    divisor = header.weight_total * 2.0**header.coefficient_bits
    mean = decode(words, clip_norm=spec.clip_norm, weight_total=divisor, fraction_bits=spec.fraction_bits)
    return Aggregate(spread(mean, spec, number), header.weight_total, digest)


def _read(chunks: Iterator[Any], spec: TaskSpec) -> _Released:
    header = _header(next(chunks, None), spec)
    words = _words(chunks, spec.dimension, spec.ring)
    digest = hashlib.sha256(words.data).digest()
    if not hmac.compare_digest(digest, header.digest):
        raise PartyFault("the coordinator sent a result that does not have the announced digest; nothing of it is used")
    return _Released(header, words, digest)


def _header(message: Any, spec: TaskSpec) -> coordinator_pb2.ResultHeader:
    if message is None or message.WhichOneof("part") != "header":
        raise PartyFault("the coordinator sent a result without its header")
    header: coordinator_pb2.ResultHeader = message.header
    if header.dimension != spec.dimension:
        raise PartyFault(
            f"the coordinator sent a result of {header.dimension} words, but the task has {spec.dimension}"
        )
    if header.weight_total < 1 or header.coefficient_bits > _MAX_COEFFICIENT_BITS:
        raise PartyFault("the coordinator sent a result with an impossible total weight")
    return header


def _words(chunks: Iterator[Any], dimension: int, ring: Ring) -> Words:
    """Words [dimension] from chunks that follow each other without a gap; memory is bounded by the task."""
    words = np.empty(dimension, ring.dtype)
    room = words.data.cast("B")
    filled = 0
    for message in chunks:
        data = message.chunk.data  # each access copies
        if message.WhichOneof("part") != "chunk" or message.chunk.offset != filled or not data:
            raise PartyFault("the coordinator sent the pieces of a result out of order")
        if filled + len(data) > len(room):
            raise PartyFault(f"the coordinator sent more than the announced {len(room)} bytes of a result")
        room[filled : filled + len(data)] = data
        filled += len(data)
    if filled != len(room):
        raise PartyFault(f"the coordinator sent {filled} of the announced {len(room)} bytes of a result")
    return words
