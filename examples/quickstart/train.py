"""Five participants train a classifier of handwritten digits with scikit-learn; the labels of the last are wrong.

Each participant is a thread here, with a certificate of its own. Really it is a process on its own machine.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from triskele import Participant

CONFIGS = sorted(Path("federation/participants").glob("*/participant.toml"))
CLASSES = np.arange(10)
IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = IMAGES / 16
TRAIN, TEST = slice(0, 1500), slice(1500, None)


def take_part(index: int) -> list[str]:
    """One participant's training loop; what it prints about each round."""
    images, labels = IMAGES[TRAIN][index :: len(CONFIGS)], LABELS[TRAIN][index :: len(CONFIGS)]
    if index == len(CONFIGS) - 1:
        labels = (labels + 1) % 10
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=0)
    model.partial_fit(images[:1], labels[:1], CLASSES)  # scikit-learn makes its arrays at the first call
    coef, intercept, report = np.zeros((10, 64)), np.zeros(10), []
    with Participant.from_config(CONFIGS[index]) as me:
        for round in me.rounds("digits"):  # noqa: A001  the field's own word
            model.coef_, model.intercept_ = coef.copy(), intercept.copy()
            for _ in range(3):
                model.partial_fit(images, labels)
            submitted = round.submit({"coef": model.coef_ - coef, "intercept": model.intercept_ - intercept})
            change = submitted.result()
            coef, intercept = coef + change["coef"], intercept + change["intercept"]
            model.coef_, model.intercept_ = coef, intercept
            accuracy = model.score(IMAGES[TEST], LABELS[TEST])
            verdict = "accepted" if submitted.accepted else "refused"
            report.append(f"{me.id} round {round.number}: own update {verdict}, accuracy of the model {accuracy:.1%}")
    return report


if __name__ == "__main__":
    with ThreadPoolExecutor(len(CONFIGS)) as pool:
        for report in pool.map(take_part, range(len(CONFIGS))):
            print(*report, sep="\n")
