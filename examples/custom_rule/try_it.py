"""The installed rule in a real round, three parties in threads: ten updates, the first twenty times too long."""

import numpy as np

from triskele_server.simulate import simulate

updates = np.random.default_rng(0).normal(size=(10, 50))
updates[0] *= 20
result = simulate(updates, rule="shortest", rule_options={"count": 5})
norms = np.linalg.norm(updates, axis=1)
for i in np.argsort(norms):
    print(f"update {i}: norm {norms[i]:6.2f}  {'accepted' if result.accepted[i] else 'not selected'}")
exact = updates[result.accepted].mean(0)
agrees = np.allclose(result.aggregate, exact, atol=1e-3)  # 2^-20 of the clip norm per entry, which is 130 here
print(f"aggregate is the mean of the accepted: {agrees}; opened: {', '.join(name for name, _ in result.openings)}")
