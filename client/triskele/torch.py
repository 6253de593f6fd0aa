"""Updates of PyTorch models: what training changed, sent, and the aggregate put back into the same model.

    from triskele import Participant
    from triskele import torch as federated

    with Participant.from_config("participant.toml") as me:
        for round in me.rounds("face-model"):
            start = federated.snapshot(model)          # before training; only="*lora_*" for a part of the model
            train(model)
            submitted = federated.submit(round, model, start)
            federated.apply(model, start, submitted.result())

Every participant begins with the same parameters (load the same file, or build the model from the same seed) and then
stays equal to the others, because each adds the same aggregates. One that joins late adds those it missed:

    for number, aggregate in me.aggregates("face-model", like=start.like):
        federated.apply(model, start, aggregate)
        start = federated.snapshot(model)

What travels:

- Parameters only. Without `only` those that are trained (`requires_grad`), so a frozen base stays at home. With `only`
  the parameters whose name matches, trained or not: a pattern as for file names (`head.*`, `*lora_*`), several of
  them, or a function of the name. Names are those of `named_parameters`, without the prefixes that `torch.compile`
  and `DataParallel` put in front. A tensor shared by two layers (tied weights) is sent once.
- Buffers stay local: the running means and variances of BatchNorm describe a participant's own data (Li et al. 2021,
  FedBN), and counters such as `num_batches_tracked` have no mean. Whoever wants one set of statistics uses GroupNorm or
  LayerNorm, or runs some data of its own through the final model in training mode.
- Differences are taken in float32, of float64 parameters in float64; float16 and bfloat16 models are fine and keep
  their type. Complex, sparse and quantised parameters are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias

from triskele.errors import InvalidUpdate
from triskele.round import Round, SubmittedUpdate
from triskele.upload import Progress

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError("triskele.torch needs PyTorch: pip install 'triskele[torch]'") from error

__all__ = ["Only", "Snapshot", "apply", "dimension", "snapshot", "submit", "update_of"]

Only: TypeAlias = str | Iterable[str] | Callable[[str], bool]
"""Which parameters: a pattern of names as for files, several patterns, or a function of the name."""

_COMPILED = "_orig_mod."  # what torch.compile puts in front of a module's names
_SHOWN = 4  # names listed in an error


@dataclass(frozen=True)
class Snapshot:
    """Parameters as they were before training: copies by name, in the model's own order. Never printed."""

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    only: Only | None

    @property
    def dimension(self) -> int:
        """How many numbers an update has: the task's `dimension`."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def like(self) -> dict[str, torch.Tensor]:
        """Tensors of the form of an update, for `Round.aggregate` and `Participant.aggregates`; their values are 0."""
        return {name: torch.zeros_like(tensor, dtype=_wide(tensor)) for name, tensor in self.tensors.items()}


def snapshot(model: torch.nn.Module, only: Only | None = None) -> Snapshot:
    """Copy the parameters that are to be federated, on their device. Raises InvalidUpdate as `update_of` does."""
    kept = only if only is None or isinstance(only, str) or callable(only) else tuple(only)  # an iterator lasts once
    return Snapshot({name: p.detach().clone() for name, p in _chosen(model, kept).items()}, kept)


def dimension(model: torch.nn.Module, only: Only | None = None) -> int:
    """How many numbers an update of this model has: the `dimension` to give its task."""
    return sum(parameter.numel() for parameter in _chosen(model, only).values())


def update_of(model: torch.nn.Module, start: Snapshot) -> dict[str, torch.Tensor]:
    """What training changed: parameter minus snapshot, by name, in float32 or float64, on the model's device.

    Raises InvalidUpdate, naming the parameter, if the model's parameters are not those of the snapshot in name, shape
    or dtype, if one has NaN or Inf, or if one cannot be sent.
    """
    update = {}
    for name, now, then in _matched(model, start):
        change = now.detach().to(_wide(then)) - then.to(now.device, _wide(then))
        if not bool(torch.isfinite(change).all()):
            raise InvalidUpdate(f"{name}: has NaN or Inf entries after training; lower the learning rate")
        update[name] = change
    return update


def submit(
    round: Round,  # noqa: A002  the field's own word
    model: torch.nn.Module,
    start: Snapshot,
    *,
    weight: int | None = None,
    clip: bool = True,
    progress: Progress | None = None,
) -> SubmittedUpdate:
    """Submit what training changed since `start`; raises as `update_of` and `Round.submit`.

    With asyncio: `await round.async_submit(update_of(model, start))`.
    """
    return round.submit(update_of(model, start), weight=weight, clip=clip, progress=progress)


def apply(model: torch.nn.Module, start: Snapshot, aggregate: Mapping[str, torch.Tensor]) -> None:
    """Set the federated parameters to snapshot + aggregate, in place; everything else of the model is left alone.

    `aggregate` is what `SubmittedUpdate.result` gave. Optimizers keep their references. Nothing is changed if anything
    does not fit: raises InvalidUpdate, naming the parameter.
    """
    matched = _matched(model, start)
    unknown = [name for name in aggregate if name not in start.tensors]
    if unknown:
        raise InvalidUpdate(f"{unknown[0]}: is in the aggregate, but not in the snapshot")
    sums = []
    for name, now, then in matched:
        if name not in aggregate:
            raise InvalidUpdate(f"{name}: is not in the aggregate")
        change = aggregate[name]
        if change.shape != then.shape:
            raise InvalidUpdate(f"{name}: shape {tuple(change.shape)} in the aggregate, {tuple(then.shape)} here")
        wide = then.to(now.device, _wide(then)) + change.to(now.device, _wide(then))
        sums.append(wide.to(now.dtype))
    with torch.no_grad():
        for (_, now, _), total in zip(matched, sums, strict=True):
            now.copy_(total)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """The type that differences are taken in."""
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def _matched(model: torch.nn.Module, start: Snapshot) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, parameter now, parameter then; raises InvalidUpdate unless model and snapshot belong together."""
    if not isinstance(start, Snapshot):
        raise InvalidUpdate(
            f"start is {type(start).__name__}; take it with triskele.torch.snapshot(model) before training "
            "(a state_dict would change along with the model)"
        )
    parameters = _parameters(model)
    for name, then in start.tensors.items():
        if name not in parameters:
            raise InvalidUpdate(f"{name}: was in the model at the snapshot, and is not any more")
        now = parameters[name]
        if now.shape != then.shape:
            raise InvalidUpdate(f"{name}: shape {tuple(then.shape)} at the snapshot, {tuple(now.shape)} now")
        if now.dtype != then.dtype:
            raise InvalidUpdate(f"{name}: {then.dtype} at the snapshot, {now.dtype} now")
    added = [name for name in _chosen(model, start.only) if name not in start.tensors]
    if added:
        raise InvalidUpdate(f"{added[0]}: is to be federated now, but was not at the snapshot; take a new one")
    return [(name, parameters[name], then) for name, then in start.tensors.items()]


def _chosen(model: torch.nn.Module, only: Only | None) -> dict[str, torch.Tensor]:
    """The parameters to federate by name, in the model's order, each tensor once and none without entries."""
    parameters = _parameters(model)
    names = _matching(parameters, only)
    chosen: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, parameter in parameters.items():
        if name not in names or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        _check_sendable(name, parameter)
        if parameter.numel():
            chosen[name] = parameter
    if not chosen:
        raise InvalidUpdate(
            "the model has no parameter with requires_grad"
            if only is None
            else "only selects parameters without entries"
        )
    return chosen


def _parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters under their plain names, a shared tensor under each of its names."""
    if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return {n.replace(_COMPILED, ""): parameter for n, parameter in model.named_parameters(remove_duplicate=False)}


def _matching(parameters: Mapping[str, torch.Tensor], only: Only | None) -> set[str]:
    if only is None:
        return {name for name, parameter in parameters.items() if parameter.requires_grad}
    listed = ", ".join(list(parameters)[:_SHOWN]) + (", …" if len(parameters) > _SHOWN else "")
    if callable(only):
        matching = {name for name in parameters if only(name)}
        if not matching:
            raise InvalidUpdate(f"only selects no parameter; the model has {listed}")
        return matching
    matching = set()
    for pattern in [only] if isinstance(only, str) else only:
        found = {name for name in parameters if fnmatchcase(name, pattern)}
        if not found:
            raise InvalidUpdate(f"only={pattern!r} matches no parameter; the model has {listed}")
        matching |= found
    if not matching:
        raise InvalidUpdate("only is empty; leave it out to federate everything that is trained")
    return matching


def _check_sendable(name: str, parameter: torch.Tensor) -> None:
    if torch.nn.parameter.is_lazy(parameter):
        raise InvalidUpdate(f"{name}: has no shape yet; run the model once before the snapshot")
    if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
        raise InvalidUpdate(f"{name}: {parameter.dtype} cannot be averaged; leave it out with only=")
    if parameter.layout is not torch.strided or parameter.device.type == "meta":
        raise InvalidUpdate(f"{name}: is sparse or has no values; only dense parameters can be sent")
