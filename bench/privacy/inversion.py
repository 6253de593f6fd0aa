"""Gradient inversion: which faces can be rebuilt from an update, from shares, from aggregates with and without noise.

python -m bench.privacy.inversion [--trials 8] [--picture build/privacy/inversion.png]

The worst case for the participant: its update is one step of SGD on one photograph, and the model's first layer is
dense with a bias, so that the attack is exact algebra. The gradient of hidden unit j's weights is the photograph times
the unit's error, that of its bias is the error: their quotient is the photograph (Phong et al. 2018; Zhu et al. 2019
and Geiping et al. 2020 do the same to convolutional nets by optimisation). The attacker tries all 48 units, and the
best of them is counted, which it could not know. Similarity is SSIM (Wang et al. 2004), of standardised images.

The photographs are the ORL faces of the demo; the picture is for local eyes, never to be published or committed.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from triskele.encoding import encode
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest, held_shares
from triskele.keystream import KeyStream
from triskele.privacy import Privacy
from triskele.sharing import ShareContext, expand, heavy_index, split
from triskele_server.demo.faces import (
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    PEOPLE,
    PHOTOS_PER_PERSON,
    PIXELS,
    load_photos,
    to_image,
)
from triskele_server.demo.model import HIDDEN, from_vector, initial_params, local_update, to_vector
from triskele_server.simulate import simulate

Image = NDArray[np.float64]
COHORTS = (2, 3, 5, 10, 20)
MULTIPLIERS = (2.0**-6, 0.1, 1.0)
LEARNING_RATE = 0.1


def standardised(image: NDArray[np.floating]) -> Image:
    """Mean 0, variance 1; an image of one grey as it is."""
    centred = np.asarray(image, np.float64) - np.mean(image)
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
        for k in held_shares(0)
    )
    return [x.astype(np.float64) for x in (first, second, first + second, first - second)]


def main() -> None:
    """Print a table; write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--picture", type=Path, default=Path("build/privacy/inversion.png"))
    given = parser.parse_args()
    rng = np.random.default_rng(7)
    photos = np.stack([to_image(photo) for person in load_photos() for photo in person])
    labels = np.repeat(np.arange(PEOPLE), PHOTOS_PER_PERSON)
    rows: dict[str, list[float]] = {}
    shown: dict[str, Image] = {}

    def record(name: str, found: tuple[float, Image], *, show: bool) -> None:
        rows.setdefault(name, []).append(found[0])
        if show:
            shown[name] = found[1]

    for trial in range(given.trials):
        params = initial_params(rng)
        chosen = rng.choice(len(photos), max(COHORTS), replace=False)
        updates = np.stack(
            [
                to_vector(
                    local_update(params, photos[[i]], labels[[i]], epochs=1, lr=LEARNING_RATE, rng=rng, batch_size=None)
                )
                for i in chosen
            ]
        )
        clip_norm, victim, show = float(np.linalg.norm(updates, axis=1).max()), photos[chosen[0]], trial == 0
        if show:
            shown["the photograph"] = victim.astype(np.float64)
        record(
            "guess: somebody else's photograph", (similarity(photos[chosen[1]], victim), photos[chosen[1]]), show=show
        )
        guesses = [rebuilt(rng.integers(-(1 << 63), 1 << 63, updates.shape[1]).astype(float), victim) for _ in range(4)]
        record("guess: random words", max(guesses, key=lambda pair: pair[0]), show=show)
        record("the plain update", rebuilt(updates[0], victim), show=show)
        views = [rebuilt(view, victim) for view in seen_by_a_party(updates[0], clip_norm)]
        record("all that one party and the coordinator saw", max(views, key=lambda pair: pair[0]), show=show)
        for k in COHORTS:
            for multiplier in (None, *MULTIPLIERS):
                privacy = None if multiplier is None else Privacy(multiplier, 1e-5, 1000.0)
                mean = simulate(updates[:k], clip_norm=clip_norm, privacy=privacy).aggregate
                noise = "" if multiplier is None else f", noise multiplier {multiplier:.2g}"
                record(f"the mean of {k}{noise}", rebuilt(mean, victim), show=show)
    print("| the attacker has | similarity (SSIM), mean | largest |\n|---|---|---|")
    for name, found in rows.items():
        print(f"| {name} | {np.mean(found):.2f} | {np.max(found):.2f} |")
    draw(shown, given.picture)


def draw(shown: dict[str, Image], path: Path) -> None:
    """One small picture for each line of the table, of the first trial."""
    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415  after its backend is chosen

    columns = 7
    figure, axes = pyplot.subplots(-(-len(shown) // columns), columns, figsize=(14, 2.4 * -(-len(shown) // columns)))
    for axis in axes.ravel():
        axis.axis("off")
    for axis, (name, image) in zip(axes.ravel(), shown.items(), strict=False):
        axis.imshow(standardised(image).reshape(IMAGE_HEIGHT, IMAGE_WIDTH), cmap="gray", vmin=-2.5, vmax=2.5)
        axis.set_title(name.replace(", ", "\n").replace(" and ", "\nand "), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
