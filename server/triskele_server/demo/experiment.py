"""Federated training under attack, with the aggregation handed in: a plain average, or Triskele's three parties."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from triskele_server.demo.attacks import ATTACKS, Attack, backdoor_success, poisoned
from triskele_server.demo.faces import ByteArray, FederatedFaces, LabelledImages, federate, hold_back, load_photos
from triskele_server.demo.model import accuracy, from_vector, initial_params, local_update, to_vector

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

PARTICIPANTS: Final = 20
MALICIOUS: Final = 4
ROUNDS: Final = 6
VARIANTS: Final = 12
"""Training images made from one photograph: about 150 images per participant, if there are 20."""
LOCAL_EPOCHS: Final = 10
"""Steps of a participant in one round, each on all its images.

With small batches and few images each, honest updates are mostly noise (mean cosine 0.04 to 0.16 instead of 0.1 to
0.4) and agree no more with each other than with a poisoned one; no rule that compares updates can tell them apart then.
"""
LEARNING_RATE: Final = 0.5
CLIP_NORM: Final = 8.0
"""L2 bound on one submitted update, the same in every round.

Honest updates are longest in the first round (about 3.3) and sink below 2. The bound is well above them, not close:
attackers clipped to honest length before a distance filter would be hidden from it.
"""
ROOT_SHARE: Final = 0.08
"""Fraction of the training images that the root holds; other copies of the same photographs may be a participant's."""

# Streams of the seed: what is drawn for one purpose never depends on how much was drawn for another, so that
# runs which differ in attack or aggregation start from the same model and give everyone the same images.
_SPLIT, _MODEL, _TRAINING, _ATTACK, _ROOT = range(5)


@dataclass(frozen=True, eq=False)
class AggregationOutcome:
    """``aggregate`` float64[d], the mean update; ``accepted`` bool[n], or None where it is not known or not asked."""

    aggregate: NDArray[np.float64]
    accepted: BoolArray | None = None


Aggregate = Callable[[FloatArray, FloatArray], AggregationOutcome]
"""Takes updates float32[n, d], row i from participant i, and the root's update float32[d], which is not averaged.

A secure aggregation clips the rows to CLIP_NORM itself.
"""


@dataclass(frozen=True, eq=False)
class RoundReport:
    """The global model after a round; fractions from 0 to 1. ``backdoor_success`` is None if none was planted."""

    round: int
    accuracy: float
    backdoor_success: float | None
    accepted: BoolArray | None
    honest_accepted: int | None
    malicious_accepted: int | None


def plain_average(updates: FloatArray, root_update: FloatArray) -> AggregationOutcome:
    """Federated averaging without any defence: every row counts, however long."""
    return AggregationOutcome(updates.mean(axis=0, dtype=np.float64))


def train(
    aggregate: Aggregate,
    *,
    attack: str,
    participants: int = PARTICIPANTS,
    malicious: int = MALICIOUS,
    rounds: int = ROUNDS,
    seed: int = 0,
    photos: ByteArray | None = None,
) -> Iterator[RoundReport]:
    """Train for ``rounds`` rounds, the last ``malicious`` participants attacking in each; one report per round.

    ``attack`` is a name in ATTACKS. ``photos`` are those of ``load_photos``, loaded here if not given. The same
    arguments give the same reports. Raises FacesError without the photographs, ValueError for bad arguments.
    """
    if attack not in ATTACKS:
        raise ValueError(f"unknown attack {attack!r}; known: {', '.join(ATTACKS)}")
    if not 0 <= malicious < participants:
        raise ValueError(f"malicious must be from 0 to {participants - 1}, got {malicious}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    photos = load_photos() if photos is None else photos
    dealt = federate(photos, participants=participants, rng=_stream(seed, _SPLIT), variants=VARIANTS)
    faces, root = hold_back(dealt, ROOT_SHARE, _stream(seed, _ROOT))
    return _rounds(aggregate, ATTACKS[attack], faces, root, malicious=malicious, rounds=rounds, seed=seed)


def _rounds(
    aggregate: Aggregate,
    attack: Attack,
    faces: FederatedFaces,
    root: LabelledImages,
    *,
    malicious: int,
    rounds: int,
    seed: int,
) -> Iterator[RoundReport]:
    model = to_vector(initial_params(_stream(seed, _MODEL))).astype(np.float64)
    data = [*_training_sets(attack, faces, malicious), root]
    for number in range(1, rounds + 1):
        trained = _local_updates(model, data, number, seed)
        sent = _attacked(attack, trained[:-1], malicious, _stream(seed, _ATTACK, number))
        outcome = aggregate(sent, trained[-1])
        model += outcome.aggregate
        yield _report(number, attack, model, test=faces.test, accepted=outcome.accepted, malicious=malicious)


def _training_sets(attack: Attack, faces: FederatedFaces, malicious: int) -> list[LabelledImages]:
    honest = len(faces.participants) - malicious
    return [
        poisoned(images) if attack.plants_backdoor and index >= honest else images
        for index, images in enumerate(faces.participants)
    ]


def _local_updates(model: NDArray[np.float64], data: Sequence[LabelledImages], number: int, seed: int) -> FloatArray:
    """What each set's owner trains from the global model in round ``number``, float32[len(data), d]."""
    params = from_vector(model)
    rows = []
    for index, own in enumerate(data):
        rng = _stream(seed, _TRAINING, number, index)
        update = local_update(
            params, own.images, own.labels, epochs=LOCAL_EPOCHS, lr=LEARNING_RATE, rng=rng, batch_size=None
        )
        rows.append(to_vector(update))
    return np.stack(rows)


def _attacked(attack: Attack, updates: FloatArray, malicious: int, rng: np.random.Generator) -> FloatArray:
    if malicious == 0:
        return updates
    honest, own = updates[:-malicious], updates[-malicious:]
    return np.concatenate([honest, attack.forge(honest, own, rng)])


def _report(
    number: int,
    attack: Attack,
    model: NDArray[np.float64],
    *,
    test: LabelledImages,
    accepted: BoolArray | None,
    malicious: int,
) -> RoundReport:
    params = from_vector(model)
    honest = None if accepted is None else len(accepted) - malicious
    return RoundReport(
        round=number,
        accuracy=accuracy(params, test.images, test.labels),
        backdoor_success=backdoor_success(params, test.images, test.labels) if attack.plants_backdoor else None,
        accepted=accepted,
        honest_accepted=None if accepted is None else int(accepted[:honest].sum()),
        malicious_accepted=None if accepted is None else int(accepted[honest:].sum()),
    )


def _stream(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng([seed, *path])
