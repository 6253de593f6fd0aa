"""The ServerApp: federated averaging."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from digits.task import create_model, get_weights
from triskele.flower import TriskeleStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    nodes = int(context.run_config["min-nodes"])
    triskele = {"config": context.run_config["triskele-server"], "transport": context.run_config["triskele-transport"]}
    triskele["reader"] = context.run_config["triskele-reader"] or None
    strategy = TriskeleStrategy(
        **triskele, task="digits", min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_weights(create_model())),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
