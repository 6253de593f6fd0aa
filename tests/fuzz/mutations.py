"""Damage to valid bytes: byte by byte in full, and drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st


def truncations(data: bytes) -> Iterator[bytes]:
    """The data cut off before each of its bytes."""
    return (data[:end] for end in range(len(data)))


def flips(data: bytes) -> Iterator[bytes]:
    """The data with each of its bytes inverted, and with the lowest bit of each changed."""
    for place in range(len(data)):
        for mask in (0xFF, 0x01):
            yield data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


@st.composite
def damaged(draw: st.DrawFn, examples: tuple[bytes, ...]) -> bytes:
    """A valid example with up to eight pieces overwritten, cut out, doubled or put in; or any bytes at all."""
    data = draw(st.sampled_from((*examples, b"")))
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(st.one_of(st.binary(max_size=40), st.just(data[start:stop] * 2), st.sampled_from(_SPECIAL)))
        data = data[:start] + piece + data[stop:]
    return data


_SPECIAL = (  # what decoders stumble over: extreme varints and lengths, NaN, deep nesting, text that is no UTF-8
    b"\xff" * 9 + b"\x01",
    b"\xff\xff\xff\x7f",
    b"\x80" * 20,
    b"0x1.fffffffffffffp+1023",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"[" * 200,
    b"{" * 200,
    b"9" * 5000,
    b"\xed\xa0\x80",
    b"\x00",
    b"\\ud800",
)
