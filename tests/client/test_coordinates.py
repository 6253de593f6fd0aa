"""Tasks of which a part of the model travels in each round: the same part at everybody, and nothing else of it."""

import numpy as np
import pytest

from triskele import InvalidUpdate, Participant
from triskele.coordinates import positions, spread, taken
from triskele.errors import InvalidTask
from triskele.ids import RoundNumber
from triskele.task import TaskSpec

from .certificates import write_participant
from .test_submission import encoded
from .toy_federation import ToyFederation

PART = TaskSpec("faces", 60, 4.0, model_dimension=1000)


def at(number, spec=PART):
    return positions(spec, RoundNumber(number))


def test_each_run_of_the_model_gives_one_entry():
    bounds = [j * 1000 // 60 for j in range(61)]
    for number in range(1, 50):
        assert all(a <= p < b for p, a, b in zip(at(number), bounds[:-1], bounds[1:], strict=True))


def test_every_entry_has_its_turn_as_often_as_any_other():
    counts = np.zeros(1000)
    rounds = 4000
    for number in range(1, rounds + 1):
        counts[at(number)] += 1
    expected = rounds * 60 / 1000
    assert np.abs(counts - expected).max() < 6 * expected**0.5


def test_rounds_and_tasks_have_parts_of_their_own():
    other = TaskSpec("others", 60, 4.0, model_dimension=1000)
    assert (at(1) == at(2)).mean() < 0.3
    assert (at(1) == at(1, other)).mean() < 0.3
    assert np.array_equal(at(1), at(1, TaskSpec("faces", 60, 4.0, model_dimension=1000)))


@pytest.mark.parametrize(("kept", "model"), [(1, 2), (999, 1000), (1, 1 << 31), (1000, 1 << 31)])
def test_positions_at_the_edges_are_ascending_and_inside(kept, model):
    found = at(7, TaskSpec("faces", kept, 4.0, model_dimension=model))
    assert len(found) == kept
    assert found[0] >= 0
    assert found[-1] < model
    assert np.all(np.diff(found) > 0)


def test_what_was_taken_comes_back_to_its_place_scaled_up_and_the_rest_is_zero():
    update = np.random.default_rng(0).normal(size=1000)
    whole = spread(taken(update, PART, RoundNumber(3)), PART, RoundNumber(3))
    assert np.array_equal(np.flatnonzero(whole), at(3))
    np.testing.assert_allclose(whole[at(3)], update[at(3)] * 1000 / 60, rtol=1e-12)
    everything = TaskSpec("faces", 1000, 4.0)
    assert taken(update, everything, RoundNumber(3)) is update
    assert np.array_equal(at(3, everything), np.arange(1000))


def test_over_the_rounds_the_model_moves_as_if_all_of_it_travelled():
    update = np.random.default_rng(0).normal(size=1000)
    rounds = 2000
    mean = sum(spread(taken(update, PART, RoundNumber(n)), PART, RoundNumber(n)) for n in range(1, rounds + 1)) / rounds
    assert np.abs(mean / update - 1).max() < 6 * (1000 / 60 / rounds) ** 0.5


def test_what_does_not_travel_has_no_part_in_the_submission():
    update = np.random.default_rng(0).normal(size=1000) / 100
    changed = update + 1.0
    changed[at(1)] = update[at(1)]
    one, other = encoded(update, spec=PART), encoded(changed, spec=PART)
    assert len(one.words) == 60
    assert np.array_equal(one.words, other.words)
    assert one.entropy == other.entropy
    assert encoded(update, spec=PART, number=2).entropy != one.entropy


def test_the_clip_norm_is_of_the_part():
    """It is what the parties can check; an update that is long elsewhere only is not shortened."""
    update = np.full(1000, 100.0)
    update[at(1)] = 0.4  # norm 0.4 * sqrt(60) = 3.1
    words = encoded(update, spec=PART, clip=False).words
    assert np.abs(words * 4.0 / 2**20 - 0.4).max() < 2.0**-17
    with pytest.raises(InvalidUpdate, match="norm"):
        encoded(update, spec=PART, number=2, clip=False)


def test_an_update_of_the_parts_length_is_refused():
    with pytest.raises(InvalidUpdate, match=r"\(60,\)"):
        encoded(np.zeros(60), spec=PART)


@pytest.mark.parametrize("model", [1, 59, 60, (1 << 31) + 1, -1, True])
def test_a_model_that_is_not_longer_than_its_part_is_refused(model):
    with pytest.raises(InvalidTask, match="model_dimension"):
        TaskSpec("faces", 60, 4.0, model_dimension=model)


def test_a_round_of_a_part_gives_an_aggregate_of_the_whole_models_form(authority, tmp_path):
    federation = ToyFederation(PART, authority)
    try:
        config = write_participant(tmp_path / "alice", authority, "alice", federation.address)
        federation.coordinator.show(1, "OPEN")
        model = {"w": np.full((30, 30), 0.1, np.float32), "b": np.full(100, 0.2)}
        with Participant.from_config(config) as me:
            current = me.round("faces", 1)
            with pytest.raises(InvalidUpdate, match="task 'faces' has 1000"):
                current.submit(np.zeros(60))
            submitted = current.submit(model)
            words = federation.sum_of_uploads()
            federation.coordinator.release(1, words, 1)
            result = submitted.result(timeout=20)
            late = me.round("faces", 1).aggregate()
        assert len(words) == 60
        flat = np.concatenate([result["b"], result["w"].ravel()])  # by name
        assert np.array_equal(np.flatnonzero(flat), current.positions)
        assert np.abs(flat[current.positions] - np.where(current.positions < 100, 0.2, 0.1) * 1000 / 60).max() < 1e-3
        assert np.allclose(late, flat, atol=1e-6)
    finally:
        federation.close()
