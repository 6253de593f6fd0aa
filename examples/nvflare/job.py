"""NVFLARE's FedAvg recipe in its simulator, plain or through Triskele: the lines that differ are marked with "# +"."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvflare.app_common.np.recipes import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv
from recorder import Recorder
from softmax_sites import SHAPE

from triskele.nvflare import TriskeleAggregator, TriskeleFilter  # +

HERE = Path(__file__).parent


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
    recipe.run(SimEnv(num_clients=options.sites, workspace_root=options.workspace))


if __name__ == "__main__":
    main()
