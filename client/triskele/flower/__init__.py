"""Triskele inside Flower: two changed lines, and no server sees an update any more.

from triskele.flower import TriskeleMod, TriskeleStrategy

app = ClientApp(mods=[TriskeleMod("participant.toml")])                    # in the ClientApp
strategy = TriskeleStrategy(config="reader.toml", task="digits", ...)      # in the ServerApp, instead of FedAvg(...)
"""

try:
    import flwr.serverapp  # noqa: F401  here only to give an error that says what to install
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("triskele.flower needs Flower: pip install 'triskele[flower]'", name="flwr") from error

from triskele.flower.mod import TriskeleMod
from triskele.flower.strategy import TriskeleStrategy

__all__ = ["TriskeleMod", "TriskeleStrategy"]
