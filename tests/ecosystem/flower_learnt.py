"""What each client of the example learns in its first round, from the app's own code. Runs in Flower's environment.

    python flower_learnt.py APP_DIR CLIENTS OUT.npz

The first model is zero, so that what a client learns is its update too. OUT.npz: one float64 [650] per client.
"""

import sys
import warnings

import numpy as np

if __name__ == "__main__":
    app, clients, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sys.path.insert(0, app)
    from digits.task import create_model, get_weights, load_data

    learnt = {}
    for client in range(clients):
        model = create_model()
        pixels, labels, _, _ = load_data(client, clients)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in the app: it need not converge
            model.fit(pixels, labels)
        learnt[str(client)] = np.concatenate([array.ravel() for array in get_weights(model)])
    np.savez(out, **learnt)
