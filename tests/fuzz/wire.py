"""Bytes on a socket that no client of ours would send: below TLS, inside TLS, and inside HTTP/2."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

from triskele_server.rpc.tls import TlsFiles

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_SECONDS = 0.3  # to wait for what a server has to say


def garbage(generator: random.Random) -> Iterator[bytes]:
    """What is sent to a port as soon as it is open."""
    yield b""
    yield generator.randbytes(1)
    yield generator.randbytes(4096)
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + generator.randbytes(512)  # half a ClientHello
    yield b"\x16\x03\x03\xff\xff" + generator.randbytes(300)
    yield b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"
    yield b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + generator.randbytes(200)
    yield b"\r\n" * 2000
    yield from http2(generator)


def http2(generator: random.Random) -> Iterator[bytes]:
    """A right beginning, and then frames that lie."""
    yield PREFACE[:10]
    yield PREFACE + generator.randbytes(2000)
    yield PREFACE + SETTINGS + b"".join(_frame(generator) for _ in range(60))
    yield PREFACE + SETTINGS + SETTINGS * 3000
    yield PREFACE + SETTINGS + (b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)) * 3000  # pings
    yield PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + generator.randbytes(500)  # 16 MiB of DATA
    opened = b"".join(_headers(stream, b"\x82\x87\x84") for stream in range(1, 800, 2))
    yield PREFACE + SETTINGS + opened
    reset = b"".join(
        _headers(stream, b"\x82\x87\x84") + b"\0\0\4\3\0" + struct.pack(">II", stream, 8)
        for stream in range(1, 2000, 2)
    )
    yield PREFACE + SETTINGS + reset  # rapid reset
    endless = b"\0\0\x03\x01\0" + struct.pack(">I", 1) + b"\x82\x87\x84"
    yield (
        PREFACE + SETTINGS + endless + (b"\0\x10\0\x09\0" + struct.pack(">I", 1) + b"\x40" * 4096) * 50
    )  # CONTINUATION
    yield PREFACE + SETTINGS + _headers(1, generator.randbytes(300))  # HPACK garbage


def _frame(generator: random.Random) -> bytes:
    payload = generator.randbytes(generator.randrange(40))
    kind, flags, stream = generator.randrange(12), generator.randrange(256), generator.randrange(8)
    length = generator.choice([len(payload), len(payload) + 3, 0xFFFFFF if generator.random() < 0.02 else len(payload)])
    return length.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _headers(stream: int, block: bytes) -> bytes:
    return len(block).to_bytes(3, "big") + b"\x01\x04" + struct.pack(">I", stream) + block


def send(port: int, data: bytes, tls: ssl.SSLContext | None = None) -> None:
    """Connect, send, wait for an answer, close. What the server does about it is its business, so long as it lives."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # a connection that is closed is an answer too
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        connection = stack.enter_context(tls.wrap_socket(plain, server_hostname="localhost")) if tls else plain
        connection.settimeout(_SECONDS)
        connection.sendall(data)
        connection.recv(1 << 16)


def knock(port: int, data: bytes) -> None:
    """Connect, send, close at once: the handshake is still under way then."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(data)


def client_context(files: TlsFiles | None, authority: Path) -> ssl.SSLContext:
    """TLS as a member of the federation, or as somebody without a certificate."""
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if files is not None:
        context.load_cert_chain(str(files.certificate), str(files.key))
    return context
