import numpy as np

from triskele import Participant

model = {"coef": np.zeros((10, 64)), "intercept": np.zeros(10)}

with Participant.from_config("participant.toml") as me:
    for round in me.rounds("linear"):
        trained = {name: array + 0.1 for name, array in model.items()}  # your training
        update = {name: trained[name] - model[name] for name in model}
        change = round.submit(update).result()
        model = {name: model[name] + change[name] for name in model}

    # One that joins late adds up what it missed, in the form of its own model:
    missed = {name: np.zeros_like(array) for name, array in model.items()}
    for _number, aggregate in me.aggregates("linear", like=model):
        missed = {name: missed[name] + aggregate[name] for name in missed}
    assert all(np.allclose(missed[name], model[name]) for name in model)
