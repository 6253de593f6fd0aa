"""Step 9's noise: each party adds its own exact discrete Gaussian to the aggregate before it is opened.

Any two parties' noise is enough for the task's guarantee, so that one party that adds none, or knows its own, does not
weaken it; all three together have 1.5 times the variance. docs/decisions/0010-noise.md says why a party's noise is a
function of its secret key, the input set and the decision.
"""

from __future__ import annotations

import hashlib

import torch

from triskele.keystream import derive
from triskele.ring import Words
from triskele.task import TaskSpec
from triskele_server.linear.discrete_gaussian import discrete_gaussian
from triskele_server.mpc.session import Session, Shares
from triskele_server.rules.noise import party_sigma


def own_noise(
    spec: TaskSpec,
    secret: bytes,
    decided: bytes,
    *,
    weight_total: int,
    fraction_bits: int,
    bound: int | None = None,
) -> Words | None:
    """This party's noise for the words of an aggregate, [dimension] of its ring; None if the task adds none.

    `secret` is this party's alone, `decided` everything that the opened words depend on: the same noise whenever the
    same words are opened, independent noise for others. `bound` is an adaptive one, see `party_sigma`.
    """
    if spec.privacy is None:
        return None
    key = derive(secret, b"triskele/v1/noise" + hashlib.sha256(decided).digest())
    sigma = party_sigma(spec.privacy, spec, weight_total, fraction_bits, bound)
    return spec.ring.reduced(discrete_gaussian(key, sigma, spec.dimension))


def with_dealt(session: Session, shares: Shares, noise: Words | None) -> Shares:
    """The replicated `shares` with all three parties' noise added, each party its own dealer: d words to the next one.

    Party i's noise is e = m + (e - m) + 0 in shares i, i+1, i+2; m comes from the key stream that i has in common with
    i-1, so that i+1, which gets e - m, sees a uniformly random vector. The opening of the sum is compared share by
    share, as it is without noise.
    """
    if noise is None:
        return shares
    own = torch.from_numpy(noise)
    shape = tuple(own.shape)
    mask = session.randomness.with_previous(shape, own.dtype)
    theirs = session.randomness.with_next(shape, own.dtype)  # the next party's mask, share i+1 of its noise
    rest = own - mask
    session.send(session.next, "noise", rest)
    received = session.receive(session.previous, "noise", rest)
    return Shares(shares.first + mask + received, shares.second + rest + theirs)
