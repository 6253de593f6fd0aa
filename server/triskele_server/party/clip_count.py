"""Step 8's noised count: how many updates an adaptive bound left as they were, and the bound that follows from it."""

from __future__ import annotations

import hashlib

import torch

from triskele.errors import TriskeleError
from triskele.keystream import derive
from triskele.ring import Words
from triskele_server.linear.discrete_gaussian import discrete_gaussian
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session, Shares
from triskele_server.party.filter import CLIP_COUNT
from triskele_server.party.noise import with_dealt
from triskele_server.rules.adaptive_bound import COUNT_BITS, AdaptiveBound


def own_count_noise(adaptive: AdaptiveBound, secret: bytes, counted: bytes) -> Words | None:
    """This party's noise for the count, int64 [1]; None if the task adds none.

    A function of its `secret` and of everything that the count depends on: every attempt opens the same count.
    """
    sigma = adaptive.count_sigma()
    if not sigma:
        return None
    key = derive(secret, b"triskele/v1/count-noise" + hashlib.sha256(counted).digest())
    return discrete_gaussian(key, sigma, 1)


def open_count(session: Session, count: ReplicatedTensor, noise: Words | None) -> int:
    """Open the count with all three parties' noise, COUNT_BITS fraction bits; whoever opens another one is caught."""
    if count.fraction_bits:  # not reached: bits of comparisons
        raise TriskeleError("a count is a whole number")
    words = count.shares.first.reshape(1), count.shares.second.reshape(1)
    first, second = (torch.bitwise_left_shift(word, COUNT_BITS) for word in words)
    return int(session.open(with_dealt(session, Shares(first, second), noise), CLIP_COUNT)[0])
