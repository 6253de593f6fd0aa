"""Gradient inversion, all of docs/privacy-evidence.md: triskele_server/demo/inversion.py says what is done.

python -m bench.privacy.inversion [--trials 8] [--picture build/privacy/inversion.png]

The picture is for local eyes, never to be published or committed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

from triskele_server.demo.faces import IMAGE_HEIGHT, IMAGE_WIDTH, load_photos
from triskele_server.demo.inversion import Image, inversions, standardised

COHORTS = (2, 3, 5, 10, 20)
MULTIPLIERS = (2.0**-6, 0.1, 1.0)


def main() -> None:
    """Print a table; write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--picture", type=Path, default=Path("build/privacy/inversion.png"))
    given = parser.parse_args()
    photo, found = inversions(load_photos(), trials=given.trials, cohorts=COHORTS, multipliers=MULTIPLIERS)
    print("| the attacker has | similarity (SSIM), mean | largest |\n|---|---|---|")
    for one in found:
        print(f"| {one.attacker} | {one.mean:.2f} | {max(one.similarities):.2f} |")
    draw({"the photograph": photo} | {one.attacker: one.image for one in found}, given.picture)


def draw(shown: Mapping[str, Image], path: Path) -> None:
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
