"""The ClientApp's side: a mod that keeps the update out of Flower's reply."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography import x509
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode  # where Flower's own mods take it from

from triskele.config import ParticipantConfig
from triskele.connection import DEFAULT_RETRIES, RetryPolicy
from triskele.credentials import Credentials
from triskele.enrolment_wish import EnrolmentWish
from triskele.errors import ConfigurationError, Forbidden, InvalidUpdate, InvalidUpload, TriskeleError
from triskele.flower.arrays import NamedArrays, trained, update_of
from triskele.flower.terms import REPLY_KEY, SEALED_KEY, Terms
from triskele.ids import PARTIES, ParticipantId
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.participant import Participant
from triskele.sealed import certified_party_keys, seal_submission
from triskele.structure import flatten
from triskele.submission import encode_update, prepare

CONFIG_KEY = "triskele-config"  # of node config or run config: the path of participant.toml

CallNext = Callable[[Message, Context], Message]
_log = logging.getLogger(__name__)


class TriskeleMod:
    """Submits what the app's train function learnt through Triskele; Flower's reply carries no model any more.

    app = ClientApp(mods=[TriskeleMod("participant.toml")])

    config: path of participant.toml; "{partition-id}" and other keys of the node's config may stand in it, also as
    "{partition-id:02d}". Without it, `triskele-config` of the node's config is taken, else of the run's.
    task: the only task that this client takes part in; none means any that the ServerApp names.

    Mods before it in the list see its empty reply, mods after it see the model: `fixedclipping_mod` and what else
    works on arrays must come after it. Its reply has the same ArrayRecord, empty, and the app's metrics with
    `num-examples` 1; the true number is the secret weight where the task is weighted. Other metrics stay as they are,
    in plain text.
    A train message without Triskele's terms, a failed submission and a reply that carries more than one ArrayRecord
    and metrics are answered with Flower's Error; the model is sent in no case.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        task: str | None = None,
        weighted_by_key: str = "num-examples",
        limits: Limits = DEFAULT_LIMITS,
        retries: RetryPolicy = DEFAULT_RETRIES,
    ) -> None:
        self._config = None if config is None else os.fspath(config)
        self._task = task
        self._weighted_by_key = weighted_by_key
        self._limits = limits
        self._retries = retries

    def __call__(self, message: Message, context: Context, call_next: CallNext) -> Message:
        """Flower's contract of a mod."""
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        try:
            return self._train(message, context, call_next)
        except TriskeleError as error:
            _log.error("TriskeleMod: %s: %s", type(error).__name__, error)
            # The text of a ConfigurationError names files of this machine, which are nothing to the ServerApp.
            told = "see this client's log" if isinstance(error, ConfigurationError) else str(error)
            reason = f"{type(error).__name__}: {told}"
            return Message(Error(code=ErrorCode.MOD_FAILED_PRECONDITION, reason=reason), reply_to=message)

    def _train(self, message: Message, context: Context, call_next: CallNext) -> Message:
        # (1) Which round, and may this client take part in it? Found before any work is done.
        if len(message.content.config_records) != 1:
            raise InvalidUpload("the train message has not exactly one ConfigRecord; no update was sent")
        terms = Terms.from_config(next(iter(message.content.config_records.values())))
        if self._task not in (None, terms.task.name):
            raise Forbidden(f"this client takes part in task {self._task!r} only, not in {terms.task.name!r}")
        path = self._path(context)
        if terms.phase == "enrol":
            return Message(RecordDict({REPLY_KEY: _wish(path, terms)}), reply_to=message)
        # (2) The app trains; its own errors are Flower's matter.
        received = trained(_only_arrays(message)[1])
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        if reply.content.config_records:
            raise InvalidUpdate("the reply has a ConfigRecord, which could carry the model in plain text; leave it out")
        key, arrays = _only_arrays(reply)
        update = update_of(received, trained(arrays))
        # (3) The update goes to the parties, or sealed for them into the reply; the number of examples with it.
        weight = self._weight(reply) if terms.task.weighted else None
        carried = self._seal(path, terms, update, weight) if terms.phase == "tunnel" else {}
        if terms.phase == "direct":
            self._submit(path, terms, update, weight)
        # (4) What Flower gets: no array of the model, and metrics.
        content: dict[str, Any] = {key: ArrayRecord(), **self._public_metrics(reply), **carried}
        return Message(RecordDict(content), reply_to=message)

    def _submit(self, path: str, terms: Terms, update: NamedArrays, weight: int | None) -> None:
        with Participant.from_config(path, limits=self._limits, retries=self._retries) as me:
            target = me.round(terms.task.name, terms.round)
            if target.task.digest != terms.task.digest:
                raise InvalidUpload(f"the ServerApp's task {terms.task.name!r} is not the coordinator's of that name")
            target.submit(update, weight=weight)

    def _seal(self, path: str, terms: Terms, update: NamedArrays, weight: int | None) -> dict[str, Any]:
        config = ParticipantConfig.load(path)
        credentials = Credentials.load(config)
        keys = certified_party_keys(
            terms.party_certificates,
            authority=x509.load_pem_x509_certificate(credentials.authority),
            federation=config.federation,
            now=datetime.datetime.now(datetime.UTC),
        )
        if terms.slot is None:
            raise InvalidUpload("the ServerApp gave no slot")
        vector, structure = flatten(update)
        structure.check_fits(terms.task)
        key = credentials.signing_key
        participant = ParticipantId(config.participant)
        encoded = encode_update(vector, terms.task, terms.round, weight=weight, clip=True, key=key)
        submission = prepare(
            encoded,
            slot=terms.slot,
            participant=participant,
            key=key,
            certificate=credentials.signing_certificate,
            in_place=True,
        )
        sealed = {
            f"party-{index}": seal_submission(submission, index, keys[index], chunk_bytes=self._limits.chunk_bytes)
            for index in PARTIES
        }
        arrays = {name: Array(np.frombuffer(upload.to_bytes(), np.uint8)) for name, upload in sealed.items()}
        return {SEALED_KEY: ArrayRecord(arrays)}

    def _weight(self, reply: Message) -> int:
        found = [r[self._weighted_by_key] for r in reply.content.metric_records.values() if self._weighted_by_key in r]
        if len(found) != 1 or isinstance(found[0], list) or found[0] != int(found[0]):
            raise InvalidUpdate(f"the task is weighted: the reply needs one whole number {self._weighted_by_key!r}")
        return int(found[0])

    def _public_metrics(self, reply: Message) -> dict[str, MetricRecord]:
        records = {name: MetricRecord(dict(record)) for name, record in reply.content.metric_records.items()}
        for record in records.values():
            if self._weighted_by_key in record:
                record[self._weighted_by_key] = 1
        return records

    def _path(self, context: Context) -> str:
        template = self._config or context.node_config.get(CONFIG_KEY) or context.run_config.get(CONFIG_KEY)
        if not isinstance(template, str):
            raise ConfigurationError(
                f"no participant.toml is named: TriskeleMod(config=...), or {CONFIG_KEY!r} in node or run config"
            )
        try:
            return template.format_map(context.node_config)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise ConfigurationError(f"{template!r} names keys that this node's config does not have") from error


def _wish(path: str, terms: Terms) -> ConfigRecord:
    """The signed wish to take part; it says who this is, and nothing of what it learnt."""
    config = ParticipantConfig.load(path)
    credentials = Credentials.load(config)
    wish = EnrolmentWish.sign(
        terms.task.digest,
        terms.round,
        ParticipantId(config.participant),
        key=credentials.signing_key,
        certificate=credentials.signing_certificate,
    )
    return ConfigRecord({"participant": wish.participant, "signature": wish.signature, "certificate": wish.certificate})


def _only_arrays(message: Message) -> tuple[str, ArrayRecord]:
    records = message.content.array_records
    if len(records) != 1:
        raise InvalidUpdate(f"one ArrayRecord is expected, {len(records)} came; no update was sent")
    key, arrays = next(iter(records.items()))
    return str(key), arrays
