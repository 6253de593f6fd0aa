"""Gradient inversion: which faces can be rebuilt from an update, from shares, from aggregates with and without noise.

The worst case for the participant: its update is one step of SGD on one photograph, and the model's first layer is
dense with a bias, so that the attack is exact algebra. The gradient of hidden unit j's weights is the photograph times
the unit's error, that of its bias is the error: their quotient is the photograph (Phong et al. 2018; Zhu et al. 2019
and Geiping et al. 2020 do the same to convolutional nets by optimisation). The attacker tries all 48 units, and the
best of them is counted, which it could not know. Similarity is SSIM (Wang et al. 2004), of standardised images.

A short form of it is part of the demo's report; bench/privacy/inversion.py runs all of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from triskele.encoding import encode
from triskele.ids import PARTIES, ParticipantId, RoundNumber, Slot, TaskDigest, held_shares
from triskele.keystream import KeyStream
from triskele.privacy import Privacy
from triskele.sharing import ShareContext, expand, heavy_index, split
from triskele_server.demo.faces import (
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    PEOPLE,
    PHOTOS_PER_PERSON,
    PIXELS,
    ByteArray,
    to_image,
)
from triskele_server.demo.model import HIDDEN, from_vector, initial_params, local_update, to_vector
from triskele_server.simulate import simulate

Image = NDArray[np.float64]
LEARNING_RATE: Final = 0.1


def standardised(image: NDArray[np.floating]) -> Image:
    """Mean 0, variance 1; an image of one grey as it is."""
    centred: Image = np.asarray(image, np.float64) - np.mean(image)
    return centred / max(float(centred.std()), 1e-12)


def similarity(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """SSIM with a Gaussian window of 1.5 pixels, of standardised images cut to 2.5 standard deviations; 1: the same."""
    a, b = ((np.clip(standardised(x), -2.5, 2.5) / 5 + 0.5).reshape(IMAGE_HEIGHT, IMAGE_WIDTH) for x in (one, other))
    mean_a, mean_b = gaussian_filter(a, 1.5), gaussian_filter(b, 1.5)
    var_a, var_b = gaussian_filter(a * a, 1.5) - mean_a**2, gaussian_filter(b * b, 1.5) - mean_b**2
    covariance = gaussian_filter(a * b, 1.5) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    scores = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(scores.mean())


def rebuilt(update: NDArray[np.floating], photo: NDArray[np.floating]) -> tuple[float, Image]:
    """The best similarity to `photo` that any hidden unit's quotient has, and that image."""
    params = from_vector(np.asarray(update, np.float64))
    best = (-1.0, np.zeros(PIXELS))
    for unit in range(HIDDEN):
        error = float(params["hidden.bias"][unit])
        candidate = params["hidden.weight"][:, unit].astype(np.float64) / (error or 1.0)
        found = similarity(candidate, photo)
        best = max(best, (found, candidate), key=lambda pair: pair[0])
    return best


def seen_by_a_party(update: NDArray[np.floating], clip_norm: float) -> list[NDArray[np.float64]]:
    """What party 0 could take for the update: each of its two shares, their sum, their difference, as numbers."""
    slot = Slot(secrets.randbelow(3))
    words = encode(update, clip_norm=clip_norm, rounding=KeyStream(secrets.token_bytes(16)))
    context = ShareContext(TaskDigest(bytes(32)), RoundNumber(1), ParticipantId("victim"))
    sharing = split(words, heavy=heavy_index(slot), context=context, entropy=secrets.token_bytes(32))
    first, second = (
        sharing.heavy_words if k == sharing.heavy else expand(sharing.seeds[k], context, k).words(len(words))
        for k in held_shares(PARTIES[0])
    )
    return [x.astype(np.float64) for x in (first, second, first + second, first - second)]


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """What one attacker made of it: the similarity to the victim's photograph in each trial, the first image."""

    attacker: str
    similarities: tuple[float, ...]
    image: Image

    @property
    def mean(self) -> float:
        """Of the trials."""
        return float(np.mean(self.similarities))


def inversions(
    photos: ByteArray, *, trials: int, cohorts: Sequence[int], multipliers: Sequence[float]
) -> tuple[Image, list[Rebuilt]]:
    """The first trial's photograph, and what each attacker rebuilt, guesses first.

    Aggregates are means of `cohorts` updates, each without noise and with each of the noise multipliers. `photos` are
    those of `load_photos`.
    """
    rng = np.random.default_rng(7)
    images = np.stack([to_image(photo) for person in photos for photo in person])
    labels = np.repeat(np.arange(PEOPLE), PHOTOS_PER_PERSON)
    found: dict[str, list[tuple[float, Image]]] = {}
    victims = []
    for _ in range(trials):
        params = initial_params(rng)
        chosen = rng.choice(len(images), max(cohorts), replace=False)
        updates = np.stack(
            [
                to_vector(
                    local_update(params, images[[i]], labels[[i]], epochs=1, lr=LEARNING_RATE, rng=rng, batch_size=None)
                )
                for i in chosen
            ]
        )
        clip_norm, victim, other = float(np.linalg.norm(updates, axis=1).max()), images[chosen[0]], images[chosen[1]]
        victims.append(victim.astype(np.float64))
        guesses = [rng.integers(-(1 << 63), 1 << 63, updates.shape[1]).astype(float) for _ in range(4)]
        attackers = {
            "guess: random words": guesses,
            "the plain update": [updates[0]],
            "all that one party and the coordinator saw": seen_by_a_party(updates[0], clip_norm),
        }
        for k in cohorts:
            for multiplier in (None, *multipliers):
                privacy = None if multiplier is None else Privacy(multiplier, 1e-5, 1000.0)
                noise = "" if multiplier is None else f", noise multiplier {multiplier:.2g}"
                mean = simulate(updates[:k], clip_norm=clip_norm, privacy=privacy).aggregate
                attackers[f"the mean of {k}{noise}"] = [mean]
        stranger = (similarity(other, victim), other.astype(np.float64))
        found.setdefault("guess: somebody else's photograph", []).append(stranger)
        for attacker, views in attackers.items():
            best = max((rebuilt(view, victim) for view in views), key=lambda pair: pair[0])
            found.setdefault(attacker, []).append(best)
    return victims[0], [
        Rebuilt(attacker, tuple(score for score, _ in best), best[0][1]) for attacker, best in found.items()
    ]
