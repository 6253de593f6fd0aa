"""The same federation with PyTorch: a small network with BatchNorm, whose running statistics stay at home."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from triskele import Participant
from triskele import torch as federated

CONFIGS = sorted(Path("federation/participants").glob("*/participant.toml"))
DIGITS = load_digits()
IMAGES = torch.tensor(DIGITS.data / 16, dtype=torch.float32)
LABELS = torch.tensor(DIGITS.target)


def new_model() -> nn.Module:
    """Everybody starts from the same parameters: the same seed, or the same file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Five epochs of plain SGD."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        for batch in torch.arange(len(images)).split(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def take_part(index: int, model: nn.Module) -> list[str]:
    """One participant's training loop; what it prints about each round."""
    images, labels = IMAGES[index:1500:5], LABELS[index:1500:5]
    if index == len(CONFIGS) - 1:
        labels = (labels + 1) % 10
    report = []
    with Participant.from_config(CONFIGS[index]) as me:
        for round in me.rounds("digits-torch"):  # noqa: A001  the field's own word
            start = federated.snapshot(model)
            train(model, images, labels)
            submitted = federated.submit(round, model, start)
            federated.apply(model, start, submitted.result())
            model.eval()
            accuracy = (model(IMAGES[1500:]).argmax(1) == LABELS[1500:]).double().mean()
            verdict = "accepted" if submitted.accepted else "refused"
            report.append(f"{me.id} round {round.number}: own update {verdict}, accuracy of the model {accuracy:.1%}")
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    models = [new_model() for _ in CONFIGS]
    with ThreadPoolExecutor(len(CONFIGS)) as pool:
        for report in pool.map(take_part, range(len(CONFIGS)), models):
            print(*report, sep="\n")
