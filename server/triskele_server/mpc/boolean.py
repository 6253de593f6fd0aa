"""Comparisons: the top bit of a sum of two summands, one known to one party, the other to the two others.

A sharing x = x_0 + x_1 + x_2 is such a sum: the dealer, any party k, knows x_k + x_{k+1}; the parties k + 1 and k + 2
know x_{k+2}. The dealer gives shares of what depends on its summand and on the masks alone, and waits for nobody; the
two others exchange masked bits up a tree of carries of fan-in four (carry_tree.py). Products of many bits in one
exchange are as in ABY2.0 (Patra et al. 2021), the dealer as in ASTRA (Chaudhari et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from triskele.ids import PARTIES, PartyIndex
from triskele_server.mpc import carry_tree
from triskele_server.mpc.arithmetic import LIMIT_BITS, add, bit_to_word, constant, pool, reshare_at_once, truncate
from triskele_server.mpc.carry_tree import COLUMNS, NARROW, WIDE
from triskele_server.mpc.session import Session, Shares

ROTATED = 1 << 14  # comparisons in one batch from which on each party is the dealer of a third of them

_Masks = tuple[torch.Tensor, torch.Tensor]
_Draw = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


class _Lane:
    """Comparisons under one dealer, at one party.

    The party after the dealer, the drawer, draws its part of what is dealt, as the dealer does; the one after that, the
    receiver, is sent the rest. A mask has two parts, one drawn by dealer and drawer, one by dealer and receiver.
    Everything is drawn in the constructor, before anything is received: whoever waits for whom, two parties draw from
    their common stream in the same order.
    """

    def __init__(self, session: Session, dealer: PartyIndex, words: torch.Tensor, width: int, converted: bool) -> None:
        """`words` [n] are this party's summands. With `converted`, the bits will be wanted as words."""
        self._session, self._words, self._wide = session, words.contiguous(), width == WIDE
        self._converted = converted
        self._role = (session.party - dealer) % 3
        self._part = self._known = torch.empty(0)
        randomness, shape = session.randomness, (len(words), COLUMNS[width])
        dealt, bits = torch.empty(shape, dtype=torch.int16), torch.empty(len(words) if converted else 0).long()
        if self._role == 2:
            self._masks = self._drawn(randomness.with_next)
            self._dealt, self._bits = dealt, bits
            return
        draw = randomness.with_next if self._role == 0 else randomness.with_previous
        self._masks = self._drawn(draw)
        self._dealt, self._bits = draw(shape, torch.int16), draw(tuple(bits.shape), torch.int64)
        if self._role == 0:
            self._others = self._drawn(randomness.with_previous)
            first, last, result = (mine ^ other for mine, other in zip(self._masks, self._others, strict=True))
            carry_tree.dealt(self._words.numpy(), first.numpy(), last.numpy(), dealt.numpy())
            session.send(session.previous, "compare", self._dealt ^ dealt)
            if converted:
                session.send(session.previous, "bit", (result & 1).long() - self._bits)

    def _drawn(self, draw: _Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Parts of masks: of the digits' places in a wide word, of the last node's four places, of the result."""
        first = draw((len(self._words) if self._wide else 0,), torch.int32)
        last, result = draw((2, len(self._words)), torch.uint8)
        return first, last, result

    def receive_dealt(self) -> None:
        """What the dealer sends."""
        if self._role == 2:
            self._dealt = self._session.receive(self._session.next, "compare", self._dealt, ahead=True)
            if self._converted:
                self._bits = self._session.receive(self._session.next, "bit", self._bits, ahead=True)

    @property
    def _one(self) -> int:
        """This party's part of 1."""
        return int(self._role == 1)

    def send_digits(self) -> None:
        """First exchange: a carry given off, a carry passed on, by digit."""
        self._send(carry_tree.first_places, self._words, self._masks[0 if self._wide else 1])

    def send_places(self) -> None:
        """Second exchange, of wide words only: the same by four digits."""
        first, last, _ = self._masks
        self._send(carry_tree.next_places, self._known, (first, last))

    def send_top(self) -> None:
        """Last exchange: the sum's top bit."""
        _, last, result = self._masks
        tops = self._words >> ((WIDE if self._wide else NARROW) - 1) & self._one
        self._send(carry_tree.top_bits, self._known, (last, result ^ tops.to(torch.uint8)))

    def _send(self, kernel: Callable[..., None], known: torch.Tensor, masks: torch.Tensor | _Masks) -> None:
        """This party's part of what it and the other one are to know under masks (the last of `masks`)."""
        if self._role:
            given = masks.numpy() if isinstance(masks, torch.Tensor) else tuple(mask.numpy() for mask in masks)
            self._part = torch.empty_like(masks if isinstance(masks, torch.Tensor) else masks[-1])
            kernel(known.numpy(), self._dealt.numpy(), self._one, given, self._part.numpy())
            self._session.send(self._peer, "carry", self._part)

    @property
    def _peer(self) -> PartyIndex:
        return self._session.next if self._role == 1 else self._session.previous

    def receive(self) -> None:
        """The other one's part of what was sent last: both know the masked bits then."""
        if self._role:
            self._known = self._part ^ self._session.receive(self._peer, "carry", self._part)

    def bits(self) -> Shares:
        """The top bits as uint8 XOR shares: the parts of the mask, and the masked bit."""
        result = self._masks[2]
        if self._role == 0:
            return Shares(self._others[2], result)
        return Shares(result, self._known) if self._role == 1 else Shares(self._known, result)

    def word_parts(self) -> torch.Tensor:
        """This party's additive parts of the top bits: of u + v - 2 u v, u the dealt mask and v the masked bit."""
        if self._role == 0:
            return torch.zeros_like(self._words)
        v = (self._known & 1).long()
        return self._bits * (1 - 2 * v) + v * self._one


def _compared(session: Session, lanes: Sequence[_Lane], width: int) -> None:
    """All lanes' exchanges, those of one level side by side."""
    for lane in lanes:
        lane.receive_dealt()
    for send in (_Lane.send_digits, _Lane.send_places, _Lane.send_top):
        if width == WIDE or send is not _Lane.send_places:
            for lane in lanes:
                send(lane)
            for lane in lanes:
                lane.receive()


def _summand(session: Session, dealer: PartyIndex, x: Shares) -> torch.Tensor:
    """x_k + x_{k+1} at the dealer k, x_{k+2} at the others."""
    role = (session.party - dealer) % 3
    return x.first + x.second if role == 0 else x.second if role == 1 else x.first


def top_bit_of_sum(session: Session, summand: torch.Tensor) -> Shares:
    """Bit 63 of a + b, as uint8 XOR shares of 0 or 1; party 0 gives a, parties 1 and 2 give b.

    Three rounds after what party 0 sends. 46 bytes per element from party 0, 6 from each of the others.
    """
    lane = _Lane(session, PARTIES[0], summand.flatten(), WIDE, converted=False)
    _compared(session, [lane], WIDE)
    bits = lane.bits()
    return Shares(bits.first.reshape(summand.shape), bits.second.reshape(summand.shape))


def sign_bit(session: Session, x: Shares) -> Shares:
    """Whether x, read as a signed word, is negative; uint8 XOR shares. See `top_bit_of_sum`."""
    return top_bit_of_sum(session, _summand(session, PARTIES[0], x))


def negative(
    session: Session,
    x: Shares,
    combine: Callable[[torch.Tensor], torch.Tensor] | None = None,
    *,
    width: int = WIDE,
) -> Shares:
    """1 where x is negative, else 0, as additive words. Four rounds after what the dealers send.

    `combine` is a public linear map of the bits, so that a sum of many travels as one word. Of a `width` of NARROW only
    the low 16 bits are looked at: for x in [-2^15, 2^15), three rounds. A dealer sends 54 bytes per element (narrow:
    18), each of the others 6 (2) and the result's words; in large batches each party is the dealer of a third.
    """
    count = x.first.numel()
    flat = Shares(x.first.flatten(), x.second.flatten())
    dealers = PARTIES if count >= ROTATED else PARTIES[:1]
    bounds = [count * k // len(dealers) for k in range(len(dealers) + 1)]
    words = [_summand(session, d, flat)[lo:hi] for d, lo, hi in zip(dealers, bounds, bounds[1:], strict=False)]
    lanes = [_Lane(session, d, w, width, converted=True) for d, w in zip(dealers, words, strict=True)]
    _compared(session, lanes, width)
    part = torch.cat([lane.word_parts() for lane in lanes]).reshape(x.shape)
    part = part if combine is None else combine(part)
    return pool(session, "bit", part) if len(lanes) == 1 else reshare_at_once(session, "bit", part)


def floor_shift(session: Session, x: Shares, bits: int) -> Shares:
    """floor(x / 2^bits), exact, for x in [-2^62, 2^62): the low bits' carry comes from a comparison circuit."""
    offset = constant(session, torch.full(x.shape, 1 << LIMIT_BITS, dtype=torch.int64))
    low = _summand(session, PARTIES[0], add(x, offset)) & ((1 << bits) - 1)
    carry = top_bit_of_sum(session, low << (63 - bits))
    return truncate(session, x, bits, low_carry=bit_to_word(session, carry))
