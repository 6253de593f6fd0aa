"""The aggregate of a released round: fetched, checked against the parties' certificate, unmasked, decoded."""

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
from triskele.transparency.certificate import Certificate, mask_key_digest
from triskele.transparency.logged_certificate import fetch_certificate
from triskele.transparency.party_keys import PartyKeys
from triskele_proto.v1 import coordinator_pb2


@dataclass(frozen=True)
class Aggregate:
    """What a round gave. `mean` is float64 [entries] in model units, as `coordinates.spread` gives it.

    `weight_total` is the sum of the weights in it.
    """

    mean: NDArray[np.float64] = field(repr=False)
    weight_total: int
    digest: bytes  # SHA-256 of the little-endian words as they were released, under their mask if there is one
    certificate: Certificate = field(repr=False)


class _Released(NamedTuple):
    header: coordinator_pb2.ResultHeader
    words: Words
    digest: bytes


def fetch_aggregate(
    connections: Connections,
    spec: TaskSpec,
    number: RoundNumber,
    *,
    keys: PartyKeys,
    limits: Limits,
    retries: RetryPolicy,
) -> Aggregate:
    """The aggregate of a released round, once its certificate is checked.

    Steps: (1) the words are those that the coordinator announced; (2) the certificate is signed by the parties, stands
    in the log, is that of this round, and of these words; (3) each mask key is the same from both its holders, and the
    one that the certificate names; (4) only then is the aggregate unmasked and decoded, by the certificate's numbers.

    Raises WrongState if the round is not released, PartyFault saying what does not hold and whose doing it is,
    Forbidden for who may not read it, Unavailable when somebody cannot be reached.
    """
    request = coordinator_pb2.FetchResultRequest(task_digest=spec.digest, round=number)

    def fetch() -> _Released:
        with typed_errors("coordinator"):
            return _read(iter(connections.coordinator().FetchResult(request, timeout=limits.upload_seconds)), spec)

    header, words, digest = retries.call(fetch)
    certificate = fetch_certificate(connections, spec.digest, number, limits=limits, retries=retries).verified(keys)
    certificate.check_is_of(connections.federation, spec.digest, number)
    output = certificate.released.output
    if output.digest != digest.hex():
        raise PartyFault(
            "the coordinator sent other words than those that the parties have signed; nothing of them is used"
        )
    if output.mask_keys is not None:
        addresses = tuple(header.party_addresses)
        if len(addresses) != len(PARTIES):
            raise PartyFault("the coordinator sent a masked result without saying where the parties are")
        masks = fetch_mask_keys(connections, spec, number, digest, addresses=addresses, limits=limits, retries=retries)
        for index, key in masks.items():
            if mask_key_digest(key, spec.digest, number, index) != output.mask_keys[index]:
                raise PartyFault(
                    f"parties {index} and {(index + 2) % 3} gave another key of the mask than the one that the parties "
                    "have signed; nothing is unmasked"
                )
        remove_masks(words, masks, spec.digest, number)
    divisor = output.weight_total * 2.0**output.coefficient_bits
    mean = decode(words, clip_norm=spec.clip_norm, weight_total=divisor, fraction_bits=spec.fraction_bits)
    return Aggregate(spread(mean, spec, number), output.weight_total, digest, certificate)


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
