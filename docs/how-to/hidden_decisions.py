import numpy as np

from triskele_server.simulate import simulate

random = np.random.default_rng(0)
updates = 1 + random.normal(scale=0.1, size=(10, 50))
updates[0] *= -10  # poisoned

public = simulate(updates, rule="flame")
hidden = simulate(updates, rule="flame", decisions="hidden")
root = simulate(updates, rule="fltrust", root=9)

assert not public.accepted[0]
assert hidden.accepted is None  # nobody is told, not even the parties
assert np.allclose(hidden.aggregate, public.aggregate, atol=0.01)
assert [name for name, _ in hidden.openings] == ["valid", "enough_accepted", "aggregate"]
assert root.aggregate.mean() > 0.9  # row 9 is trusted to point the way, and is not averaged
