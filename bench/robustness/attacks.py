"""The attacks of the benchmark: what the malicious participants send in a round.

The attackers collude and know everything but the parties' secrets: the global model, the updates that the honest
participants are about to send, the rule and its options, and by running the rule in the clear, what it would release.
Those attacks that ``triskele demo`` has too are the demo's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from triskele_server.demo.attacks import ATTACKS as DEMO_ATTACKS

FloatArray = NDArray[np.float32]
Vector = NDArray[np.float64]
Data = Literal["clean", "flipped", "poisoned"]
"""What the attackers train on: their own images, these with flipped labels, or with triggered copies besides."""

IPM_SCALE: Final = 0.5
SCALES: Final = np.geomspace(0.05, 50.0, 13)
"""Coarse steps of a line search over the scale of an attack."""
BLENDS: Final = np.linspace(0.1, 1.0, 7)
"""How much of an adaptive attacker's row is backdoor; the rest is the honest mean."""
LENGTHS: Final = (0.5, 1.0, 2.0, 5.0)
"""Lengths of an adaptive attacker's row, in median honest norms."""
DEVIATIONS: Final = (0.25, 0.5, 1.0, 1.5, 2.0)
"""How many standard deviations an adaptive attacker's coordinate strays from the honest mean at most."""
_REFINEMENTS: Final = 5


@dataclass(frozen=True, eq=False)
class Scene:
    """What the attackers know in a round.

    honest: float32[n - m, d], about to be sent. own: float32[m, d], what the attackers trained on their ``Data``.
    released: rows float32[m, d] -> float64[d], the aggregate of the rule were these sent beside the honest ones.
    gain: aggregate -> how good the model after it is for the attackers: its loss on training images, or for a
        backdoor minus its loss on triggered ones labelled as the target.
    mimicked: index of the honest participant whom mimics copy, chosen from the first round's updates.
    """

    honest: FloatArray
    own: FloatArray
    released: Callable[[FloatArray], Vector]
    gain: Callable[[Vector], float]
    mimicked: int


Forge = Callable[[Scene, np.random.Generator], FloatArray]
"""-> what the attackers send, float32[m, d]."""


@dataclass(frozen=True)
class Attack:
    """One attack; an untargeted one wants a useless model, a backdoor one that sees the target on a trigger."""

    name: str
    forge: Forge
    data: Data = "clean"

    @property
    def plants_backdoor(self) -> bool:
        """Whether the attackers want the trigger to be obeyed."""
        return self.data == "poisoned"


def ipm(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Xie et al. 2020, "Fall of empires", inner-product manipulation: the honest mean times -IPM_SCALE."""
    return _same(scene, -IPM_SCALE * _mean(scene))


def optimised_ipm(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """IPM with the scale, of either sign, after which the very rule's aggregate leaves the worst model."""
    mean = _mean(scene)
    return _most_harmful(scene, lambda scale: _same(scene, -scale * mean))


def optimised_alie(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """ALIE with the number of deviations, of either sign, after which the very rule leaves the worst model."""
    mean, deviation = _mean(scene), _deviation(scene)
    return _most_harmful(scene, lambda scale: _same(scene, mean - scale * deviation))


def min_max(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine": as far as the two most distant honest rows.

    The honest mean minus gamma standard deviations, with the largest gamma at which no honest row is further from it
    than the two most distant honest rows are from each other.
    """
    limit = _squared_distances(scene.honest).max()
    return _shifted(scene, lambda distances: distances.max() <= limit)


def min_sum(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Shejwalkar and Houmansadr 2021: the sum of squared distances to the honest rows is at most an honest row's."""
    limit = _squared_distances(scene.honest).sum(axis=1).max()
    return _shifted(scene, lambda distances: distances.sum() <= limit)


def mimic(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Karimireddy et al. 2022: every attacker copies the same honest participant, so that it counts too much."""
    return _same(scene, scene.honest[scene.mimicked])


def most_deviant(honest: FloatArray) -> int:
    """Whom to mimic: the row with the largest component along the honest rows' direction of greatest variance."""
    centred = honest.astype(np.float64) - honest.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    return int(np.abs(vectors[:, -1]).argmax())


def own_rows(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """What the attackers trained, as it is: the attack is in their data."""
    return scene.own


def backdoor_adaptive(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """The backdoor that the very rule lets through best.

    Every candidate starts from the poisoned update (each attacker's own, or the mean of them): blended with the honest
    mean and scaled to a length, or each coordinate kept near those of the honest rows. The one sent is the one after
    whose aggregate the model obeys the trigger best. The blend stands for training with a penalty on the distance to
    honest updates (Bagdasaryan et al. 2020, constrain and scale; Wang et al. 2020, "Attack of the tails").
    """
    return max(_candidates(scene), key=lambda rows: scene.gain(scene.released(rows)))


def _candidates(scene: Scene) -> Iterator[FloatArray]:
    mean, deviation = _mean(scene), _deviation(scene)
    unit = float(np.median(np.linalg.norm(scene.honest, axis=1)))
    for poison in (scene.own, _same(scene, scene.own.mean(axis=0))):
        for blend in BLENDS:
            rows = blend * poison + (1 - blend) * mean
            lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            yield rows.astype(np.float32)
            for length in LENGTHS:
                yield (rows * (length * unit / lengths)).astype(np.float32)
        for limit in DEVIATIONS:
            yield np.clip(poison, mean - limit * deviation, mean + limit * deviation).astype(np.float32)


def _most_harmful(scene: Scene, rows: Callable[[float], FloatArray]) -> FloatArray:
    """Line search over the scale: coarse steps of both signs, then ever finer ones around the best."""
    gains: dict[float, float] = {}

    def gain(scale: float) -> float:
        if scale not in gains:
            gains[scale] = scene.gain(scene.released(rows(scale)))
        return gains[scale]

    best = max((sign * scale for scale in SCALES.tolist() for sign in (1.0, -1.0)), key=gain)
    step = float(SCALES[1] / SCALES[0])
    for _ in range(_REFINEMENTS):
        step **= 0.5
        best = max((best, best * step, best / step), key=gain)
    return rows(best)


def _shifted(scene: Scene, allowed: Callable[[Vector], bool]) -> FloatArray:
    """Honest mean minus the largest number of standard deviations whose squared distances are allowed (bisection)."""
    mean, deviation = _mean(scene), _deviation(scene)

    def ok(gamma: float) -> bool:
        return allowed(((scene.honest - (mean - gamma * deviation)) ** 2).sum(axis=1))

    low, high = 0.0, 1.0
    while ok(high) and high < 1e6:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if ok(middle) else (low, middle)
    return _same(scene, mean - low * deviation)


def _mean(scene: Scene) -> Vector:
    return np.asarray(scene.honest.mean(axis=0, dtype=np.float64))


def _deviation(scene: Scene) -> Vector:
    return np.asarray(scene.honest.std(axis=0, dtype=np.float64))


def _same(scene: Scene, row: Vector | FloatArray) -> FloatArray:
    return np.tile(row.astype(np.float32), (len(scene.own), 1))


def _squared_distances(rows: FloatArray) -> Vector:
    wide = rows.astype(np.float64)
    gram = wide @ wide.T
    norms = np.diag(gram)
    return np.asarray(np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0))


def _of_demo(name: str) -> Attack:
    attack = DEMO_ATTACKS[name]
    return Attack(
        name,
        lambda scene, rng: attack.forge(scene.honest, scene.own, rng),
        "poisoned" if attack.plants_backdoor else "clean",
    )


ATTACKS: Final = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            _of_demo("none"),
            _of_demo("sign-flip"),
            _of_demo("sign-flip-10x"),
            Attack("ipm", ipm),
            Attack("optimised-ipm", optimised_ipm),
            _of_demo("alie"),
            Attack("optimised-alie", optimised_alie),
            Attack("min-max", min_max),
            Attack("min-sum", min_sum),
            Attack("mimic", mimic),
            Attack("label-flip", own_rows, "flipped"),
            _of_demo("backdoor-boosted"),
            _of_demo("backdoor-projected"),
            Attack("backdoor-adaptive", backdoor_adaptive, "poisoned"),
        )
    }
)
"""Every attack by its name, in the order of the report."""
