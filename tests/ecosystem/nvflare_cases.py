"""What the filter and the aggregator do, case by case, without a federation: run by the Python that has NVFLARE.

Prints one JSON object: the name of each case, and null or what went wrong.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.np.recipes import NumpyFedAvgRecipe
from nvflare.private.fed.app.fl_conf import PrivacyConfiger

from triskele import errors
from triskele import nvflare as ours
from triskele.task import TaskSpec

STEPS = "NUM_STEPS_CURRENT_ROUND"
GLOBAL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32), "seen": np.array(7)}
TRAINED = {"w": GLOBAL["w"] + 0.5, "b": GLOBAL["b"] - 1.0, "seen": np.array(9)}


class FakeParticipant:
    """Stands for triskele.Participant: keeps what is submitted, ends the round as it is told to."""

    def __init__(self, *, dimension=8, weighted=True, state="OPEN", blame=None, submit_raises=None, has_round=True):
        self.submitted = []
        self.submit_raises = submit_raises
        self.has_round = has_round
        self.state, self.blame = state, blame
        self.spec = TaskSpec("task", dimension, 16.0, max_weight=1000 if weighted else 0)

    def from_config(self, path):
        self.path = path
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def tasks(self):
        return [SimpleNamespace(name="task", spec=self.spec)]

    def watch(self, task, *, from_round, timeout):
        views = (
            [SimpleNamespace(round=from_round, ended=self.state in {"RELEASED", "FAILED"})] if self.has_round else []
        )
        return Views(views)

    def round(self, task, number):
        return SimpleNamespace(task=self.spec, number=number, submit=self.submit, aggregate=self.aggregate)

    def submit(self, update, *, weight):
        if self.submit_raises is not None:
            raise self.submit_raises
        self.submitted.append((update, weight))

    def aggregate(self, like):
        if self.state == "FAILED":
            raise errors.RoundFailed(*self.blame)
        return {name: np.full_like(array, 0.25) for name, array in like.items()}


class Views(list):
    def __enter__(self):
        return iter(self)

    def __exit__(self, *_):
        pass


def with_participant(**how):
    ours.Participant = FakeParticipant(**how)
    return ours.Participant


def context(**props):
    engine = SimpleNamespace(get_cell=lambda: None, fire_event=lambda event, fl_ctx: None)
    fl_ctx = FLContextManager(engine, "site-1", "job").new_context()
    for key, value in props.items():
        fl_ctx.set_prop(key, value, private=True, sticky=False)
    return fl_ctx


def trained_context(round_number=0, weights=None):
    """As after training: the filter has heard which weights came with the task."""
    task = DXO(DataKind.WEIGHTS, GLOBAL if weights is None else weights).to_shareable()
    task.set_header("current_round", round_number)
    return context(**{FLContextKey.TASK_DATA: task, FLContextKey.FILTER_DIRECTION: FilterKey.OUT})


def result(kind=DataKind.WEIGHTS, data=None, **meta):
    shareable = DXO(kind, TRAINED if data is None else data, {STEPS: 33} | meta).to_shareable()
    shareable.set_return_code(ReturnCode.OK)
    return shareable


def filtered(shareable, fl_ctx=None, **options):
    site = ours.TriskeleFilter("task", "participant.toml", **options)
    fl_ctx = fl_ctx or trained_context()
    site.handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    return site.process(shareable, fl_ctx)


def raised(kind, call, *words):
    try:
        call()
    except kind as error:
        told = str(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")
    assert not [word for word in words if word not in told], told


def case_weights_become_a_difference_and_a_marker():
    me = with_participant()
    reply = filtered(result())
    ((update, weight),) = me.submitted
    assert weight == 33
    assert list(update) == ["w", "b"], "counters stay"
    np.testing.assert_array_equal(update["w"], np.full((2, 3), 0.5))
    np.testing.assert_array_equal(update["b"], [-1.0, -1.0])
    dxo = from_shareable(reply)
    assert dxo.data == {"triskele_round": 1}, dxo.data
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert dxo.meta == {STEPS: 1, "filter_history": ["TriskeleFilter"]}, dxo.meta


def case_a_difference_is_taken_as_it_is():
    me = with_participant()
    filtered(result(DataKind.WEIGHT_DIFF))
    np.testing.assert_array_equal(me.submitted[0][0]["w"], TRAINED["w"])


def case_training_in_place_does_not_make_the_update_zero():
    me = with_participant()
    weights = {name: array.copy() for name, array in GLOBAL.items()}
    site = ours.TriskeleFilter("task", "participant.toml")
    fl_ctx = trained_context(weights=weights)
    site.handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    weights["w"] += 2.0
    site.process(result(data=weights), fl_ctx)
    np.testing.assert_array_equal(me.submitted[0][0]["w"], np.full((2, 3), 2.0))


def case_headers_metadata_and_metrics_of_the_result_do_not_pass():
    with_participant()
    shareable = result(initial_metrics={"loss": 0.123}, secret=TRAINED["w"])
    shareable.set_header("secret", TRAINED["w"])
    shareable["more"] = TRAINED["w"]
    reply = filtered(shareable)
    assert "secret" not in str(reply), reply
    assert "more" not in reply
    assert "0.123" not in str(reply)


def case_metrics_pass_only_as_numbers_and_only_if_asked():
    with_participant()
    metrics = {"loss": 0.5, "model": TRAINED["w"], "bad": float("nan")}
    reply = filtered(result(initial_metrics=metrics), keep_metrics=True)
    assert from_shareable(reply).meta["initial_metrics"] == {"loss": 0.5}
    only = filtered(DXO(DataKind.METRICS, {"accuracy": 1, "model": TRAINED["w"]}).to_shareable())
    assert from_shareable(only).data == {"accuracy": 1.0}


def case_a_round_number_is_shifted_by_first_round():
    with_participant()
    reply = filtered(result(), trained_context(4), first_round=11)
    assert from_shareable(reply).data == {"triskele_round": 15}


def case_exclude_vars_is_the_same_search_as_in_fedavg():
    me = with_participant(dimension=6)
    filtered(result(), exclude_vars="^b$")
    assert list(me.submitted[0][0]) == ["w"]


def case_a_task_data_filter_of_a_site_remembers_without_events():
    me = with_participant()
    site = ours.TriskeleFilter("task", "participant.toml")
    fl_ctx = trained_context()
    task = fl_ctx.get_prop(FLContextKey.TASK_DATA)
    fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.IN, private=True, sticky=False)
    assert site.process(task, fl_ctx) is task
    fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.OUT, private=True, sticky=False)
    ours.TriskeleFilter("task", "participant.toml").process(result(), fl_ctx)  # another instance, as in privacy.json
    assert len(me.submitted) == 1


def case_a_privacy_json_of_the_site_builds_the_filter_on_both_ways():
    filters = [{"path": "triskele.nvflare.TriskeleFilter", "args": {"task": "task", "participant": "/site.toml"}}]
    scope = {"name": "all", "task_data_filters": filters, "task_result_filters": filters}
    with tempfile.TemporaryDirectory() as root:
        for folder in ("local", "startup"):
            (Path(root) / folder).mkdir()
        (Path(root) / "local" / "privacy.json").write_text(
            json.dumps({"format_version": 2, "scopes": [scope], "default_scope": "all"})
        )
        configured = PrivacyConfiger(Workspace(root), names_only=False)
        configured.configure()
    (built,) = configured.scopes
    (incoming,), (outgoing,) = built.task_data_filters["in"], built.task_result_filters["out"]
    assert incoming.participant == outgoing.participant == "/site.toml"


def case_the_sites_own_filter_before_the_jobs_submits_once():
    me = with_participant()
    fl_ctx = trained_context()
    reply = filtered(filtered(result(), fl_ctx), fl_ctx)
    assert len(me.submitted) == 1
    assert from_shareable(reply).data == {"triskele_round": 1}


def case_what_cannot_be_replaced_is_refused():
    me = with_participant()
    collection = DXO(DataKind.COLLECTION, {"a": DXO(DataKind.WEIGHTS, TRAINED)}).to_shareable()
    raised(errors.InvalidUpdate, lambda: filtered(collection), "COLLECTION")
    raised(errors.InvalidUpdate, lambda: filtered(Shareable({"weights": TRAINED})), "no DXO")
    raised(errors.InvalidUpdate, lambda: filtered(result(data={"w": TRAINED["w"]})), "b: is missing")
    raised(errors.InvalidUpdate, lambda: filtered(result(data=TRAINED | {"b": np.ones(3)})), "b: has shape (3,)")
    silent = context(**{FLContextKey.FILTER_DIRECTION: FilterKey.OUT})
    raised(errors.ConfigurationError, lambda: filtered(result(), silent), "privacy.json")
    assert me.submitted == []


def case_a_failed_result_passes_as_its_code_alone():
    with_participant()
    failed = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    failed["partial"] = TRAINED["w"]
    reply = filtered(failed)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "partial" not in reply


def case_the_weight_is_demanded_only_by_a_weighted_task():
    me = with_participant()
    raised(errors.InvalidUpdate, lambda: filtered(result(**{STEPS: None})), STEPS)
    raised(errors.InvalidUpdate, lambda: filtered(result(**{STEPS: 2.5})), STEPS)
    me = with_participant(weighted=False)
    filtered(result(**{STEPS: None}))
    assert me.submitted[0][1] is None


def case_a_second_update_of_a_restarted_site_leaves_the_first_standing():
    with_participant(submit_raises=errors.Conflict("another upload stands"))
    assert from_shareable(filtered(result())).data == {"triskele_round": 1}


def case_a_closed_round_and_a_missing_one_are_errors_of_their_own():
    with_participant(submit_raises=errors.WrongState("round 1 takes no more uploads"))
    raised(errors.WrongState, lambda: filtered(result()), "round 1")
    with_participant(has_round=False)
    raised(errors.NotFound, lambda: filtered(result()), "no round 1")


def aggregator(round_number=0, **options):
    server = ours.TriskeleAggregator("task", "participant.toml", **options)
    model = make_model_learnable(GLOBAL, {})
    server.fl_ctx = context(current_round=round_number, global_model=model)
    server.fl_ctx.get_run_abort_signal = Signal
    return server


def marker(site="site-1", metrics=None):
    return FLModel("DIFF", {"triskele_round": 1}, metrics=metrics, meta={"client_name": site})


def case_the_aggregate_is_a_difference_of_the_floating_arrays():
    with_participant(state="RELEASED")
    server = aggregator(2)
    server.reset_stats()
    for site, loss in (("site-1", 1.0), ("site-2", 3.0)):
        server.accept_model(marker(site, {"loss": loss}))
    model = server.aggregate_model()
    assert model.params_type == "DIFF"
    assert list(model.params) == ["w", "b"]
    np.testing.assert_array_equal(model.params["w"], np.full((2, 3), 0.25))
    assert model.metrics == {"loss": 2.0}
    assert model.current_round == 2


def case_a_task_of_another_size_stops_the_job_before_training():
    with_participant(dimension=9)
    raised(errors.InvalidTask, aggregator().reset_stats, "dimension 9", "8 floating entries")
    other = aggregator()
    other.task = "other"
    raised(errors.NotFound, other.reset_stats, "other", "task")


def case_a_failed_round_is_told_with_reason_and_who():
    with_participant(state="FAILED", blame=("too_few_accepted", "party:1", "3 of 5"))
    server = aggregator()
    server.reset_stats()
    server.accept_model(marker())
    raised(errors.RoundFailed, server.aggregate_model, "too_few_accepted", "party:1")


def case_a_plain_update_is_never_used():
    with_participant(state="RELEASED")
    server = aggregator()
    server.reset_stats()
    server.accept_model(FLModel("FULL", TRAINED, meta={"client_name": "site-1"}))
    raised(errors.ConfigurationError, server.aggregate_model, "TriskeleFilter")


def case_a_round_that_does_not_end_is_unavailable_and_an_abort_is_heeded():
    with_participant(state="OPEN", has_round=True)
    server = aggregator(timeout=0.0)
    server.accept_model(marker())
    raised(errors.Unavailable, server.aggregate_model, "round 1")
    server = aggregator()
    signal = Signal()
    signal.trigger(True)
    server.fl_ctx.get_run_abort_signal = lambda: signal
    server.accept_model(marker())
    raised(errors.WrongState, server.aggregate_model, "aborted")


def case_wrong_options_are_refused_by_name():
    for kind in (ours.TriskeleFilter, ours.TriskeleAggregator):
        raised(errors.ConfigurationError, lambda kind=kind: kind("task", first_round=0), "first_round")
        raised(errors.ConfigurationError, lambda kind=kind: kind("task", exclude_vars="("), "exclude_vars")


def case_a_missing_participant_file_is_named():
    ours.Participant = REAL
    raised(errors.ConfigurationError, lambda: filtered(result()), "participant.toml")


def case_a_job_does_not_carry_the_code_that_shares_secrets():
    recipe = NumpyFedAvgRecipe(
        model=[[0.0]], min_clients=1, num_rounds=1, train_script=__file__, aggregator=ours.TriskeleAggregator("task")
    )
    recipe.add_client_output_filter(ours.TriskeleFilter("task"), tasks=["train"])
    assert "triskele" in recipe._job.job.app_packages


REAL = ours.Participant


def main():
    outcome = {}
    for name, case in inspect.getmembers(sys.modules["__main__"], inspect.isfunction):
        if name.startswith("case_"):
            try:
                case()
                outcome[name] = None
            except Exception:  # noqa: BLE001  whatever it is, it is the case's outcome
                outcome[name] = traceback.format_exc(limit=-3)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
