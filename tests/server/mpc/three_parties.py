"""Run a function at three parties in threads, on real sessions; share words, and put shares together again."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from triskele.ids import PARTIES, PartyIndex
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.transport import Frame, ThreadTransport, Transport, thread_transports

SECONDS = 20.0
MIN, MAX = -(1 << 63), (1 << 63) - 1


def random_words(shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform 64-bit words."""
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy(np.frombuffer(secrets.token_bytes(8 * count), np.int64).copy().reshape(shape))


def share(words: Any) -> list[Shares]:
    """Fresh additive shares of int64 words, by party."""
    secret = torch.as_tensor(words, dtype=torch.int64)
    parts = [random_words(tuple(secret.shape)) for _ in range(2)]
    parts.append(secret - parts[0] - parts[1])
    return [Shares(parts[i], parts[(i + 1) % 3]) for i in PARTIES]


def share_bits(bits: Any) -> list[Shares]:
    """Fresh XOR shares of uint8 bits, by party."""
    secret = torch.as_tensor(bits, dtype=torch.uint8)
    parts = [(random_words(tuple(secret.shape)) & 1).to(torch.uint8) for _ in range(2)]
    parts.append(secret ^ parts[0] ^ parts[1])
    return [Shares(parts[i], parts[(i + 1) % 3]) for i in PARTIES]


def _check_replicated(shares: Sequence[Shares]) -> None:
    for i in PARTIES:
        assert torch.equal(shares[i].second, shares[(i + 1) % 3].first), f"share {(i + 1) % 3} differs at its holders"


def reconstruct(shares: Sequence[Shares]) -> torch.Tensor:
    """The shared words; also checks that both holders of each share have the same."""
    _check_replicated(shares)
    return shares[0].first + shares[1].first + shares[2].first


def reconstruct_bits(shares: Sequence[Shares]) -> torch.Tensor:
    """The XOR-shared words."""
    _check_replicated(shares)
    return shares[0].first ^ shares[1].first ^ shares[2].first


def at_three_parties(
    program: Callable[[Session], Any],
    *,
    declared: Sequence[str] = (),
    transports: Sequence[Transport] | None = None,
    errors: dict[int, BaseException] | None = None,
) -> list[Any]:
    """The results of `program` by party; raises the first error, or collects them by party into `errors`."""
    channels = transports if transports is not None else thread_transports(SECONDS)
    results: dict[int, Any] = {}
    failed: dict[int, BaseException] = {}

    def run(party: PartyIndex) -> None:
        try:
            results[party] = program(Session(channels[party], OpeningLedger(declared), b"test"))
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed[party] = error
        finally:
            channels[party].close()

    threads = [threading.Thread(target=run, args=(party,)) for party in PARTIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors is not None:
        errors.update(failed)
    elif failed:
        raise next(iter(failed.values()))
    return [results.get(party) for party in PARTIES]


def on_shares(program: Callable[..., Shares], *inputs: Any) -> torch.Tensor:
    """`program(session, *shares)` on fresh shares of int64 inputs; the reconstructed result."""
    shared = [share(words) for words in inputs]
    return reconstruct(at_three_parties(lambda s: program(s, *(x[s.party] for x in shared))))


def on_bits(program: Callable[..., Shares], *inputs: Any) -> torch.Tensor:
    """The same for a program whose result is XOR-shared."""
    shared = [share(words) for words in inputs]
    return reconstruct_bits(at_three_parties(lambda s: program(s, *(x[s.party] for x in shared))))


def encoded(values: Any, fraction_bits: int) -> torch.Tensor:
    """Numbers as ring words."""
    return (torch.as_tensor(values, dtype=torch.float64) * 2.0**fraction_bits).round().long()


def on_tensors(program: Callable[..., Any], *inputs: tuple[Any, int]) -> Any:
    """`program(*tensors)` on ReplicatedTensors of (words, fraction bits).

    Gives (words, fraction bits) of the result, or a list of them for a list of results.
    """
    shared = [(share(words), bits) for words, bits in inputs]

    def run(session: Session) -> Any:
        return program(*(ReplicatedTensor(x[session.party], session, bits) for x, bits in shared))

    results = at_three_parties(run)
    if isinstance(results[0], list):
        return [_words([r[k] for r in results]) for k in range(len(results[0]))]
    return _words(results)


def _words(tensors: Sequence[ReplicatedTensor]) -> tuple[torch.Tensor, int]:
    assert len({t.fraction_bits for t in tensors}) == 1
    return reconstruct([t.shares for t in tensors]), tensors[0].fraction_bits


def values(result: tuple[torch.Tensor, int]) -> np.ndarray:
    """Words and their fraction bits as float64."""
    words, bits = result
    return words.double().numpy() / 2.0**bits


class Tampering(ThreadTransport):
    """A transport on which `change(peer, frame)` may replace a frame that this party sends (None drops it)."""

    change: Callable[[PartyIndex, Frame], Frame | None] = staticmethod(lambda _, frame: frame)

    def _put(self, peer: PartyIndex, frame: Frame) -> None:
        changed = self.change(peer, frame)
        if changed is not None:
            super()._put(peer, changed)


class Recording(ThreadTransport):
    """A transport that keeps every frame that this party receives, with its sender."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.frames: list[tuple[PartyIndex, Frame]] = []

    def _get(self, peer: PartyIndex, label: str) -> Frame:
        frame = super()._get(peer, label)
        self.frames.append((peer, frame))
        return frame


def transports_of(kind: type[ThreadTransport], seconds: float = SECONDS) -> list[Any]:
    """Three connected transports of a kind."""
    queues = thread_transports(seconds)[0]._queues
    return [kind(party, queues, seconds) for party in PARTIES]
