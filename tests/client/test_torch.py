"""PyTorch models: what is sent, what stays, and that the aggregate lands where it belongs."""

import numpy as np
import pytest
import torch
from torch import nn

from triskele import InvalidUpdate
from triskele import torch as federated
from triskele.structure import flatten
from triskele.task import TaskSpec


class Net(nn.Module):
    """A convolution with BatchNorm, an attention-like pair of low-rank matrices, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.lora_a = nn.Linear(36, 2, bias=False)
        self.lora_b = nn.Linear(2, 36, bias=False)
        self.head = nn.Linear(36, 3)
        self.register_buffer("mask", torch.ones(36, dtype=torch.bool))

    def forward(self, images):
        features = nn.functional.avg_pool2d(self.norm(self.conv(images)), 2).flatten(1)
        return self.head(features + self.lora_b(self.lora_a(features)) * self.mask)


@pytest.fixture
def spec():
    return TaskSpec("faces", federated.dimension(seeded()), 4.0)


def seeded(seed=0):
    torch.manual_seed(seed)
    return Net()


def train(model, seed, steps=3):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        images = torch.randn(8, 1, 8, 8, generator=generator) + seed
        labels = torch.randint(0, 3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return optimizer


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_two_participants_end_with_the_same_parameters_and_each_with_its_own_buffers(federation, join):
    federation.coordinator.show(1, "OPEN")
    models = [seeded(), seeded()]
    starts = [federated.snapshot(model) for model in models]
    before = parameters(models[0])
    handles = []
    for seed, (name, model, start) in enumerate(zip(["alice", "bob"], models, starts, strict=True)):
        train(model, seed)
        handles.append(federated.submit(join(name).round("faces", 1), model, start))
    trained = [parameters(model) for model in models]
    buffers = [{n: b.clone() for n, b in model.named_buffers()} for model in models]
    federation.coordinator.release(1, federation.sum_of_uploads(), 2)
    for model, start, handle in zip(models, starts, handles, strict=True):
        federated.apply(model, start, handle.result(timeout=20))
    for name, then in before.items():
        mean = then + sum(t[name] - then for t in trained) / 2
        assert torch.equal(models[0].get_parameter(name), models[1].get_parameter(name))
        assert (models[0].get_parameter(name) - mean).abs().max() < 1e-5
    assert not torch.equal(models[0].head.weight, before["head.weight"])
    for model, own in zip(models, buffers, strict=True):
        assert all(torch.equal(b, own[n]) for n, b in model.named_buffers())
    assert not torch.equal(models[0].norm.running_mean, models[1].norm.running_mean)
    assert models[0].norm.num_batches_tracked.dtype is torch.int64


def test_update_has_names_shapes_and_order_of_the_parameters_and_no_buffer():
    model = seeded()
    start = federated.snapshot(model)
    train(model, 1)
    update = federated.update_of(model, start)
    assert list(update) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert update[name].shape == parameter.shape
        assert update[name].dtype is torch.float32
        assert not update[name].requires_grad
    assert len(flatten(update)[0]) == start.dimension == federated.dimension(model)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("head.*", {"head.weight", "head.bias"}),
        ("*lora_*", {"lora_a.weight", "lora_b.weight"}),
        (["*lora_*", "head.bias"], {"lora_a.weight", "lora_b.weight", "head.bias"}),
        (lambda name: name.startswith("conv"), {"conv.weight", "conv.bias"}),
        (iter(["head.bias", "norm.*"]), {"head.bias", "norm.weight", "norm.bias"}),
    ],
)
def test_only_selects_parameters_and_apply_leaves_the_rest_alone(only, expected):
    model = seeded()
    start = federated.snapshot(model, only=only)
    before = parameters(model)
    train(model, 1)
    after = parameters(model)
    update = federated.update_of(model, start)
    assert set(update) == expected
    federated.apply(model, start, {name: torch.ones_like(value) for name, value in update.items()})
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] + 1 if name in expected else after[name])


def test_frozen_base_stays_at_home_without_being_named():
    model = seeded()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora" in name
    assert set(federated.snapshot(model).tensors) == {"lora_a.weight", "lora_b.weight"}
    assert federated.dimension(model) == 2 * 72


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_model_keeps_its_dtype_and_small_changes_of_narrow_ones_are_not_lost(dtype):
    model = nn.Linear(3, 2).to(dtype)
    start = federated.snapshot(model)
    with torch.no_grad():
        model.weight += 0.25
    update = federated.update_of(model, start)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert {value.dtype for value in update.values()} == {wide}
    expected = model.weight.detach().clone()
    federated.apply(model, start, dict(update))
    assert model.weight.dtype is dtype
    assert torch.equal(model.weight, expected)
    assert flatten(start.like)[1].dimension == 8


def test_tied_weights_are_sent_once_under_the_first_name_that_is_chosen():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    assert list(federated.snapshot(model).tensors) == ["embedding.weight"]
    start = federated.snapshot(model, only="head.*")
    assert list(start.tensors) == ["head.weight"]
    federated.apply(model, start, {"head.weight": torch.ones(5, 4)})
    assert torch.equal(model["embedding"].weight, start.tensors["head.weight"] + 1)


def test_wrappers_of_torch_do_not_change_names():
    model = seeded()
    names = list(federated.snapshot(model).tensors)
    assert list(federated.snapshot(nn.DataParallel(model)).tensors) == names
    assert list(federated.snapshot(torch.compile(model)).tensors) == names


def test_optimizer_goes_on_with_the_applied_parameters():
    model = seeded()
    start = federated.snapshot(model)
    optimizer = train(model, 0)
    federated.apply(model, start, federated.update_of(model, start))
    held = optimizer.param_groups[0]["params"]
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_parameters_without_entries_are_left_out():
    model = nn.Linear(3, 2)
    model.empty = nn.Parameter(torch.zeros(0))
    assert list(federated.snapshot(model).tensors) == ["weight", "bias"]


def changed_shape(model):
    model.head.weight = nn.Parameter(torch.zeros(2, 36))


def changed_dtype(model):
    model.conv.double()


def removed(model):
    del model.lora_a


def added(model):
    model.extra = nn.Linear(2, 2)


def diverged(model):
    with torch.no_grad():
        model.norm.weight[2] = torch.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_shape, r"head.weight: shape \(3, 36\) at the snapshot, \(2, 36\) now"),
        (changed_dtype, "conv.weight: torch.float32 at the snapshot, torch.float64 now"),
        (removed, "lora_a.weight: was in the model"),
        (added, "extra.weight: is to be federated now"),
        (diverged, "norm.weight: has NaN or Inf"),
    ],
)
def test_update_of_a_model_that_does_not_fit_its_snapshot_names_the_parameter(change, message):
    model = seeded()
    start = federated.snapshot(model)
    change(model)
    with pytest.raises(InvalidUpdate, match=message):
        federated.update_of(model, start)


def test_state_dict_is_no_snapshot_because_it_changes_with_the_model():
    model = seeded()
    with pytest.raises(InvalidUpdate, match="before training"):
        federated.update_of(model, model.state_dict())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("head.bias"), "head.bias: is not in the aggregate"),
        (lambda a: a.update(other=torch.zeros(1)), "other: is in the aggregate"),
        (lambda a: a.update({"conv.bias": torch.zeros(5)}), r"conv.bias: shape \(5,\)"),
    ],
)
def test_aggregate_that_does_not_fit_changes_nothing(spoil, message):
    model = seeded()
    start = federated.snapshot(model)
    aggregate = {name: torch.ones_like(value) for name, value in start.tensors.items()}
    spoil(aggregate)
    with pytest.raises(InvalidUpdate, match=message):
        federated.apply(model, start, aggregate)
    assert all(torch.equal(p, start.tensors[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("model", "only", "message"),
    [
        (nn.Linear(2, 2), "hed.*", r"only='hed.\*' matches no parameter; the model has weight, bias"),
        (nn.Linear(2, 2), [], "only is empty"),
        (nn.Linear(2, 2), lambda _: False, "selects no parameter"),
        (nn.Linear(2, 2).requires_grad_(False), None, "no parameter with requires_grad"),
        (nn.Linear(2, 2, dtype=torch.complex64), None, "weight: torch.complex64 cannot be averaged"),
        (nn.Linear(2, 2, device="meta"), None, "weight: is sparse or has no values"),
        (nn.LazyLinear(2), None, "weight: has no shape yet"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name_before_training(model, only, message):
    with pytest.raises(InvalidUpdate, match=message):
        federated.snapshot(model, only=only)


def test_snapshot_shows_no_parameter():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(0.123456)
    assert "0.1234" not in repr(federated.snapshot(model))


def test_late_participant_adds_the_aggregates_it_missed(federation, join):
    model = seeded()
    start = federated.snapshot(model)
    released = {name: torch.full_like(value, 0.5) for name, value in start.like.items()}
    words = np.rint(flatten(released)[0] / 4.0 * 2**20).astype(np.int64)
    federation.coordinator.show(1, "EXPIRED")
    federation.coordinator.release(2, words, 1)
    federation.coordinator.show(3, "OPEN")
    missed = list(join("late").aggregates("faces", like=start.like))
    assert [number for number, _ in missed] == [2]
    for _, aggregate in missed:
        federated.apply(model, start, aggregate)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, start.tensors[name] + 0.5, atol=1e-5)
