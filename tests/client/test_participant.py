"""A participant against a real, if small, federation: rounds, results, and everything that can break in between."""

import threading

import numpy as np
import pytest

from triskele import (
    InvalidTask,
    InvalidUpdate,
    NotFound,
    Participant,
    PartyFault,
    RoundFailed,
    Unavailable,
    WrongState,
)
from triskele.connection import RetryPolicy
from triskele.task import TaskSpec
from triskele_proto.v1 import types_pb2

from .certificates import Authority, write_participant

IMPATIENT = RetryPolicy(attempts=2, total=1.0, first_wait=0.01, longest_wait=0.05, jitter=0.01, outage_attempts=3)


def update(seed=0, norm=1.0):
    vector = np.random.default_rng(seed).normal(size=1500)
    return (vector * (norm / np.linalg.norm(vector))).astype(np.float32)


def test_two_participants_get_the_mean_of_their_updates(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = [join(name).round("faces", 1).submit(update(seed)) for seed, name in enumerate(["alice", "bob"])]
    federation.coordinator.release(
        1, federation.sum_of_uploads(), 2, decisions_public=True, accepted_slots=[0, 1], participants=["alice", "bob"]
    )
    mean = (update(0) + update(1)) / 2
    for one in submitted:
        assert one.accepted is None
        result = one.result(timeout=20)
        assert result.dtype == np.float32
        assert np.abs(result - mean).max() < 4.0 * 2.0**-20
        assert one.accepted is True
        assert one.view.state == "RELEASED"
        assert one.weight_total == 2


def test_result_has_the_structure_of_the_update(federation, join):
    federation.coordinator.show(1, "OPEN")
    model = {"w": update()[:1200].reshape(40, 30), "b": update()[1200:].astype(np.float64)}
    submitted = join().round("faces", 1).submit(model)
    federation.coordinator.release(1, federation.sum_of_uploads(), 1)
    result = submitted.result(timeout=20)
    assert list(result) == ["w", "b"]
    assert result["w"].shape == (40, 30)
    assert result["w"].dtype == np.float32
    assert result["b"].dtype == np.float64
    assert np.abs(result["w"] - model["w"]).max() < 4.0 * 2.0**-20


def test_coefficient_bits_scale_the_total_weight(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(update())
    federation.coordinator.release(1, federation.sum_of_uploads() * 8 << 4, 8, coefficient_bits=4)
    assert np.abs(submitted.result(timeout=20) - update()).max() < 4.0 * 2.0**-20


def test_rounds_yields_each_open_round_once_and_ends_with_the_task(federation, join):
    coordinator = federation.coordinator
    coordinator.show(1, "EXPIRED")
    coordinator.show(2, "OPEN")
    seen = []
    for round_ in join().rounds("faces"):
        seen.append(round_.number)
        coordinator.show(round_.number, "FAILED", blame=types_pb2.Blame(reason="test", who="coordinator"))
        if round_.number < 4:
            coordinator.show(round_.number + 1, "OPEN")
        else:
            coordinator.finish()
    assert seen == [2, 3, 4]


def test_rounds_waits_for_a_round_that_opens_later(federation, join):
    timer = threading.Timer(0.3, federation.coordinator.show, (1, "OPEN"))
    timer.start()
    assert next(join().rounds("faces")).number == 1
    timer.join()


def test_waiting_for_a_round_survives_a_restart_of_the_coordinator(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(update())

    def restart():
        federation.stop_coordinator()
        federation.start_coordinator()
        federation.coordinator.release(1, federation.sum_of_uploads(), 1)

    timer = threading.Timer(0.3, restart)
    timer.start()
    result = submitted.result(timeout=30)
    timer.join()
    assert np.abs(result - update()).max() < 4.0 * 2.0**-20


def test_idle_waiting_makes_no_calls(federation, join):
    with join().watch("faces", timeout=0.5) as views, pytest.raises(TimeoutError):
        next(views)
    assert federation.coordinator.watches == 1


def test_watch_shows_a_change_once_even_after_a_reconnection(federation, join):
    federation.coordinator.show(1, "OPEN")
    with join().watch("faces", timeout=30) as views:
        assert next(views).state == "OPEN"
        federation.stop_coordinator()
        federation.start_coordinator()
        federation.coordinator.show(1, "OPEN", uploaded=1)
        view = next(views)
        assert (view.state, view.uploaded) == ("OPEN", 1)
        federation.coordinator.show(1, "FAILED")
        federation.coordinator.finish()
        assert [view.state for view in views] == ["FAILED"]
    assert federation.coordinator.watches == 2


@pytest.mark.parametrize("state", ["FAILED", "EXPIRED"])
def test_round_without_a_result_raises_with_reason_and_who(federation, join, state):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(update())
    federation.coordinator.show(1, state, blame=types_pb2.Blame(reason="sketch_mismatch", who="party:1", detail="x"))
    with pytest.raises(RoundFailed) as caught:
        submitted.result(timeout=20)
    assert (caught.value.reason, caught.value.who, caught.value.detail) == ("sketch_mismatch", "party:1", "x")
    assert submitted.view.state == state


def test_refused_update_is_told_so(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(update())
    federation.coordinator.release(
        1,
        federation.sum_of_uploads(),
        1,
        decisions_public=True,
        refused=[types_pb2.RefusedSubmission(slot=0, participant="alice", reason="norm")],
    )
    submitted.result(timeout=20)
    assert submitted.accepted is False


@pytest.mark.parametrize("spec", [TaskSpec("faces", 1500, 4.0, decisions="hidden")])
def test_hidden_decisions_stay_unknown(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(update())
    federation.coordinator.release(1, federation.sum_of_uploads(), 1, decisions_public=False)
    submitted.result(timeout=20)
    assert submitted.accepted is None


def released(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(update())
    federation.coordinator.release(1, federation.sum_of_uploads(), 1)
    return submitted, *federation.coordinator.result


def test_result_with_one_changed_byte_is_not_used(federation, join):
    submitted, header, data = released(federation, join)
    federation.coordinator.result = header, data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(PartyFault, match="digest"):
        submitted.result(timeout=20)


@pytest.mark.parametrize("change", [b"", b"\0" * 8])
def test_result_of_another_length_is_refused(federation, join, change):
    submitted, header, data = released(federation, join)
    federation.coordinator.result = header, data[:-8] + change * 2
    with pytest.raises(PartyFault, match="bytes of a result"):
        submitted.result(timeout=20)


@pytest.mark.parametrize("field", [{"dimension": 1 << 40}, {"dimension": 1499}, {"digest": b"short"}])
def test_result_with_an_impossible_header_is_refused(federation, join, field):
    submitted, header, _ = released(federation, join)
    for name, value in field.items():
        setattr(header, name, value)
    with pytest.raises(PartyFault):
        submitted.result(timeout=20)


def test_result_times_out(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(update())
    with pytest.raises(TimeoutError):
        submitted.result(timeout=0.2)


def test_submit_to_a_sealed_round_is_wrong_state(federation, join):
    federation.coordinator.show(1, "SEALED")
    with pytest.raises(WrongState):
        join().round("faces", 1).submit(update())


def test_unknown_task_and_round_are_not_found(federation, join):
    with pytest.raises(NotFound, match="faces"):
        join().round("voices", 1)
    with pytest.raises(NotFound):
        join().round("faces", 1)


def test_update_of_another_dimension_is_refused_before_enrolment(federation, join):
    federation.coordinator.show(1, "OPEN")
    with pytest.raises(InvalidUpdate, match=r"bias \(3,\).*1500"):
        join().round("faces", 1).submit({"bias": np.zeros(3)})
    assert federation.coordinator.slots == {}


def test_task_in_another_than_canonical_form_is_refused(federation, join):
    federation.coordinator.canonical += b" "
    with pytest.raises(InvalidTask):
        join().tasks()


def test_task_under_another_name_is_refused(federation, join):
    federation.coordinator.canonical = TaskSpec("voices", 3, 1.0).canonical()
    with pytest.raises(InvalidTask, match="voices"):
        join().tasks()


def test_round_of_another_task_is_refused(federation, join):
    federation.coordinator.show(1, "OPEN")
    federation.coordinator.rounds[1].task_digest = bytes(32)
    with pytest.raises(PartyFault, match="another task"):
        join().round("faces", 1)


def test_impossible_enrolment_is_refused(federation, join):
    federation.coordinator.show(1, "OPEN")
    federation.coordinator.first_slot = 10_000
    with pytest.raises(PartyFault, match="slot"):
        join().round("faces", 1).submit(update())


def test_unreachable_coordinator_is_unavailable(tmp_path, authority):
    config = write_participant(tmp_path / "p", authority, "p", "127.0.0.1:1")
    with Participant.from_config(config, retries=IMPATIENT) as me, pytest.raises(Unavailable):
        me.tasks()


def test_coordinator_of_another_federation_is_not_talked_to(tmp_path, federation):
    config = write_participant(tmp_path / "p", Authority("demo"), "p", federation.address)
    with Participant.from_config(config, retries=IMPATIENT) as me, pytest.raises(Unavailable):
        me.tasks()


def test_a_party_cannot_stand_in_for_another(federation, join):
    federation.coordinator.show(1, "OPEN")
    addresses = federation.coordinator.party_addresses
    addresses[0], addresses[1] = addresses[1], addresses[0]
    me = join()
    with pytest.raises(Unavailable):
        me.round("faces", 1).submit(update())
    assert federation.parties[0].streams == federation.parties[1].streams == 0


def test_closed_participant_says_so(federation, join):
    me = join()
    me.close()
    with pytest.raises(WrongState, match="closed"):
        me.tasks()


def test_representations_hold_no_secrets(federation, join):
    federation.coordinator.show(1, "OPEN")
    me = join()
    round_ = me.round("faces", 1)
    submitted = round_.submit(update())
    assert repr(me) == "Participant('alice')"
    assert "credentials" not in repr(round_)
    assert repr(submitted) == "SubmittedUpdate('faces', round=1, slot=0)"
