"""What a party's worker holds: nothing that its rounds do not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROUNDS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
from triskele.errors import RoundFailed
from round_parties import round_inputs, rows_around, run_rounds, task
from triskele_server.rules import find, known
for name in known():
    rule = find(name)
    stages = (name, "mean") if rule.kind == "pre_aggregation" else name
    options = {{"num_malicious_nodes": 1}} if "num_malicious_nodes" in rule.options else {{}}
    if name == "multi-krum":
        options["num_nodes_to_select"] = 4
    spec = task(10, stages, rule_options=options, root="p00" if rule.reference == "root" else None)
    for spec in (spec, replace(spec, decisions="hidden")):
        ran = run_rounds(round_inputs(spec, rows_around(6, 10, seed=1)))
        assert all(isinstance(error, RoundFailed) for error in ran.errors.values()), name  # krum's cohort is one
print(*sys.modules)
"""


def test_no_rule_makes_a_worker_load_the_symbolic_mathematics_that_torch_brings():
    """`torch.broadcast_shapes` alone does: 480 modules of sympy, 30 MB."""
    done = subprocess.run([sys.executable, "-c", _ROUNDS], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "torch" in loaded
    assert "sympy" not in loaded
