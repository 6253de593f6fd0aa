"""The ServerApp's side of the tunnel: who wants in, and bringing the parties what was sealed to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from triskele.coordinator import Enrolment
from triskele.enrolment_wish import EnrolmentWish
from triskele.errors import Forbidden, InvalidUpload, TriskeleError
from triskele.flower.terms import REPLY_KEY, SEALED_KEY, Terms
from triskele.framework_server import FrameworkServer
from triskele.ids import PARTIES, ParticipantId
from triskele.limits import DEFAULT_LIMITS
from triskele.sealed import SealContext, SealedUpload

_PARALLEL = 8  # uploads brought at the same time
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Admitted:
    """A node whose participant has a slot in the round."""

    participant: ParticipantId
    enrolment: Enrolment


def enrol_messages(terms: Terms, node_ids: Iterable[int], configrecord_key: str) -> list[Message]:
    """One message per node that asks its TriskeleMod for a signed wish; the app does not see it."""
    content = RecordDict({configrecord_key: ConfigRecord(terms.to_config())})
    return [Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node) for node in node_ids]


def admit(server: FrameworkServer, terms: Terms, replies: Iterable[Message]) -> dict[int, Admitted]:
    """Enrol every node that sent a wish, by node id. A node that cannot be enrolled is logged and left out."""
    admitted: dict[int, Admitted] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            wish = _wish(reply, terms)
            if any(other.participant == wish.participant for other in admitted.values()):
                raise InvalidUpload("another node has come as the same participant")
            admitted[node] = Admitted(wish.participant, server.enrol_for(wish, terms.task))
        except Forbidden:  # this ServerApp's own identity: the next node fares no better
            raise
        except TriskeleError as error:
            _log.warning("node %d takes no part in round %d: %s", node, terms.round, error)
    return admitted


def bring(
    server: FrameworkServer, terms: Terms, admitted: Mapping[int, Admitted], replies: Iterable[Message]
) -> list[TriskeleError]:
    """Bring the parties every reply's sealed uploads; what fails is logged and returned, the others go on.

    The reply of a node counts for the participant that the node was enrolled as; the parties check that it is so.
    """
    jobs = [
        (admitted[reply.metadata.src_node_id], reply) for reply in replies if reply.metadata.src_node_id in admitted
    ]
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="triskele-tunnel") as pool:
        errors = list(pool.map(lambda job: _bring_one(server, terms, *job), jobs))
    return [error for error in errors if error is not None]


def _bring_one(server: FrameworkServer, terms: Terms, who: Admitted, reply: Message) -> TriskeleError | None:
    try:
        record = reply.content.array_records.get(SEALED_KEY)
        if record is None or set(record) != {f"party-{index}" for index in PARTIES}:
            raise InvalidUpload("the reply holds no sealed upload for each of three parties")
        for index in PARTIES:
            try:
                data = record[f"party-{index}"].numpy().tobytes()
            except ValueError as error:
                raise InvalidUpload("the reply's sealed uploads are no arrays of bytes") from error
            context = SealContext(terms.task.digest, terms.round, who.participant, index)
            address = who.enrolment.party_addresses[index]
            server.forward(SealedUpload.from_bytes(data, DEFAULT_LIMITS), context, address)
    except TriskeleError as error:
        _log.warning("%s's upload to round %d was not taken: %s", who.participant, terms.round, error)
        return error
    return None


def _wish(reply: Message, terms: Terms) -> EnrolmentWish:
    if reply.has_error():
        raise InvalidUpload(f"it answered with an error: {reply.error.reason}")
    record = reply.content.config_records.get(REPLY_KEY, ConfigRecord())
    name, signature, certificate = (record.get(key) for key in ("participant", "signature", "certificate"))
    if not (isinstance(name, str) and isinstance(signature, bytes) and isinstance(certificate, bytes)):
        raise InvalidUpload("its answer holds no signed wish: is TriskeleMod among the ClientApp's mods?")
    return EnrolmentWish(terms.task.digest, terms.round, ParticipantId(name), signature, certificate)
