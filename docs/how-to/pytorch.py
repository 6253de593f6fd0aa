import torch
from torch import nn

from triskele import Participant
from triskele import torch as federated

torch.manual_seed(0)  # everybody begins with the same parameters: the same seed, or the same file
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
images, labels = torch.randn(64, 8), torch.randint(0, 2, (64,))


def train() -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


print("dimension of the task:", federated.dimension(model))
with Participant.from_config("participant.toml") as me:
    for round in me.rounds("network"):
        start = federated.snapshot(model)
        train()
        submitted = federated.submit(round, model, start, weight=len(images))
        federated.apply(model, start, submitted.result())
        print("round", round.number, "accepted:", submitted.accepted)
