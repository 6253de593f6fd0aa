"""The ServerApp's side: FedAvg whose aggregate comes out of a Triskele round."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from triskele.connection import DEFAULT_RETRIES, RetryPolicy
from triskele.errors import ConfigurationError, InvalidUpdate, RoundFailed, TriskeleError, Unavailable
from triskele.flower.arrays import moved, trained
from triskele.flower.terms import Terms
from triskele.flower.tunnel import Admitted, admit, bring, enrol_messages
from triskele.framework_server import FrameworkServer
from triskele.ids import RoundNumber
from triskele.structure import flatten
from triskele.task import TaskSpec
from triskele.views import RoundView

Transport = Literal["direct", "tunnel"]

_log = logging.getLogger(__name__)


class TriskeleStrategy(FedAvg):  # type: ignore[misc]  # flwr is not installed where types are checked
    """Federated averaging through Triskele: clients submit to the parties, this strategy fetches the aggregate.

    config: reader.toml for transport "direct", forwarder.toml for "tunnel". reader: reader.toml beside a forwarder,
    which cannot unmask the aggregates of a task whose release is for participants. task: the task's name; each of
    Flower's train rounds takes the next open round of it. round_timeout: seconds to wait for a round to open, and for
    its result. Everything else is FedAvg's, under the same names (fraction_train, min_train_nodes, ...);
    evaluation is FedAvg's own. The sampled clients must be at least the task's quorum.

    `aggregate_train` returns the current arrays plus the mean update, and the clients' train metrics, averaged without
    weights, with `triskele-round`, `triskele-accepted` (public decisions only) and `triskele-weight-total`. A round
    that fails, and one that cannot be waited for, leaves the model as it is, is logged and stands in `failures` by
    Flower's round number. Raises what no further round can mend: ConfigurationError, Forbidden, InvalidUpdate (a model
    that does not fit the task), NotFound (no such task, or it has no rounds left), PartyFault.
    """

    def __init__(
        self,
        *,
        config: str | os.PathLike[str],
        task: str,
        transport: Transport = "direct",
        reader: str | os.PathLike[str] | None = None,
        round_timeout: float = 600.0,
        retries: RetryPolicy = DEFAULT_RETRIES,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.failures: dict[int, TriskeleError] = {}
        self._server = FrameworkServer.from_config(config, retries=retries)
        if transport not in ("direct", "tunnel"):
            raise ConfigurationError(f"transport {transport!r} is neither 'direct' nor 'tunnel'")
        if transport == "tunnel" and not self._server.forwards:
            raise ConfigurationError("transport 'tunnel' needs a forwarder's configuration; a reader may not forward")
        self._reader = self._server if reader is None else FrameworkServer.from_config(reader, retries=retries)
        self._task = task
        self._transport = transport
        self._round_timeout = round_timeout
        self._next = RoundNumber(1)
        self._terms: Terms | None = None
        self._arrays = ArrayRecord()
        self._admitted: dict[int, Admitted] = {}

    def __repr__(self) -> str:
        return f"TriskeleStrategy(task={self._task!r}, transport={self._transport!r})"

    def summary(self) -> None:
        """Flower's log lines at the start, and ours."""
        _log.info("TriskeleStrategy: task %s, transport %s", self._task, self._transport)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages with the Triskele round in the config; in the tunnel, to the nodes that were enrolled."""
        self._terms, self._arrays = None, arrays
        if self.fraction_train == 0.0:
            return []
        try:
            spec, view = self._open_round(arrays)
        except (Unavailable, TimeoutError) as error:
            self._failed(server_round, error)
            return []
        terms = Terms("direct", spec, view.round)
        config.update(terms.to_config())
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self._transport == "tunnel":
            messages = self._enrolled(terms, messages, arrays, config, grid)
        if len(messages) < view.quorum:
            _log.warning(
                "round %d: %d clients train, but its quorum is %d: it will wait for its deadline",
                view.round,
                len(messages),
                view.quorum,
            )
        self._terms = terms
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The current arrays plus the round's mean update; None for arrays if the round gave none."""
        valid, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        terms = self._terms
        if terms is None or not valid:
            return None, None
        metrics = self._client_metrics(valid)
        try:
            if self._transport == "tunnel":
                bring(self._server, terms, self._admitted, valid)
            view, aggregate = self._reader.aggregate(terms.task, terms.round, self._round_timeout)
        except (RoundFailed, Unavailable, TimeoutError) as error:
            self._failed(server_round, error)
            return None, metrics
        metrics["triskele-round"] = int(terms.round)
        metrics["triskele-weight-total"] = int(aggregate.weight_total)
        if view.decisions_public:
            metrics["triskele-accepted"] = len(view.accepted_slots)
        return moved(self._arrays, aggregate.mean), metrics

    def _open_round(self, arrays: ArrayRecord) -> tuple[TaskSpec, RoundView]:
        """The task and its next open round, that no earlier train round of Flower's has used."""
        spec = self._server.task(self._task)
        self._reader.check_may_read(spec)
        floats = trained(arrays)
        if not floats:
            raise InvalidUpdate("the model has no arrays of floating point")
        flatten(floats)[1].check_fits(spec)
        view = self._server.wait_open(spec, self._next, self._round_timeout)
        self._next = RoundNumber(view.round + 1)
        return spec, view

    def _enrolled(
        self, terms: Terms, messages: list[Message], arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Train messages for the sampled nodes that could be enrolled, each with its own slot."""
        nodes = [message.metadata.dst_node_id for message in messages]
        asked = enrol_messages(Terms("enrol", terms.task, terms.round), nodes, self.configrecord_key)
        replies = grid.send_and_receive(messages=asked, timeout=self._round_timeout)
        self._admitted = admit(self._server, terms, replies)
        certificates = self._server.sealing_certificates
        train = []
        for node, who in self._admitted.items():
            slotted = Terms("tunnel", terms.task, terms.round, who.enrolment.slot, certificates)
            own = ConfigRecord({**config, **slotted.to_config()})
            content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: own})
            train.append(Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node))
        return train

    def _client_metrics(self, replies: list[Message]) -> MetricRecord:
        """The clients' train metrics as FedAvg averages them; clients whose metrics do not match end no round."""
        contents = [RecordDict(dict(reply.content.metric_records)) for reply in replies]
        try:
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        except (KeyError, ValueError, TypeError, StopIteration, ZeroDivisionError) as error:
            _log.warning("the clients' train metrics cannot be averaged (%s); they are left out", type(error).__name__)
            return MetricRecord()
        return MetricRecord(dict(metrics or {}))

    def _failed(self, server_round: int, error: TriskeleError | TimeoutError) -> None:
        typed = error if isinstance(error, TriskeleError) else Unavailable(f"no answer in time: {error}")
        _log.error("round %d: the model stays as it is: %s: %s", server_round, type(typed).__name__, typed)
        self.failures[server_round] = typed
