import torch
from torch import nn

from triskele import Participant
from triskele import torch as federated

torch.manual_seed(0)
model = nn.ModuleDict({"base": nn.Linear(8, 16), "head": nn.Linear(16, 2)})

with Participant.from_config("participant.toml") as me:
    for round in me.rounds("head"):
        start = federated.snapshot(model, only="head.*")  # a LoRA adapter: only="*lora_*"
        with torch.no_grad():
            model["head"].weight += 0.01  # training
            model["base"].weight += 1.0  # what is not selected stays at home, changed or not
        submitted = federated.submit(round, model, start)
        federated.apply(model, start, submitted.result())
