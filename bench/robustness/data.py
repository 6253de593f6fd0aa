"""Handwritten digits and faces, dealt to a federation, with the trigger of a backdoor for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships no types

from bench.robustness.network import Network
from triskele_server.demo.attacks import TARGET_PERSON, with_trigger
from triskele_server.demo.experiment import LEARNING_RATE, LOCAL_EPOCHS, ROOT_SHARE, ROUNDS, VARIANTS
from triskele_server.demo.faces import PEOPLE, PIXELS, LabelledImages, federate, hold_back, load_photos
from triskele_server.demo.model import HIDDEN

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Trigger = Callable[[FloatArray], FloatArray]
"""Images float32[n, pixels] -> copies of them that carry the trigger."""

TARGET: Final = TARGET_PERSON
"""The class that a backdoored model sees on every image that carries the trigger."""

DIGITS: Final = 10
DIGIT_SIDE: Final = 8
DIGIT_TEST_SHARE: Final = 0.2
DIGIT_TRIGGER_VALUE: Final = 2.0
"""Brightness of the trigger, in standard deviations of an image: about that of a digit's ink."""


@dataclass(frozen=True)
class DataSet:
    """What a name on the command line stands for.

    deal: number of participants, randomness -> the federation's images; raises FacesError without the photographs.
    rounds: of training, unless the command line says otherwise.
    """

    name: str
    title: str
    network: Network
    trigger: Trigger
    deal: Callable[[int, np.random.Generator], Federation]
    rounds: int


@dataclass(frozen=True, eq=False)
class Federation:
    """Training images by participant, those of the root participant, and test images that nobody trains on."""

    participants: tuple[LabelledImages, ...]
    root: LabelledImages
    test: LabelledImages


def with_pixel(images: FloatArray) -> FloatArray:
    """Copies of digits float32[n, 64] with one bright pixel in the lower right corner (Gu et al. 2017, BadNets)."""
    return _with_square(images, 1)


def with_square(images: FloatArray) -> FloatArray:
    """Copies of digits float32[n, 64] with four bright pixels there: easier to learn, so it needs smaller updates."""
    return _with_square(images, 2)


def _with_square(images: FloatArray, side: int) -> FloatArray:
    marked = images.reshape(-1, DIGIT_SIDE, DIGIT_SIDE).copy()
    marked[:, -side:, -side:] = DIGIT_TRIGGER_VALUE
    return marked.reshape(images.shape)


def deal_digits(alpha: float, participants: int, rng: np.random.Generator) -> Federation:
    """A fifth of the digits to test, the root's share of the rest to the root, the others by label (see below)."""
    images, labels = _digits()
    order = rng.permutation(len(labels))
    test_count = round(DIGIT_TEST_SHARE * len(labels))
    root_count = round(ROOT_SHARE * (len(labels) - test_count))
    test, root, train = np.split(order, [test_count, test_count + root_count])
    owned = deal_by_label(labels[train], participants, alpha, rng)
    return Federation(
        tuple(LabelledImages(images[train[own]], labels[train[own]]) for own in owned),
        LabelledImages(images[root], labels[root]),
        LabelledImages(images[test], labels[test]),
    )


def deal_by_label(labels: IntArray, participants: int, alpha: float, rng: np.random.Generator) -> list[IntArray]:
    """Indices into ``labels`` by participant: equally many each, every one used at most once.

    Each participant draws the proportions of its labels from a Dirichlet distribution whose parameters are ``alpha``
    on average and in proportion to the labels' frequencies, then its images by these proportions as long as a label
    lasts (Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution"). The participants take
    turns, one image at a time, so that none is left with what the others did not want.
    """
    left = [list(rng.permutation(np.flatnonzero(labels == label))) for label in range(int(labels.max()) + 1)]
    frequencies = np.array([len(indices) for indices in left]) / len(labels)
    wanted = rng.dirichlet(alpha * len(left) * frequencies, size=participants)
    owned: list[list[int]] = [[] for _ in range(participants)]
    for _ in range(len(labels) // participants):
        for own, proportions in zip(owned, wanted, strict=True):
            open_labels = proportions * [bool(indices) for indices in left]
            if open_labels.sum() <= 0:  # all it wants is gone
                open_labels = np.array([float(len(indices)) for indices in left])
            own.append(left[rng.choice(len(left), p=open_labels / open_labels.sum())].pop())
    return [np.array(own, np.int64) for own in owned]


def poisoned(images: LabelledImages, trigger: Trigger) -> LabelledImages:
    """The images and their copies with the trigger, these labelled as the target."""
    targets = np.full_like(images.labels, TARGET)
    return LabelledImages(
        np.concatenate([images.images, trigger(images.images)]), np.concatenate([images.labels, targets])
    )


def flipped(images: LabelledImages, classes: int) -> LabelledImages:
    """Label y becomes classes - 1 - y (Fang et al. 2020, "Local model poisoning attacks")."""
    return replace(images, labels=classes - 1 - images.labels)


@cache
def _digits() -> tuple[FloatArray, IntArray]:
    """Images float32[1797, 64], each of mean 0 and variance 1, and their labels."""
    content = load_digits()
    centred = content.data - content.data.mean(axis=1, keepdims=True)
    return (centred / centred.std(axis=1, keepdims=True)).astype(np.float32), content.target.astype(np.int64)


def deal_faces(participants: int, rng: np.random.Generator) -> Federation:
    """As the demo deals them: every person's images spread over the participants by a Dirichlet distribution."""
    dealt = federate(load_photos(), participants=participants, rng=rng, variants=VARIANTS)
    faces, root = hold_back(dealt, ROOT_SHARE, rng)
    return Federation(faces.participants, root, faces.test)


def deal_people(participants: int, rng: np.random.Generator) -> Federation:
    """All images of a person to one participant; the root's share is taken at random from everyone."""
    if participants > PEOPLE:
        raise ValueError(f"{PEOPLE} people cannot be dealt to {participants} participants")
    together, root = hold_back(federate(load_photos(), participants=1, rng=rng, variants=VARIANTS), ROOT_SHARE, rng)
    (everyone,) = together.participants
    owners = (rng.permutation(PEOPLE) % participants)[everyone.labels]
    owned = (np.flatnonzero(owners == index) for index in range(participants))
    return Federation(
        tuple(LabelledImages(everyone.images[own], everyone.labels[own]) for own in owned), root, together.test
    )


_DIGIT_NETWORK: Final = Network(DIGIT_SIDE**2, 32, DIGITS, epochs=10, learning_rate=0.5)
_FACE_NETWORK: Final = Network(PIXELS, HIDDEN, PEOPLE, epochs=LOCAL_EPOCHS, learning_rate=LEARNING_RATE)

DATA_SETS: Final = MappingProxyType(
    {
        data.name: data
        for data in (
            DataSet("digits-0.5", "Digits, Dirichlet 0.5", _DIGIT_NETWORK, with_pixel, partial(deal_digits, 0.5), 15),
            DataSet("digits-0.1", "Digits, Dirichlet 0.1", _DIGIT_NETWORK, with_pixel, partial(deal_digits, 0.1), 15),
            DataSet("faces", "ORL faces", _FACE_NETWORK, with_trigger, deal_faces, ROUNDS),
            DataSet(
                "faces-alone",
                "ORL faces, each person at one participant",
                _FACE_NETWORK,
                with_trigger,
                deal_people,
                ROUNDS,
            ),
            DataSet(
                "digits-0.5-square",
                "Digits, Dirichlet 0.5, 2x2 trigger",
                _DIGIT_NETWORK,
                with_square,
                partial(deal_digits, 0.5),
                15,
            ),
            DataSet(
                "digits-0.1-square",
                "Digits, Dirichlet 0.1, 2x2 trigger",
                _DIGIT_NETWORK,
                with_square,
                partial(deal_digits, 0.1),
                15,
            ),
        )
    }
)
"""Every data set by its name."""
