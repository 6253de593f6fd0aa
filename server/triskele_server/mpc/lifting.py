"""From the ring Z_{2^32} to Z_{2^64} by one secret product of two bits. Two exchanges, 4 bytes, 8 from party 0.

Party 0 knows a = x_0 + x_1 + 2^30 mod 2^32, parties 1 and 2 know b = x_2. For a value z in [-2^30, 2^30) the sum
z + 2^30 = a + b - c 2^32 is below 2^31, so c is "the top bit of a or that of b" (as in arithmetic.truncate). With a and
b read as signed words, which takes 2^32 off where a top bit is set,

    z = a + b + 2^32 (top bit of a) (top bit of b) - 2^30.

The words of the shares go on being shares of the low half, so only the high half is shared anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from triskele_server.mpc.arithmetic import begin_pool, deal
from triskele_server.mpc.session import Session, Shares

_PIECE = 1 << 16  # elements: temporaries stay in cache, and in memory that the process has already
_AHEAD = 32  # pieces that are sent before the first of them is waited for: 12 bytes an element are held meanwhile

_OFFSET = 1 << 30


def lift(session: Session, x: Shares) -> Shares:
    """int64 shares of z for int32 shares of it, z in [-2^30, 2^30).

    Any other z is lifted to a word that is congruent to it mod 2^32 and not in [-2^30, 2^30), whatever the shares:
    with y = z + 2^30 mod 2^32 in [2^31, 2^32), the result is y - 2^30 >= 2^30 if the carry was guessed right, and it
    can be guessed wrong in one way only, as 1 where it is 0: then it is y - 2^30 - 2^32 < -2^30.
    """
    out = Shares(*(torch.empty(x.shape, dtype=torch.int64) for _ in range(2)))
    pieces = list(zip(*(t.reshape(-1).split(_PIECE) for t in (x.first, x.second, out.first, out.second)), strict=True))
    waiting: deque[Callable[[], Shares]] = deque()

    def finish(piece: tuple[torch.Tensor, ...]) -> None:
        first, second, out_first, out_second = piece
        high = waiting.popleft()()
        torch.add(first.long(), high.first.long() << 32, out=out_first)
        torch.add(second.long(), high.second.long() << 32, out=out_second)

    for i, (first, second, *_) in enumerate(pieces):
        if i >= _AHEAD:
            finish(pieces[i - _AHEAD])
        waiting.append(_begin_high_half(session, first, second, ahead=i % _AHEAD > 0))
    for piece in pieces[-len(waiting) :]:
        finish(piece)
    return out


def _begin_high_half(
    session: Session, first: torch.Tensor, second: torch.Tensor, *, ahead: bool
) -> Callable[[], Shares]:
    """Shares mod 2^32 of what is to be added, times 2^32, to the words of the shares read as signed."""
    known = None
    if session.party == 0:
        a = first + second + _OFFSET
        rest = (a.long() - first - second - _OFFSET) >> 32  # what the words of a's two shares are short of a itself
        known = torch.stack([_top(a), rest.int()])
    dealt = deal(session, "lift", known, torch.empty((2, *first.shape), dtype=first.dtype))
    part = torch.zeros_like(first)
    if session.party != 0:
        third = second if session.party == 1 else first
        top, rest = dealt.first if session.party == 1 else dealt.second
        part = top * _top(third) + rest
    return begin_pool(session, "lift", part, ahead=ahead)


def _top(word: torch.Tensor) -> torch.Tensor:
    return (word < 0).int()
