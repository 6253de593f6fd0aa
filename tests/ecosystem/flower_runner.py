"""Runs a Flower app in Flower's Simulation Runtime and records all of it. Runs in Flower's own environment.

    python flower_runner.py APP_DIR OUT_DIR RUN_CONFIG_JSON [MOD ...]

The runtime is Flower's (LinkState, Grid, ServerApp thread, ClientApp calls); only the pool of workers is threads in
place of Ray's actors, and every message crosses it as Flower's wire bytes. OUT_DIR gets, beside the process's log:

    wire-up.bin, wire-down.bin   the bytes of every message to and from clients
    server.bin                   every train and evaluate reply as the ServerApp gets it, as wire bytes
    learnt.npz                   what the app's train function gave, per client and round: received and new arrays
    replies.jsonl                their metrics, and how many arrays are in each of their ArrayRecords
    result.json, model.npz       metrics by round, final model

MOD: names of Flower's mods that are put after (name) or before (-name) those of the app.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
import tomllib
import types
from pathlib import Path

import numpy as np

NODES = 8
RAY = "flwr.server.superlink.fleet.vce.backend.raybackend"


class Recorder:
    """Files of one run, written from any thread."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.learnt: dict[str, np.ndarray] = {}
        self.here = threading.local()  # partition, round and received arrays of the message worked on
        self._lock = threading.Lock()

    def append(self, name: str, data: bytes) -> None:
        with self._lock, (self.out / name).open("ab") as file:
            file.write(data)

    def note_learnt(self, weights: list[np.ndarray]) -> None:
        stem = f"{self.here.round}-{self.here.partition}"
        if self.here.training:
            self.learnt[f"{stem}-received"] = self.here.received
            self.learnt[f"{stem}-new"] = np.concatenate([w.ravel() for w in weights])


def thread_backend(recorder: Recorder) -> type:
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.server.superlink.fleet.vce.backend.backend import Backend

    class ThreadBackend(Backend):
        def __init__(self, backend_config) -> None:
            super().__init__(backend_config)

        def build(self, app_fn) -> None:
            self.app = app_fn()

        @property
        def num_workers(self) -> int:
            return NODES

        def is_worker_idle(self) -> bool:
            return True

        def terminate(self) -> None:
            pass

        def process_message(self, message, context):
            down = message_to_proto(message).SerializeToString()
            recorder.append("wire-down.bin", down)
            received = message_from_proto(ProtoMessage.FromString(down))
            config = next(iter(received.content.config_records.values()))
            recorder.here.training = message.metadata.message_type == "train"
            recorder.here.round = config.get("server-round", 0)
            recorder.here.partition = context.node_config["partition-id"]
            for record in received.content.array_records.values():
                recorder.here.received = np.concatenate([a.ravel() for a in record.to_numpy_ndarrays()])
            reply = self.app(received, context)
            up = message_to_proto(reply).SerializeToString()
            recorder.append("wire-up.bin", up)
            parsed = message_from_proto(ProtoMessage.FromString(up))
            if not reply.has_error():  # carry on with what crossed the wire, under the reply's own metadata
                reply._content = parsed.content
            return reply, context

    return ThreadBackend


def record_server(recorder: Recorder) -> None:
    """Write down every reply as the Grid hands it to the ServerApp."""
    from flwr.common.serde import message_to_proto
    from flwr.superlink.grid import InMemoryGrid

    pull = InMemoryGrid.pull_messages

    def pull_messages(self, message_ids):
        messages = list(pull(self, message_ids))
        for message in messages:
            recorder.append("server.bin", message_to_proto(message).SerializeToString())
            if message.has_error():
                continue
            metrics = {k: v for record in message.content.metric_records.values() for k, v in record.items()}
            arrays = {name: len(record) for name, record in message.content.array_records.items()}
            recorder.append("replies.jsonl", json.dumps({"metrics": metrics, "arrays": arrays}).encode() + b"\n")
        return messages

    InMemoryGrid.pull_messages = pull_messages


def main() -> None:
    app_dir, out, overrides, mods = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
    sys.path.insert(0, str(app_dir))
    from flwr.app import Context, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.clientapp import mod as flower_mods
    from flwr.common.config import get_fused_config_from_dir
    from flwr.serverapp.strategy import FedAvg

    simulation = importlib.import_module("flwr.simulation.run_simulation")
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supercore.telemetry import EventType

    recorder = Recorder(out)
    fake = types.ModuleType(RAY)
    fake.RayBackend = thread_backend(recorder)
    sys.modules[RAY] = fake
    record_server(recorder)
    results = []
    start = FedAvg.start

    def recorded_start(self, grid, *args, **kwargs):
        # FedAvg's default is content with two nodes, and would begin without the rest.
        while len(list(grid.get_node_ids())) < NODES:
            time.sleep(0.1)
        if before:  # fixedclipping_mod of Flower 1.42 sends this error to its own node: the ServerApp waits in vain
            kwargs["timeout"] = 5
        results.append((self, start(with_clipping(self) if mods else self, grid, *args, **kwargs)))
        return results[-1][1]

    FedAvg.start = recorded_start
    before = [getattr(flower_mods, m[1:]) for m in mods if m.startswith("-")]
    after = [getattr(flower_mods, m) for m in mods if not m.startswith("-")]
    create = ClientApp.__init__
    ClientApp.__init__ = lambda self, client_fn=None, mods=None: create(
        self, client_fn, [*before, *(mods or []), *after]
    )
    components = tomllib.loads((app_dir / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]["components"]
    if not mods:  # inside all of the app's own: what its train function gives
        after = [lambda message, context, call_next: recorded_reply(recorder, call_next(message, context))]
    client_module = importlib.import_module(components["clientapp"].partition(":")[0])
    server_module = importlib.import_module(components["serverapp"].partition(":")[0])
    if mods:
        get_weights = client_module.get_weights

        def recorded_weights(model):
            weights = get_weights(model)
            recorder.note_learnt(weights)
            return weights

        client_module.get_weights = recorded_weights

    run = Run.create_empty(run_id=1)
    run.primary_task_id, run.federation_id, run.override_config = 1, NOOP_FEDERATION_ID, overrides
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    run_config = get_fused_config_from_dir(app_dir, overrides)
    simulation._run_simulation(
        num_supernodes=NODES,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_module.app,
        server_app=server_module.app,
        backend_name="threads",
        backend_config={"client_resources": {}, "init_args": {}},
        server_app_context=Context(1, 0, {}, RecordDict(), run_config),
        app_dir=str(app_dir),
        is_app=True,
        run=run,
    )
    strategy, result = results[-1]
    np.savez(out / "learnt.npz", **recorder.learnt)
    np.savez(out / "model.npz", *(result.arrays.to_numpy_ndarrays() if result.arrays else []))
    summary = {
        "train": {n: dict(r) for n, r in result.train_metrics_clientapp.items()},
        "evaluate": {n: dict(r) for n, r in result.evaluate_metrics_clientapp.items()},
        "failures": {n: f"{type(e).__name__}: {e}" for n, e in getattr(strategy, "failures", {}).items()},
    }
    (out / "result.json").write_text(json.dumps(summary))


def recorded_reply(recorder: Recorder, reply):
    if not reply.has_error():
        for arrays in reply.content.array_records.values():
            recorder.note_learnt(arrays.to_numpy_ndarrays())
    return reply


def with_clipping(strategy):
    """Flower's own wrapper, which tells fixedclipping_mod the norm; its noise is next to nothing here."""
    from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping

    return DifferentialPrivacyClientSideFixedClipping(
        strategy, noise_multiplier=1e-9, clipping_norm=0.05, num_sampled_clients=NODES
    )


if __name__ == "__main__":
    main()
