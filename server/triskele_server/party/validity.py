"""Step 6: the check that every submitted vector is short and wraps nowhere, on sketches, in shares.

docs/protocol.md, "Check", has the proof of what an invalid submission's chance is.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from triskele.errors import PartyFault
from triskele.task import FRACTION_BITS
from triskele_server.linear.sketch import Sketch, project, squares_part
from triskele_server.mpc import arithmetic, boolean
from triskele_server.mpc.carry_tree import NARROW
from triskele_server.mpc.session import Session, Shares

PROJECTIONS = 64
_PROJECTION_SLACK_BITS = 4  # T = 2^(f + 4) - 1: an honest projection is more than 7 times smaller
NORM_SLACK_PERCENT = 121  # an accepted squared norm is at most 1.1^2 times C^2


def projection_bound(fraction_bits: int) -> int:
    """T."""
    return (1 << fraction_bits + _PROJECTION_SLACK_BITS) - 1


PROJECTION_BOUND = projection_bound(FRACTION_BITS)  # of the 64-bit ring


def check(
    session: Session,
    sketch: Sketch,
    sketches: Shares,
    weights: Shares | None,
    max_weight: int,
    *,
    fraction_bits: int = FRACTION_BITS,
) -> NDArray[np.bool_]:
    """One opened bit per submission: whether its folded sketch [n, K] is in range and its weight in [0, max_weight].

    Shares are mod 2^64; those of the 32-bit ring are lifted before, and what lifted wrongly is out of range.

    (a) 64 projections p of z onto random {-1, 0, 0, 1} vectors lie in [-T, T]: else with probability at least
        1 - 2^-64 some |z_j| > 2T. With it K (2T)^2 < 2^63, so the sum of squares below cannot wrap;
    (b) |z|^2 <= 1.1^2 s 2^(2f);
    (c) 0 <= w <= max_weight.
    Each is "this word is not negative"; a submission is valid if none of its words is.
    """
    vectors = sketch.projections(PROJECTIONS)
    first, second = sketches.first.numpy(), sketches.second.numpy()
    projected = Shares(*(torch.from_numpy(project(z, vectors)) for z in (first, second)))
    squares = torch.from_numpy(squares_part(first, second)).unsqueeze(-1)
    norms = arithmetic.reshare_at_once(session, "norms", squares)
    norm_bound = sketch.blocks * NORM_SLACK_PERCENT * (1 << 2 * fraction_bits) // 100
    bound = projection_bound(fraction_bits)
    tested = [
        _plus(session, projected, bound),
        _plus(session, _negated(projected), bound),
        _plus(session, _negated(norms), norm_bound),
    ]
    if weights is not None:
        column = Shares(weights.first.unsqueeze(-1), weights.second.unsqueeze(-1))
        tested += [column, _plus(session, _negated(column), max_weight)]
    words = Shares(torch.cat([t.first for t in tested], -1), torch.cat([t.second for t in tested], -1))
    wrong = boolean.negative(session, words, lambda bits: bits.sum(-1))  # a hundred or so at most: narrow
    valid = boolean.negative(session, _plus(session, wrong, -1), width=NARROW)
    opened = session.open(valid, "valid").numpy()
    if not np.isin(opened, (0, 1)).all():
        raise PartyFault("a validity bit opened to something else than 0 or 1: a party does not follow the protocol")
    return opened.astype(np.bool_)


def _negated(x: Shares) -> Shares:
    return Shares(-x.first, -x.second)


def _plus(session: Session, x: Shares, number: int) -> Shares:
    return arithmetic.add(x, arithmetic.constant(session, torch.full(x.shape, number, dtype=torch.int64)))
