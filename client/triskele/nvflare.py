"""NVFLARE: a filter for the sites and an aggregator for the server, in place of plaintext aggregation.

    recipe = NumpyFedAvgRecipe(..., aggregator=TriskeleAggregator("face-model"))
    recipe.add_client_output_filter(TriskeleFilter("face-model"), tasks=["train"])

A site's update leaves it as shares for the three parties; what goes to the NVFLARE server is a marker that says which
round the update went to. The server waits for that round's aggregate and adds it to the global model. NVFLARE's round 0
is the Triskele round `first_round` of the task, and so on: one task per job, or another `first_round`.

What is aggregated is every floating array of the global model that `exclude_vars` does not name; the others (counters,
masks) stay at the server as they are. A job does not carry Triskele's code: sites and server run what they installed.
Tested with NVFLARE 2.9.0.
"""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from triskele.errors import (
    ConfigurationError,
    Conflict,
    InvalidTask,
    InvalidUpdate,
    NotFound,
    Unavailable,
    WrongState,
)
from triskele.participant import Participant
from triskele.round import Round
from triskele.structure import flatten

try:
    import numpy as np
    from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
    from nvflare.apis.shareable import Shareable, make_reply
    from nvflare.apis.utils.task_utils import contains_lazy_download_ref, materialize_lazy_download_refs
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
    from nvflare.app_common.abstract.model import ModelLearnableKey
    from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
    from nvflare.app_common.app_constant import AppConstants
except ImportError as error:
    raise ConfigurationError(
        f"triskele.nvflare needs NVFLARE 2.9 ({error.name or 'a module'} is missing): pip install 'triskele[nvflare]'"
    ) from error

__all__ = ["TriskeleAggregator", "TriskeleFilter"]

MARKER: Final = "triskele_round"  # the one entry of a marker: the number of the round that the update went to
SITE_FILE: Final = "{WORKSPACE}/local/triskele/participant.toml"  # NVFLARE puts in its workspace, of each site its own
_RECEIVED: Final = "triskele_received"
_LOOK_SECONDS: Final = 5.0  # how often a waiting server looks whether the job was aborted


@dataclass(frozen=True)
class _Received:
    """What a site was asked to train: NVFLARE's round, and its own copy of the weights that are aggregated."""

    round: int
    weights: Mapping[str, Any] = field(repr=False)


class TriskeleFilter(DXOFilter):  # type: ignore[misc]  # nvflare ships no types
    """Submits a site's update through Triskele and lets nothing of it through to the NVFLARE server.

    A task result filter for the sites. Of a result it takes the weight difference, or the weights minus those received
    before training, and blocks until the three parties hold it. On it goes a marker: no arrays, sample count 1, none of
    the result's headers and metadata. The true NUM_STEPS_CURRENT_ROUND is the secret weight if the task is weighted.
    Whatever it does not know how to replace it refuses, so that NVFLARE sends an error code and nothing else.

    task: name of the Triskele task. participant: path of the site's participant.toml; NVFLARE replaces {SITE_NAME} and
    {WORKSPACE}. exclude_vars: regular expression as in FedAvg, the same on both sides. keep_metrics: let numbers among
    the metrics through (model selection needs them; they say something about the site's data). open_timeout: seconds to
    wait for the round to open.

    In a site's privacy.json it stands among task_data_filters as well: only a job's own filters are told of events.
    """

    def __init__(
        self,
        task: str,
        participant: str = SITE_FILE,
        first_round: int = 1,
        exclude_vars: str | None = None,
        *,
        keep_metrics: bool = False,
        open_timeout: float = 600.0,
    ) -> None:
        super().__init__([DataKind.WEIGHTS, DataKind.WEIGHT_DIFF], None)
        self.task = task
        self.participant = participant
        self.first_round = _checked_first_round(first_round)
        self.exclude_vars = _checked_pattern(exclude_vars)
        self.keep_metrics = keep_metrics
        self.open_timeout = open_timeout

    def add_to_fed_job(self, job: Any, ctx: Any, **kwargs: Any) -> None:
        """As any filter; and keep the code that shares secrets out of the job, which would bring its own to a site."""
        job.set_app_packages(sorted({*job.job.app_packages, "triskele"}))
        super().add_to_fed_job(job, ctx, **kwargs)

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        """Keep the weights that come with a task: the training script may change the arrays that it is handed."""
        if event_type == EventType.BEFORE_TASK_EXECUTION:
            self._remember(fl_ctx.get_prop(FLContextKey.TASK_DATA), fl_ctx)

    def process(self, shareable: Any, fl_ctx: Any) -> Any:
        """The marker in place of a result. Raises InvalidUpdate, WrongState, NotFound, ConfigurationError, Unavailable.

        As a task data filter it passes the task on unchanged.
        """
        if fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.IN:
            self._remember(shareable, fl_ctx)
            return shareable
        code = shareable.get_return_code()
        if code != ReturnCode.OK:
            return make_reply(code)  # a failed result has nothing to say beyond its code
        try:
            dxo = from_shareable(shareable)
        except ValueError as error:
            raise InvalidUpdate("the result is no DXO, so it cannot be kept from the server") from error
        if dxo.data_kind == DataKind.METRICS:
            return DXO(DataKind.METRICS, _numbers(dxo.data)).to_shareable()
        if dxo.data_kind not in self.data_kinds or not dxo.data:
            raise InvalidUpdate(
                f"a result of kind {dxo.data_kind} with {len(dxo.data)} entries cannot be aggregated; "
                "send weights or a weight difference, and name the training task in the filter's `tasks`"
            )
        received = fl_ctx.get_prop(_RECEIVED)
        if received is None:
            raise ConfigurationError(
                "the received weights are not known: put TriskeleFilter into task_data_filters of privacy.json too, "
                "and name the training task in the filter's `tasks`"
            )
        marker = self._apply_filter(dxo, shareable, fl_ctx)
        reply = marker.to_shareable()  # a new one: headers of the result do not pass either
        reply.set_return_code(ReturnCode.OK)
        reply.set_header(AppConstants.CURRENT_ROUND, received.round)
        return reply

    def process_dxo(self, dxo: Any, shareable: Any, fl_ctx: Any) -> Any:
        """Submit the DXO's update; the marker."""
        submitted = set(dxo.data) == {MARKER}  # by the site's own TriskeleFilter, which comes before the job's
        number = int(dxo.data[MARKER]) if submitted else self._submit(dxo, fl_ctx)
        meta: dict[str, Any] = {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        metrics = dxo.get_meta_prop(MetaKey.INITIAL_METRICS)
        if self.keep_metrics and metrics:
            meta[MetaKey.INITIAL_METRICS] = _numbers(metrics)
        return DXO(DataKind.WEIGHT_DIFF, {MARKER: number}, meta)

    def _submit(self, dxo: Any, fl_ctx: Any) -> int:
        """Number of the round that the three parties hold the update for."""
        received = fl_ctx.get_prop(_RECEIVED)
        number = self.first_round + int(received.round)
        update = _update(dxo, received.weights)
        with Participant.from_config(self.participant) as me:
            target = _opened(me, self.task, number, self.open_timeout)
            weight = _weight(dxo) if target.task.weighted else None
            try:
                target.submit(update, weight=weight)
            except Conflict:
                # a site that was started again trains to other bytes; what it sent before stands and counts
                self.log_warning(fl_ctx, f"round {number} of {self.task!r} has an update of this site already")
        return number

    def _remember(self, task_data: Any, fl_ctx: Any) -> None:
        if fl_ctx.get_prop(_RECEIVED) is not None or not isinstance(task_data, Shareable):
            return
        number = task_data.get_header(AppConstants.CURRENT_ROUND)
        if number is None:
            return  # a task that is no round of training; its result is refused should it hold weights
        if contains_lazy_download_ref(task_data):  # a script in a process of its own: the weights are not here yet
            task_data = materialize_lazy_download_refs(task_data, fl_ctx.get_engine().get_cell())
        try:
            weights = from_shareable(task_data).data
        except ValueError:
            return
        chosen = _chosen(weights, self.exclude_vars)
        kept = _Received(int(number), {name: copy.deepcopy(chosen[name]) for name in chosen})
        fl_ctx.set_prop(_RECEIVED, kept, private=True, sticky=False)


class TriskeleAggregator(ModelAggregator):  # type: ignore[misc]  # nvflare ships no types
    """Waits for a Triskele round in place of adding up results; for FedAvg and its recipes.

    task, first_round and exclude_vars as in `TriskeleFilter`, the same on both sides. participant: path of a
    participant.toml of the server's own; only participants may fetch an aggregate. It submits nothing, takes no slot
    and does not count towards the quorum. timeout: seconds to wait for the aggregate once all sites have answered.

    A result that is not a marker is never used: its site has no TriskeleFilter, which is logged as an error.
    """

    def __init__(
        self,
        task: str,
        participant: str = SITE_FILE,
        first_round: int = 1,
        exclude_vars: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        super().__init__()
        self.task = task
        self.participant = participant
        self.first_round = _checked_first_round(first_round)
        self.exclude_vars = _checked_pattern(exclude_vars)
        self.timeout = timeout
        self._metrics: list[Mapping[str, float]] = []
        self._sites: list[str] = []

    def reset_stats(self) -> None:
        """Start a round. Raises InvalidTask before anybody trains if the model does not fit the task."""
        self._sites, self._metrics = [], []
        with Participant.from_config(self.participant) as me:
            _check_task(me, self.task, flatten(self._arrays())[1].dimension)

    def accept_model(self, model: Any) -> None:
        """Note that a site has submitted; never raises, so that no site can stop the others."""
        site = model.meta.get("client_name", "?")
        if not isinstance(model.params, Mapping) or set(model.params) != {MARKER}:
            self.error(f"{site} sent its update in plain text: it has no TriskeleFilter. The update is not used.")
            return
        self._sites.append(site)
        if isinstance(model.metrics, Mapping):
            self._metrics.append(model.metrics)

    def aggregate_model(self) -> Any:
        """The aggregate of the round as a weight difference, once it is released.

        Raises ConfigurationError if no site submitted, RoundFailed with reason and who if the round ends without a
        result, Unavailable after `timeout` seconds, and what `Participant` raises.
        """
        if not self._sites:
            raise ConfigurationError("no site submitted through Triskele: add TriskeleFilter to the sites' results")
        current = int(self.fl_ctx.get_prop(AppConstants.CURRENT_ROUND))
        number = self.first_round + current
        with Participant.from_config(self.participant) as me:
            difference = self._ended(me, number).aggregate(self._arrays())
        self.info(f"round {number} of {self.task!r} released; {len(self._sites)} sites had submitted")
        self._sites, metrics = [], _mean_metrics(self._metrics)
        return FLModel(ParamsType.DIFF, difference, metrics=metrics, current_round=current)

    def _arrays(self) -> dict[str, Any]:
        """The global model's arrays that are aggregated."""
        model = self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
        if not model:
            raise ConfigurationError("the controller shows no global model; use NVFLARE's FedAvg or ScatterAndGather")
        return _chosen(model[ModelLearnableKey.WEIGHTS], self.exclude_vars)

    def _ended(self, me: Participant, number: int) -> Round:
        """The round once it has ended."""
        until = time.monotonic() + self.timeout
        while (remaining := until - time.monotonic()) > 0:
            signal = self.fl_ctx.get_run_abort_signal()
            if signal is not None and signal.triggered:
                raise WrongState("the job was aborted")
            try:
                with me.watch(self.task, from_round=number, timeout=min(remaining, _LOOK_SECONDS)) as views:
                    if any(view.round == number and view.ended for view in views):
                        return me.round(self.task, number)
            except TimeoutError:
                continue
            raise NotFound(f"task {self.task!r} is finished and had no round {number}; give it more rounds")
        raise Unavailable(f"round {number} of {self.task!r} did not end within {self.timeout:g} s")


def _checked_first_round(first_round: int) -> int:
    if isinstance(first_round, bool) or not isinstance(first_round, int) or first_round < 1:
        raise ConfigurationError("first_round is the number of a Triskele round, from 1")
    return first_round


def _checked_pattern(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigurationError(f"exclude_vars {pattern!r} is not a regular expression ({error})") from error
    return pattern


def _chosen(weights: Mapping[str, Any], exclude_vars: str | None) -> dict[str, Any]:
    """The arrays that are aggregated: the floating ones that `exclude_vars` is not found in the name of."""
    excluded = re.compile(exclude_vars) if exclude_vars else None
    chosen = {
        name: value
        for name, value in weights.items()
        if _is_floating(value) and not (excluded and excluded.search(name))
    }
    if not chosen:
        raise InvalidUpdate(f"none of the model's {len(weights)} arrays is a floating one that is not excluded")
    return chosen


def _is_floating(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind == "f"
    asked = getattr(value, "is_floating_point", None)  # a torch tensor's method
    return bool(callable(asked) and asked())


def _update(dxo: Any, received: Mapping[str, Any]) -> dict[str, Any]:
    """The update by name, in the shapes of the received weights; raises InvalidUpdate naming the array."""
    update = {}
    for name, before in received.items():
        after = dxo.data.get(name)
        if after is None or tuple(np.shape(after)) != tuple(before.shape):
            found = "is missing" if after is None else f"has shape {tuple(np.shape(after))}"
            raise InvalidUpdate(f"{name}: {found} in the result, the global model has shape {tuple(before.shape)}")
        update[name] = after if dxo.data_kind == DataKind.WEIGHT_DIFF else after - before
    return update


def _weight(dxo: Any) -> int:
    steps = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
    if steps is None or isinstance(steps, bool) or int(steps) != steps:
        raise InvalidUpdate(
            f"the task is weighted: give the number of examples as meta[{MetaKey.NUM_STEPS_CURRENT_ROUND!r}]"
        )
    return int(steps)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are plain finite numbers; an array among metrics could be the model."""
    numbers = (int, float, np.integer, np.floating)
    return {str(name): float(v) for name, v in metrics.items() if isinstance(v, numbers) and math.isfinite(v)}


def _mean_metrics(reports: list[Mapping[str, float]]) -> dict[str, float] | None:
    """The plain mean of each metric over the sites that reported it, None without any."""
    clean = [_numbers(report) for report in reports]
    names = {name for report in clean for name in report}
    means = {name: float(np.mean([report[name] for report in clean if name in report])) for name in sorted(names)}
    return means or None


def _check_task(me: Participant, task: str, dimension: int) -> None:
    spec = next((view.spec for view in me.tasks() if view.name == task), None)
    if spec is None:
        raise NotFound(f"the coordinator has no task {task!r}; it has: {[view.name for view in me.tasks()]}")
    if spec.entries != dimension:
        raise InvalidTask(
            f"task {task!r} has dimension {spec.entries}, but the model has {dimension} floating entries "
            "that are not excluded"
        )


def _opened(me: Participant, task: str, number: int, timeout: float) -> Round:
    """The round once it exists; whether it still takes updates `submit` says."""
    try:
        with me.watch(task, from_round=number, timeout=timeout) as views:
            if any(view.round == number for view in views):
                return me.round(task, number)
    except TimeoutError as error:
        raise Unavailable(f"round {number} of {task!r} did not open within {timeout:g} s") from error
    raise NotFound(f"task {task!r} is finished and had no round {number}; give it more rounds, or set first_round")
