"""The ClientApp: train and evaluate on this client's own digits."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import create_model, get_weights, load_data
from triskele.flower import TriskeleMod

app = ClientApp(mods=[TriskeleMod()])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Start from the model that came, train, send the new model back."""
    received = message.content["arrays"].to_numpy_ndarrays()
    model = create_model([array.copy() for array in received])
    pixels, labels, _, _ = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few iterations only: it need not converge
        model.fit(pixels, labels)
    weights = get_weights(model)
    first_malicious = context.node_config["num-partitions"] - context.run_config["malicious"]
    if (
        context.node_config["partition-id"] >= first_malicious
    ):  # attackers: the opposite of what they learnt, five times
        weights = [old - 5 * (new - old) for old, new in zip(received, weights, strict=True)]
    metrics = {"train-accuracy": float(model.score(pixels, labels)), "num-examples": len(labels)}
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model that came on digits that were not trained on."""
    model = create_model(message.content["arrays"].to_numpy_ndarrays())
    _, _, pixels, labels = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    metrics = {"accuracy": float(model.score(pixels, labels)), "num-examples": len(labels)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
