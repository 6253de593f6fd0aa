"""Whatever happens to the federation, the invariants hold: lists of operations made and shrunk by Hypothesis.

`TRISKELE_SIMULATION_EXAMPLES=2000 pytest --timeout 0 tests/simulation/test_fault_simulation.py` plays more of them, and
other ones every time (`make nightly`).
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings

from .federation import play
from .operations import Setup, lists_of_operations, setups

CI_EXAMPLES = 60
_ASKED = os.environ.get("TRISKELE_SIMULATION_EXAMPLES")


@settings(
    max_examples=int(_ASKED or CI_EXAMPLES),
    derandomize=_ASKED is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
@given(setup=setups(), operations=lists_of_operations)
def test_whatever_happens_the_invariants_hold(made, setup: Setup, operations):
    play(made, setup, operations)
