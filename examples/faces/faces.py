"""A face recogniser, four attackers of twenty with a backdoor: plain averaging beside Triskele with FLAME.

`simulate` runs the real round in one process: encoding, sharing, checks and filter in MPC between three threads.
"""

import time

import numpy as np

from triskele_server.demo.experiment import CLIP_NORM, AggregationOutcome, FloatArray, plain_average, train
from triskele_server.simulate import simulate

ROUNDS = 6
ATTACKS = ("backdoor-boosted", "backdoor-projected")


def flame(updates: FloatArray, root_update: FloatArray) -> AggregationOutcome:
    """One secure round. The root's update is for FLTrust; FLAME needs none."""
    result = simulate(updates, rule="flame", clip_norm=CLIP_NORM)
    return AggregationOutcome(result.aggregate, result.accepted)


def main() -> None:
    """Print a line per run: the model after the last round, and which attackers got through in the median round."""
    started = time.monotonic()
    for attack in ATTACKS:
        for name, aggregate in (("plain average", plain_average), ("Triskele, flame", flame)):
            reports = list(train(aggregate, attack=attack, rounds=ROUNDS))
            last = reports[-1]
            line = f"{attack:18} {name:15} accuracy {last.accuracy:6.1%}   backdoor {last.backdoor_success:6.1%}"
            if last.accepted is not None:
                through = np.mean([r.malicious_accepted for r in reports])
                honest = np.mean([r.honest_accepted for r in reports])
                line += f"   accepted per round: {honest:.1f} of 16 honest, {through:.1f} of 4 malicious"
            print(line, flush=True)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
