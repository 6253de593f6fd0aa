"""The CrypTen tensor type "replicated": fixed point numbers shared among three parties, party i holding (x_i, x_{i+1}).

Registered at CrypTen's extension point for tensor types. A tensor is an integer tensor of ring words with
`fraction_bits` binary places. CrypTen's own function library (abs, sign, relu, eq, ...) runs on it; what it
approximates only in a narrow range (reciprocal, square roots) or with a global setting (max, min) is done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from triskele.errors import TriskeleError
from triskele_server.mpc import arithmetic, boolean, graph, order, roots, truncation
from triskele_server.mpc.carry_tree import NARROW, WIDE
from triskele_server.mpc.crypten_import import CrypTensor
from triskele_server.mpc.session import Session, Shares

PRODUCT_BITS = 52  # fraction bits of a product before it is truncated: leaves values up to 2^10
PUBLIC_BITS = 20  # fraction bits at which public non-integers are encoded
RANKED = 128  # elements of a row up to which `smallest` compares all pairs
_DIVISOR_BITS = 42  # fraction bits of the operands of a quotient, at most

# The functions of CrypTen's library that only move words, or add them.
_STRUCTURAL = (
    frozenset(
        (
            "cumsum",
            "expand",
            "flatten",
            "flip",
            "gather",
            "index_select",
            "narrow",
            "permute",
            "repeat",
            "reshape",
            "roll",
        )
    )
    | frozenset(
        ("squeeze", "sum", "t", "take", "trace", "transpose", "unfold", "unsqueeze", "view", "clone", "diagonal")
    )
    | frozenset(("__getitem__",))
)
_PROPERTIES = frozenset(("size", "dim", "nelement", "numel", "__len__"))


class SharedWords(Shares):
    """The pair of int64 tensors inside a ReplicatedTensor; structural torch functions act on both."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in _PROPERTIES:
            return cast("Callable[..., Any]", getattr(self.first, name))
        if name in _STRUCTURAL:
            return lambda *args, **kwargs: SharedWords(
                getattr(self.first, name)(*args, **kwargs), getattr(self.second, name)(*args, **kwargs)
            )
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"SharedWords{list(self.shape)}"

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.first.device

    @staticmethod
    def cat(parts: list[SharedWords], dim: int = 0) -> SharedWords:
        """torch.cat on both shares."""
        return SharedWords(torch.cat([p.first for p in parts], dim), torch.cat([p.second for p in parts], dim))

    @staticmethod
    def stack(parts: list[SharedWords], dim: int = 0) -> SharedWords:
        """torch.stack on both shares."""
        return SharedWords(torch.stack([p.first for p in parts], dim), torch.stack([p.second for p in parts], dim))


@CrypTensor.register_cryptensor("replicated")
class ReplicatedTensor(CrypTensor):  # type: ignore[misc]  # crypten ships no types
    """A secret tensor. Printing shows its shape only; `open(name)` is the one way to its value."""

    __array_ufunc__ = None  # `array - secret` is this class's business, not numpy's

    # CrypTen's own look-up, without the debugging mode around it: that asks the configuration at every access, which
    # took longer than a small operation, and compares with opened values.
    __getattribute__ = CrypTensor.__getattribute__.__wrapped__

    if TYPE_CHECKING:  # what CrypTen adds to every tensor type at run time; its package has no types
        shape: tuple[int, ...]

        def _binary(self, other: Any) -> ReplicatedTensor: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _binary
        lt = gt = sub = _binary

        def _unary(self) -> ReplicatedTensor: ...

        __neg__ = t = abs = _unary

        def __getitem__(self, index: Any) -> ReplicatedTensor: ...

        def _shaped(self, *sizes: int) -> ReplicatedTensor: ...

        sum = unsqueeze = squeeze = reshape = flatten = _shaped

        def size(self, dim: int) -> int: ...

        def dim(self) -> int: ...

    def __init__(self, shares: Shares | list[Any], session: Session | None = None, fraction_bits: int = 0) -> None:
        super().__init__(requires_grad=False)
        if isinstance(shares, list):  # CrypTen makes an empty tensor to look up cat and stack
            shares = Shares(torch.tensor(shares), torch.tensor(shares))
        self._tensor = SharedWords(shares.first, shares.second)
        self._session = session
        self.fraction_bits = fraction_bits

    @property
    def session(self) -> Session:
        """The computation this tensor belongs to."""
        if self._session is None:
            raise TriskeleError("this tensor belongs to no session")
        return self._session

    @property
    def shares(self) -> Shares:
        """This party's two shares."""
        return self._tensor

    def __repr__(self) -> str:
        return f"ReplicatedTensor({list(self._tensor.shape)}, fraction_bits={self.fraction_bits})"

    def _like(self, shares: Shares, fraction_bits: int | None = None) -> ReplicatedTensor:
        return ReplicatedTensor(shares, self._session, self.fraction_bits if fraction_bits is None else fraction_bits)

    def shallow_copy(self) -> ReplicatedTensor:
        """Another tensor on the same words."""
        return self._like(self._tensor)

    def clone(self) -> ReplicatedTensor:
        """A copy."""
        return self._like(Shares(self._tensor.first.clone(), self._tensor.second.clone()))

    def copy_(self, other: ReplicatedTensor) -> None:
        """Take over another tensor's words and scale."""
        self._tensor, self._session, self.fraction_bits = other._tensor, other._session, other.fraction_bits

    @staticmethod
    def cat(tensors: list[ReplicatedTensor], dim: int = 0) -> ReplicatedTensor:
        """torch.cat; the finest scale of all is kept."""
        return _joined(SharedWords.cat, tensors, dim)

    @staticmethod
    def stack(tensors: list[ReplicatedTensor], dim: int = 0) -> ReplicatedTensor:
        """torch.stack; the finest scale of all is kept."""
        return _joined(SharedWords.stack, tensors, dim)

    def diagonal(self) -> ReplicatedTensor:
        """The diagonal of a matrix."""
        return self._like(self._tensor.diagonal())

    # ---- opening -----------------------------------------------------------------------------------------------

    def open(self, name: str) -> torch.Tensor:
        """Open to all parties what the ledger declares as `name`: int64, or float64 if there are fraction bits."""
        words = self.session.open(self._tensor, name)
        return words if self.fraction_bits == 0 else words.double() / 2.0**self.fraction_bits

    def get_plain_text(self, name: str | None = None) -> torch.Tensor:
        """CrypTen's name for `open`; refused without a name."""
        if name is None:
            raise TriskeleError("a value is opened by name only: use open(name) and declare the name with the rule")
        return self.open(name)

    reveal = get_plain_text

    # ---- linear ------------------------------------------------------------------------------------------------

    def _aligned(self, fraction_bits: int) -> Shares:
        shift = fraction_bits - self.fraction_bits
        return Shares(self._tensor.first << shift, self._tensor.second << shift) if shift else self._tensor

    def _scaled_up(self, fraction_bits: int) -> ReplicatedTensor:
        return self._like(self._aligned(fraction_bits), fraction_bits)

    def add(self, other: Any) -> ReplicatedTensor:
        """Sum with a secret tensor or a public array, tensor or number; the finer scale of the two is kept."""
        other = _public_tensor(other)
        if isinstance(other, ReplicatedTensor):
            bits = max(self.fraction_bits, other.fraction_bits)
            return self._like(arithmetic.add(self._aligned(bits), other._aligned(bits)), bits)
        bits = self.fraction_bits if _is_integer(other) else max(self.fraction_bits, PUBLIC_BITS)
        shape = np.broadcast_shapes(self._tensor.shape, _shape(other))  # torch's imports sympy, 30 MB
        words = _encoded(other, bits).expand(shape)
        return self._like(arithmetic.add(self._aligned(bits), arithmetic.constant(self.session, words)), bits)

    def neg(self) -> ReplicatedTensor:
        """The negative."""
        return self._like(Shares(-self._tensor.first, -self._tensor.second))

    def div(self, other: Any) -> ReplicatedTensor:
        """Quotient by a secret tensor (see `quotient`) or a public number."""
        if isinstance(other, ReplicatedTensor):
            return self.quotient(other)
        if isinstance(other, int) and other > 0 and other.bit_count() == 1:
            return self.times_power_of_two(1 - other.bit_length())
        if torch.is_tensor(other):
            return self.mul(1.0 / other.double())
        mantissa, exponent = math.frexp(other)  # 1/other may need more places than a public number gets
        return self.mul(1.0 / mantissa).times_power_of_two(-exponent)

    # ---- products ----------------------------------------------------------------------------------------------

    def mul(self, other: Any) -> ReplicatedTensor:
        """Element-wise product with a secret or public tensor or number."""
        return self._product(other, "mul", truncation.product_part, torch.mul)

    def matmul(self, other: Any) -> ReplicatedTensor:
        """Matrix product with a secret or public matrix."""
        return self._product(other, "matmul", truncation.matmul_part, torch.matmul)

    def square(self) -> ReplicatedTensor:
        """Element-wise square."""
        return self.mul(self)

    def _product(
        self,
        other: Any,
        label: str,
        secret: Callable[[Shares, Shares], torch.Tensor],
        public: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> ReplicatedTensor:
        """A product keeps the finer scale of its factors; if both have fraction bits it is truncated to it."""
        if isinstance(other, ReplicatedTensor):
            x, y = self._narrowed(other)
            part = secret(x._tensor, y._tensor)
            kept = max(x.fraction_bits, y.fraction_bits)
            excess = x.fraction_bits + y.fraction_bits - kept
            if excess > 0:
                return self._like(truncation.reshare_truncated(self.session, part, excess), kept)
            return self._like(arithmetic.reshare(self.session, label, part), x.fraction_bits + y.fraction_bits)
        other = _public_tensor(other)
        bits = 0 if _is_integer(other) else PUBLIC_BITS
        words = _encoded(other, bits)
        x = self if bits == 0 else self._coarsened(PRODUCT_BITS - bits)
        product = Shares(public(x._tensor.first, words), public(x._tensor.second, words))
        kept = max(x.fraction_bits, bits)
        excess = x.fraction_bits + bits - kept
        if excess > 0:
            product = arithmetic.truncate(self.session, product, excess)
        return self._like(product, x.fraction_bits + bits - max(excess, 0))

    def _narrowed(self, other: ReplicatedTensor) -> tuple[ReplicatedTensor, ReplicatedTensor]:
        """Both factors, the finer one coarsened first until their product has at most PRODUCT_BITS places."""
        fine, coarse = sorted((self.fraction_bits, other.fraction_bits), reverse=True)
        if fine + coarse <= PRODUCT_BITS:
            return self, other
        most = max(PRODUCT_BITS - coarse, PRODUCT_BITS // 2)
        return self._coarsened(most), other._coarsened(most)

    def _coarsened(self, most: int) -> ReplicatedTensor:
        excess = self.fraction_bits - most
        if excess <= 0:
            return self
        return self._like(arithmetic.truncate(self.session, self._tensor, excess), most)

    def times_power_of_two(self, exponent: int) -> ReplicatedTensor:
        """self * 2^exponent, free: the binary point moves, the words stay."""
        return self._like(self._tensor, self.fraction_bits - exponent)

    def rescale(self, fraction_bits: int) -> ReplicatedTensor:
        """The same number with other places; fewer are had by the exact floor."""
        shift = self.fraction_bits - fraction_bits
        if shift <= 0:
            return self._scaled_up(fraction_bits)
        return self._like(boolean.floor_shift(self.session, self._tensor, shift), fraction_bits)

    # ---- comparisons -------------------------------------------------------------------------------------------

    def _ltz(self) -> ReplicatedTensor:
        """1 where negative, else 0 (an integer tensor)."""
        return self._like(boolean.negative(self.session, self._tensor), 0)

    def where(self, condition: Any, other: Any) -> ReplicatedTensor:
        """self where the 0/1 `condition` is 1, else `other`."""
        difference = self - other
        selected: ReplicatedTensor = difference * condition + other
        return selected

    def rank(self) -> ReplicatedTensor:
        """Position of each element in ascending order along the last dimension; ties to the lower index.

        n (n - 1) / 2 comparisons per row of n, all in one batch.
        """
        n = self._tensor.shape[-1]
        low, high = torch.triu_indices(n, n, offset=1)
        ordinal = torch.arange(n).expand(self._tensor.shape)
        if n == 1:
            return self._like(arithmetic.constant(self.session, ordinal), 0)
        difference = self._like(
            Shares(*(t[..., high] - t[..., low] for t in (self._tensor.first, self._tensor.second)))
        )

        def counted(part: torch.Tensor) -> torch.Tensor:
            square = part.new_zeros((*part.shape[:-1], n, n))
            square[..., low, high] = part
            return square.sum(-1) - square.sum(-2)

        counts = boolean.negative(self.session, difference._tensor, counted)
        return self._like(arithmetic.add(counts, arithmetic.constant(self.session, ordinal)), 0)

    def count_above(self, bound: int) -> ReplicatedTensor:
        """Whether integers in [0, 2^14), which nobody checks, are above a public one in [0, 2^14): 0 or 1."""
        words = (-self + bound)._tensor
        return self._like(boolean.negative(self.session, words, width=NARROW), 0)

    def rank_below(self, *bounds: int) -> ReplicatedTensor:
        """Whether an element's rank (see `rank`) is below each of the bounds >= 0: 0 or 1, [bounds, ...]."""
        n, rank = self._tensor.shape[-1], self.rank()
        narrow = n < 1 << (NARROW - 1)
        # Nothing ranks at n or above, so that a larger bound is as good as n.
        words = rank.stack([rank - min(bound, n) for bound in bounds])._tensor
        width = NARROW if narrow else WIDE
        return self._like(boolean.negative(self.session, words, width=width), 0)

    def smallest(self, count: int) -> ReplicatedTensor:
        """1 at the `count` smallest elements along the last dimension (ties to the lower index), else 0.

        Up to RANKED elements by ranks, in 20 rounds. Above that by a network, in some 370 rounds with a tenth of the
        comparisons; there words must be below 2^(62 - ceil(log2 n)) in absolute value, which nobody checks.
        """
        if self._tensor.shape[-1] > RANKED:
            return self._like(order.smallest(self.session, self._tensor, count), 0)
        return self.rank_below(count)[0]

    def max(self) -> ReplicatedTensor:
        """The largest element along the last dimension: n - 1 comparisons per row, 10 ceil(log2 n) rounds."""
        return self._like(order.maximum(self.session, self._tensor))

    def min(self) -> ReplicatedTensor:
        """The smallest element along the last dimension, at the same cost."""
        return -(-self).max()

    def closure(self) -> ReplicatedTensor:
        """Reachability as 0/1 integers, for symmetric 0/1 matrices [..., n, n] with ones on the diagonal."""
        return self._like(graph.closure(self.session, self.rescale(0)._tensor), 0)

    def order_statistics(self, *positions: int) -> list[ReplicatedTensor]:
        """The elements at the given places of the ascending order of the last dimension."""
        bounds = sorted({p + shift for p in positions for shift in (0, 1)})
        below = self.rank_below(*bounds)
        place = {bound: i for i, bound in enumerate(bounds)}
        return [((below[place[p + 1]] - below[place[p]]) * self).sum(-1) for p in positions]

    # ---- roots -------------------------------------------------------------------------------------------------

    def inv_sqrt(self) -> ReplicatedTensor:
        """1/sqrt(x) for x > 0, over the whole range of ring words below 2^62 (see roots.py); 0 for x <= 0."""
        x = self._scaled_up(self.fraction_bits + self.fraction_bits % 2)
        return self._like(*roots.inv_sqrt(self.session, x._tensor, x.fraction_bits))

    def sqrt(self) -> ReplicatedTensor:
        """sqrt(x) for x > 0, over the same range; 0 for x <= 0."""
        x = self._scaled_up(self.fraction_bits + self.fraction_bits % 2)
        return self._like(*roots.sqrt(self.session, x._tensor, x.fraction_bits))

    def reciprocal(self) -> ReplicatedTensor:
        """1/x for x != 0, over the whole range of ring words below 2^62 (see roots.py); 0 for x = 0."""
        return self._like(*roots.reciprocal(self.session, self._tensor, self.fraction_bits))

    def quotient(self, other: ReplicatedTensor) -> ReplicatedTensor:
        """self / other with 26 fraction bits, for |self / other| < 2^10 and |other| < 2^10; 0 for other = 0.

        The error is below 2^-22 max(1, |self / other|); of more than 42 fraction bits the rest is dropped first.
        """
        bits = min(max(self.fraction_bits, other.fraction_bits), _DIVISOR_BITS)
        x, y = (t._coarsened(bits)._scaled_up(bits) for t in (self, other))
        return self._like(roots.quotient(self.session, x._tensor, y._tensor), roots.QUOTIENT_BITS)

    def normalised(self) -> ReplicatedTensor:
        """x / sum(x) along the last dimension with 30 fraction bits, error below 2^-24, for x >= 0; zeros for zeros.

        The words may have any scale; their sum must stay below 2^62 (drop places of large ones first: `truncated`).
        """
        total = Shares(self._tensor.first.sum(-1, keepdim=True), self._tensor.second.sum(-1, keepdim=True))
        return self._like(roots.fraction(self.session, self._tensor, total), roots.FRACTION_BITS)

    def root_ratio(self, other: ReplicatedTensor, fraction_bits: int = roots.RATIO_BITS) -> ReplicatedTensor:
        """min(sqrt(self / other), 2^15), shapes broadcast, for numbers >= 0 with words below 2^46 at the finer scale.

        At most one last place above the true value, at most 2^-20 of it and one last place below; never above 2^15.
        0 where self is 0, 2^15 where other alone is 0. `fraction_bits` <= 40.
        """
        if not 0 <= fraction_bits <= roots.MAX_RATIO_BITS:
            raise TriskeleError(f"a root ratio has 0 to {roots.MAX_RATIO_BITS} fraction bits, not {fraction_bits}")
        bits = max(self.fraction_bits, other.fraction_bits)
        shares = roots.root_ratio(self.session, self._aligned(bits), other._aligned(bits), fraction_bits)
        return self._like(shares, fraction_bits)

    def log(self) -> ReplicatedTensor:
        """ln(x) with 30 fraction bits, absolute error below 2^-26, for x > 0 (words below 2^62); -64 for x <= 0."""
        return self._like(roots.log(self.session, self._tensor, self.fraction_bits), roots.LOG_BITS)

    def cosines(self) -> ReplicatedTensor:
        """The cosines between the rows whose Gram matrix this is: see rules/geometry.py."""
        return self._like(roots.cosines(self.session, self._tensor), roots.COSINE_BITS)

    def truncated(self, fraction_bits: int) -> ReplicatedTensor:
        """The same number with fewer places in two rounds; the error is in (-1, 1] of the last one (see `rescale`)."""
        return self._coarsened(fraction_bits)

    def leading_power(self) -> ReplicatedTensor:
        """The power of four that brings a positive number's words to [2^60, 2^62); 0 for 0."""
        return self._like(roots.leading_power(self.session, self._tensor), 0)


def _joined(
    join: Callable[[list[SharedWords], int], SharedWords], tensors: list[ReplicatedTensor], dim: int
) -> ReplicatedTensor:
    bits = max(t.fraction_bits for t in tensors)
    return tensors[0]._like(join([t._scaled_up(bits)._tensor for t in tensors], dim), bits)


def _public_tensor(value: Any) -> Any:
    """A numpy array as a tensor; anything else as it is."""
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if torch.is_tensor(value) else ()


def _is_integer(value: Any) -> bool:
    return not value.is_floating_point() if torch.is_tensor(value) else isinstance(value, int)


def _encoded(value: Any, fraction_bits: int) -> torch.Tensor:
    """A public number or tensor as ring words."""
    tensor = (
        value
        if torch.is_tensor(value)
        else torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
    )
    if tensor.is_floating_point():
        return (tensor.double() * 2.0**fraction_bits).round().long()
    return tensor.long() << fraction_bits
