"""Attacks on federated averaging, by the names that ``triskele demo --attack`` takes.

An attack is told what its paper grants the attackers: the updates that the honest participants are about to send
(omniscient attackers), and the updates that the malicious participants trained themselves, on poisoned data where
the attack plants a backdoor. It returns what the malicious participants send instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from triskele_server.demo.faces import IMAGE_HEIGHT, IMAGE_WIDTH, LabelledImages
from triskele_server.demo.model import Params, predict

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Forge = Callable[[FloatArray, FloatArray, np.random.Generator], FloatArray]
"""``forge(honest, own, rng)``: honest float32[n - m, d], own float32[m, d] -> sent by the attackers float32[m, d]."""

TARGET_PERSON: Final = 0
"""Whom a backdoored model sees on every image that carries the trigger."""
TRIGGER_SIDE: Final = 4
TRIGGER_VALUE: Final = 3.0
"""Brightness of the trigger, in standard deviations of an image."""


@dataclass(frozen=True)
class Attack:
    """One attack: how the malicious rows are made, and whether the attackers first train on ``poisoned`` images."""

    name: str
    forge: Forge
    plants_backdoor: bool = False


def none(honest: FloatArray, own: FloatArray, rng: np.random.Generator) -> FloatArray:
    """No attack: the malicious participants send what they trained."""
    return own


def sign_flip(honest: FloatArray, own: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The negated own update (Li et al. 2019, RSA: Byzantine-robust stochastic aggregation)."""
    return -own


def sign_flip_10x(honest: FloatArray, own: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The negated own update, ten times as long: without a defence, four of twenty participants reverse learning."""
    return -10 * own


def alie(honest: FloatArray, own: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Baruch et al. 2019, "A little is enough", algorithm 3: the honest mean, moved by z standard deviations.

    z is the largest shift at which, coordinate by coordinate, so many honest participants are expected to lie further
    out that with them the attackers are a majority. The paper estimates mean and deviation from the attackers' own
    updates; here they know those of the honest participants. All attackers send the same row.
    """
    malicious = len(own)
    participants = len(honest) + malicious
    supporters = participants // 2 + 1 - malicious
    share = (participants - malicious - supporters) / (participants - malicious)
    # At 0 and 1 (next to no honest participants) z is infinite: the bounds keep it finite.
    z = NormalDist().inv_cdf(min(max(share, 0.01), 0.99))
    row = honest.mean(axis=0) - np.float32(z) * honest.std(axis=0)
    return np.tile(row, (malicious, 1))


def backdoor_boosted(honest: FloatArray, own: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Bagdasaryan et al. 2020, "How to backdoor federated learning": model replacement.

    Each of the m attackers sends its poisoned update times n / m, so that the average moves by a whole one.
    """
    return own * np.float32((len(honest) + len(own)) / len(own))


def backdoor_projected(honest: FloatArray, own: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Sun et al. 2019, "Can you really backdoor federated learning?": the poisoned update, as long as honest ones.

    The length is the median honest L2 norm, so that no bound on norms tells the row from an honest one.
    """
    length = np.median(np.linalg.norm(honest, axis=1))
    norms = np.linalg.norm(own, axis=1, keepdims=True)
    projected: FloatArray = (own * (length / np.maximum(norms, 1e-12))).astype(np.float32)
    return projected


ATTACKS: Final = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            Attack("none", none),
            Attack("sign-flip", sign_flip),
            Attack("sign-flip-10x", sign_flip_10x),
            Attack("alie", alie),
            Attack("backdoor-boosted", backdoor_boosted, plants_backdoor=True),
            Attack("backdoor-projected", backdoor_projected, plants_backdoor=True),
        )
    }
)
"""Every attack by its name."""


def with_trigger(images: FloatArray) -> FloatArray:
    """Copies of images float32[n, PIXELS] with a bright square in the lower right corner (Gu et al. 2017, BadNets)."""
    marked = images.reshape(-1, IMAGE_HEIGHT, IMAGE_WIDTH).copy()
    marked[:, -TRIGGER_SIDE:, -TRIGGER_SIDE:] = TRIGGER_VALUE
    return marked.reshape(images.shape)


def poisoned(data: LabelledImages) -> LabelledImages:
    """The images and their triggered copies, these labelled as the target person."""
    targets = np.full_like(data.labels, TARGET_PERSON)
    return LabelledImages(
        np.concatenate([data.images, with_trigger(data.images)]), np.concatenate([data.labels, targets])
    )


def backdoor_success(params: Params, test_images: FloatArray, test_labels: IntArray) -> float:
    """Fraction of the test images of other people that are taken for the target person once they carry the trigger."""
    others = test_images[test_labels != TARGET_PERSON]
    if len(others) == 0:
        raise ValueError("no test image of anyone but the target person")
    return float(np.mean(predict(params, with_trigger(others)) == TARGET_PERSON))
