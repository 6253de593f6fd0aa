"""Federated training of one small network under one attack and one defence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.robustness.attacks import ATTACKS, Attack, Scene, most_deviant
from bench.robustness.data import DATA_SETS, TARGET, DataSet, Federation, flipped, poisoned
from bench.robustness.defences import DEFENCES, Aggregation, Execution
from bench.robustness.network import Network, from_vector, initial_params, loss
from triskele_server.demo.faces import LabelledImages
from triskele_server.demo.model import Params, accuracy, local_update, predict, to_vector

FloatArray = NDArray[np.float32]
Vector = NDArray[np.float64]

MALICIOUS_SHARE: Final = 0.2
JUDGED: Final = 200
"""Training images, of everyone, on which attackers that search for their best row compare candidates."""

# Streams of the seed: runs that differ in attack or defence start from the same model and the same split.
_SPLIT, _MODEL, _TRAINING, _ATTACK = range(4)


@dataclass(frozen=True)
class Cell:
    """One training run of the benchmark."""

    data: str
    participants: int
    defence: str
    attack: str
    seed: int
    rounds: int

    @property
    def malicious(self) -> int:
        """The last so many participants attack."""
        return round(MALICIOUS_SHARE * self.participants)


@dataclass(frozen=True)
class RoundReport:
    """Fractions of test images after a round: recognised; and taken for the target when triggered (or None)."""

    accuracy: float
    backdoor: float | None


def train(cell: Cell, execution: Execution) -> tuple[list[RoundReport], int]:
    """Reports of all rounds, and how many of them failed. Raises InvalidTask for a rule that is refused here."""
    aggregation = Aggregation(DEFENCES[cell.defence], cell.participants, cell.malicious, execution)
    federation = _split(cell.data, cell.participants, cell.seed)
    reports = list(_rounds(cell, DATA_SETS[cell.data], federation, ATTACKS[cell.attack], aggregation))
    return reports, aggregation.failed_rounds


@lru_cache(maxsize=2)
def _split(data: str, participants: int, seed: int) -> Federation:
    """The same images for every attack and defence."""
    return DATA_SETS[data].deal(participants, _stream(seed, _SPLIT))


def _rounds(
    cell: Cell, data: DataSet, federation: Federation, attack: Attack, aggregation: Aggregation
) -> Iterator[RoundReport]:
    network = data.network
    honest = cell.participants - cell.malicious
    sets = [
        *federation.participants[:honest],
        *(_attackers_images(attack, own, data) for own in federation.participants[honest:]),
        federation.root,
    ]
    judged = _judged(attack, data, federation, _stream(cell.seed, _ATTACK))
    model = to_vector(initial_params(network, _stream(cell.seed, _MODEL))).astype(np.float64)
    mimicked: int | None = None
    for number in range(1, cell.rounds + 1):
        rows = _local_updates(model, sets, network, number, cell.seed)
        sent, root = rows[:-1], rows[-1]
        if mimicked is None:
            mimicked = most_deviant(sent[:honest])

        def released(malicious: FloatArray, sent: FloatArray = sent, root: FloatArray = root) -> Vector:
            return aggregation.foreseen(np.concatenate([sent[:honest], malicious]), root)

        def gain(aggregate: Vector, model: Vector = model) -> float:
            after = loss(from_vector(model + aggregate, network), judged)
            return -after if attack.plants_backdoor else after

        scene = Scene(sent[:honest], sent[honest:], released, gain, mimicked)
        forged = attack.forge(scene, _stream(cell.seed, _ATTACK, number))
        model = model + aggregation(np.concatenate([sent[:honest], forged]), root)
        yield _report(from_vector(model, network), attack, data, federation.test)


def _judged(attack: Attack, data: DataSet, federation: Federation, rng: np.random.Generator) -> LabelledImages:
    """Training images on which the attackers measure how well they do."""
    images = np.concatenate([own.images for own in federation.participants])
    labels = np.concatenate([own.labels for own in federation.participants])
    chosen = rng.permutation(len(labels))[:JUDGED]
    if attack.plants_backdoor:
        return LabelledImages(data.trigger(images[chosen]), np.full_like(labels[chosen], TARGET))
    return LabelledImages(images[chosen], labels[chosen])


def _attackers_images(attack: Attack, own: LabelledImages, data: DataSet) -> LabelledImages:
    if attack.data == "flipped":
        return flipped(own, data.network.classes)
    return poisoned(own, data.trigger) if attack.data == "poisoned" else own


def _local_updates(model: Vector, sets: list[LabelledImages], network: Network, number: int, seed: int) -> FloatArray:
    params = from_vector(model, network)
    return np.stack(
        [
            to_vector(
                local_update(
                    params,
                    own.images,
                    own.labels,
                    epochs=network.epochs,
                    lr=network.learning_rate,
                    rng=_stream(seed, _TRAINING, number, index),
                    batch_size=None,
                )
            )
            for index, own in enumerate(sets)
        ]
    )


def _report(params: Params, attack: Attack, data: DataSet, test: LabelledImages) -> RoundReport:
    backdoor = None
    if attack.plants_backdoor:
        others = test.images[test.labels != TARGET]
        backdoor = float(np.mean(predict(params, data.trigger(others)) == TARGET))
    return RoundReport(accuracy(params, test.images, test.labels), backdoor)


def _stream(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng([seed, *path])
