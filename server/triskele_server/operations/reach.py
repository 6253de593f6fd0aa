"""Can this member reach that server, and what does the server say of itself? With the reason where it cannot."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, Final

import grpc

from triskele.errors import ConfigurationError, Unavailable
from triskele.identity import Identity
from triskele.protocol import PROTOCOL
from triskele_proto.v1 import info_pb2, info_pb2_grpc
from triskele_server.rpc.channel import message_options
from triskele_server.rpc.info import Description
from triskele_server.rpc.tls import TlsFiles

SECONDS: Final = 5.0  # for a connection, and for an answer


@dataclass(frozen=True)
class Answer:
    """A server's description, and how far its clock is ahead of ours; `uncertain` is half the round trip. Seconds."""

    description: Description
    ahead: float
    uncertain: float


def other_protocol(said: Description) -> tuple[str, str] | None:
    """What is wrong and what to do, if a server speaks another protocol than this program."""
    if said.protocol == PROTOCOL:
        return None
    newer, older = ("it", "this program") if said.protocol > PROTOCOL else ("this program", "it")
    return (
        f"it speaks protocol {said.protocol}, this program {PROTOCOL}",
        f"{newer} is newer: upgrade {older}",
    )


class Unreachable(Unavailable):
    """A server that cannot be talked to; `remedy` says what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def ask(address: str, server: Identity, tls: TlsFiles) -> Answer:
    """Connect as `tls` says, and ask the server to describe itself. Raises Unreachable, ConfigurationError."""
    _connect(address, server, tls)
    options = [*message_options(), ("grpc.ssl_target_name_override", server.host)]
    with grpc.secure_channel(address, tls.channel_credentials(), options=options) as channel:
        client: Any = info_pb2_grpc.InfoStub  # generated without types
        before, started = time.time(), time.monotonic()
        try:
            reply = client(channel).Describe(info_pb2.DescribeRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            raise _refused(error) from error
        took = time.monotonic() - started
    description = Description.from_proto(reply)
    return Answer(description, description.unix_time - (before + took / 2), took / 2)


def _refused(error: Any) -> Unreachable:
    code, text = error.code(), str(error.details())[:300]
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Unreachable(f"it refuses this member: {text}", "ask its operator about its deny list and its federation")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Unreachable("it does not describe itself", "it is older than this program: upgrade it")
    return Unreachable(f"it does not answer ({code.name}: {text})", "see its log")


def _connect(address: str, server: Identity, tls: TlsFiles) -> None:
    """Name, port and TLS one after the other, so that the first that fails can be named."""
    host, _, port = address.rpartition(":")
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), SECONDS)
    except socket.gaierror as error:
        raise Unreachable(f"the name {host} does not resolve", "correct the address, or the DNS entry") from error
    except TimeoutError as error:
        raise Unreachable(
            "no answer to a connection", "open the port in the firewall or network policy between the two machines"
        ) from error
    except OSError as error:
        raise Unreachable(
            f"nobody listens there ({error.strerror})", "start it, or correct the address or its listen setting"
        ) from error
    with plain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        try:
            context.load_verify_locations(tls.authority)
            context.load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{tls.certificate}, {tls.key} or {tls.authority} cannot be used") from error
        try:
            context.wrap_socket(plain, server_hostname=server.host).close()
        except ssl.SSLCertVerificationError as error:
            raise _unverified(error, server) from error
        except (ssl.SSLError, OSError) as error:
            raise Unreachable(
                f"the connection ends during the TLS handshake ({type(error).__name__})",
                "another program listens there, or it does not accept this member's certificate",
            ) from error


def _unverified(error: ssl.SSLCertVerificationError, server: Identity) -> Unreachable:
    reason = error.verify_message
    if "expired" in reason:
        return Unreachable("its certificate has expired", "its operator renews it: triskele provision rotate")
    if "not yet valid" in reason:
        return Unreachable("its certificate is not valid yet", "set this machine's clock, or that of the authority")
    if "mismatch" in reason:
        return Unreachable(
            f"another member than {server.uri} answers there", "correct the address: two of them may be swapped"
        )
    return Unreachable(
        f"its certificate is not of this federation's authority ({reason})",
        "one of the two has the ca.crt of another federation, or an old one",
    )
