"""Each of the five participants submits one update and gets the aggregate back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from triskele import Participant


def take_part(config: Path) -> str:
    """One participant, with its own certificate. Really it is a process on its own machine."""
    with Participant.from_config(config) as me:
        noise = np.random.default_rng(int(me.id[1:])).normal(scale=0.01, size=650)
        update = 0.1 + noise  # honest participants roughly agree on where to go
        if me.id == "p04":
            update = -10 * update  # this one wants the opposite, and shouts
        this_round = next(me.rounds("digits"))  # waits until one is open
        submitted = this_round.submit(update)
        aggregate = submitted.result()  # waits for the three parties
        verdict = "accepted" if submitted.accepted else "refused"
        return f"{me.id} round {this_round.number}: {verdict}, mean of the aggregate {aggregate.mean():+.3f}"


if __name__ == "__main__":
    configs = sorted(Path("federation/participants").glob("*/participant.toml"))
    with ThreadPoolExecutor(len(configs)) as pool:
        print(*pool.map(take_part, configs), sep="\n")
