"""NVFLARE's FedAvg recipe, plain or through Triskele: the lines that differ are marked with "# +".

It runs in NVFLARE's simulator, or with --poc as NVFLARE is deployed: a server and sites as processes of their own.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nvflare.app_common.np.recipes import NumpyFedAvgRecipe
from nvflare.recipe import PocEnv, SimEnv
from recorder import Recorder
from softmax_sites import SHAPE

from triskele.nvflare import TriskeleAggregator, TriskeleFilter  # +

HERE = Path(__file__).parent
POC_SECONDS = 200.0


def main() -> None:
    """Build the job and run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", required=True, help="where the simulator works")
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--malicious", default="site-7,site-8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", help="the Triskele task; without it the job is plain FedAvg")
    parser.add_argument("--participants", help="folder with <site>/participant.toml, and one for 'server'")
    parser.add_argument("--record", help="keep every result as the server got it in this folder")
    parser.add_argument("--poc", action="store_true", help="POC mode: NVFLARE's own processes, with mutual TLS")
    options = parser.parse_args()
    participant = f"{options.participants}/{{SITE_NAME}}/participant.toml"  # NVFLARE puts in the site's name

    recipe = NumpyFedAvgRecipe(
        name="numpy",
        model=[[0.0] * SHAPE[1]] * SHAPE[0],
        min_clients=options.sites,
        num_rounds=options.rounds,
        train_script=str(HERE / "softmax_sites.py"),
        train_args=f"--malicious {options.malicious}",
        aggregator=TriskeleAggregator(options.task, participant) if options.task else None,  # +
    )
    if options.task:
        recipe.add_client_output_filter(TriskeleFilter(options.task, participant), tasks=["train"])  # +
    if options.record:
        recipe.add_server_input_filter(Recorder(options.record), tasks=["train"])
    if not options.poc:
        recipe.run(SimEnv(num_clients=options.sites, workspace_root=options.workspace))
        return
    os.environ["NVFLARE_POC_WORKSPACE"] = options.workspace
    run = recipe.execute(PocEnv(num_clients=options.sites))
    result = run.get_result(timeout=POC_SECONDS, clean_up=False)  # stops the processes in any case, keeps their files
    if result is None:
        raise SystemExit(f"the job did not finish: {run.get_status()}")
    print("result:", result, "status:", run.get_status())


if __name__ == "__main__":
    main()
