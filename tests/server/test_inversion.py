"""The evidence of docs/privacy-evidence.md can come out either way: the attack works, and shares give it nothing."""

from __future__ import annotations

import numpy as np
import pytest

from triskele_server.demo.faces import PIXELS, load_photos, to_image
from triskele_server.demo.inversion import LEARNING_RATE, inversions, rebuilt, seen_by_a_party, similarity
from triskele_server.demo.model import initial_params, local_update, to_vector


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return to_image(load_photos()[3, 2])


@pytest.fixture(scope="module")
def update(photo: np.ndarray) -> np.ndarray:
    """What one participant would send after one step on one photograph."""
    rng = np.random.default_rng(3)
    given = initial_params(rng), photo[None], np.array([3])
    return to_vector(local_update(*given, epochs=1, lr=LEARNING_RATE, rng=rng, batch_size=None))


def test_the_plain_update_gives_the_face_away(photo, update):
    assert rebuilt(update, photo)[0] > 0.99


def test_what_one_party_saw_gives_no_more_than_random_words(photo, update):
    rng = np.random.default_rng(4)
    guesses = [rebuilt(rng.normal(size=update.size), photo)[0] for _ in range(8)]
    seen = [rebuilt(view, photo)[0] for view in seen_by_a_party(update, float(np.linalg.norm(update)))]
    assert max(seen) < max(guesses) + 3 * np.std(guesses) + 0.02
    assert max(seen) < 0.2


def test_similarity_is_1_of_the_same_image_in_any_light_and_low_of_noise_and_of_other_faces(photo):
    assert similarity(photo, 3 * photo + 7) == pytest.approx(1)
    assert similarity(photo, -photo) < 0
    assert similarity(photo, np.random.default_rng(1).normal(size=PIXELS)) < 0.15
    assert similarity(photo, to_image(load_photos()[20, 0])) < 0.6


def test_a_mean_still_shows_the_face_and_noise_takes_it_away():
    photo, found = inversions(load_photos(), trials=2, cohorts=(2,), multipliers=(1.0,))
    scores = {one.attacker: one.mean for one in found}
    assert list(scores) == [
        "guess: somebody else's photograph",
        "guess: random words",
        "the plain update",
        "all that one party and the coordinator saw",
        "the mean of 2",
        "the mean of 2, noise multiplier 1",
    ]
    assert scores["the plain update"] > 0.99
    assert scores["the mean of 2"] > 0.9
    assert max(scores[name] for name in list(scores)[3::2]) < scores["guess: somebody else's photograph"]
    assert all(len(one.similarities) == 2 for one in found)
    assert similarity(found[2].image, photo) == pytest.approx(found[2].similarities[0])
