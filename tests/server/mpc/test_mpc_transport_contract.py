"""What every transport between parties must do; run on threads in one process and on gRPC with mutual TLS."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence

import grpc
import pytest
import structlog
import torch
from peer_hubs import PeerHubs
from three_parties import at_three_parties, on_shares, reconstruct, share

from triskele.errors import PartyFault, WrongState
from triskele.ids import PARTIES, PartyIndex
from triskele_proto.v1 import peer_pb2, peer_pb2_grpc
from triskele_server.config import PartyConfig, party_identity
from triskele_server.mpc import arithmetic, boolean
from triskele_server.mpc.transport import Frame, Transport, thread_transports
from triskele_server.rpc import peer as peer_module
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.peer import PeerHub
from triskele_server.rpc.tls import TlsFiles

FIVE_MIB = 5 << 20
Connect = Callable[[], Sequence[Transport]]


@pytest.fixture(scope="module")
def hubs(tmp_path_factory):
    with structlog.testing.capture_logs(), PeerHubs(tmp_path_factory.mktemp("peers")) as running:
        yield running


@pytest.fixture(params=["threads", "grpc"])
def connect(request):
    """Makes three connected transports; they are closed in the end."""
    made: list[Transport] = []

    def threads() -> Sequence[Transport]:
        made.extend(thread_transports(20.0))
        return made[-3:]

    def over_grpc() -> Sequence[Transport]:
        made.extend(request.getfixturevalue("hubs").join(secrets.token_bytes(32)))
        return made[-3:]

    yield threads if request.param == "threads" else over_grpc
    for transport in made:
        transport.close()


@pytest.fixture
def three(connect: Connect) -> Sequence[Transport]:
    return connect()


PAIRS = [(a, b) for a in PARTIES for b in PARTIES if a != b]


@pytest.mark.parametrize(("sender", "receiver"), PAIRS)
def test_frames_arrive_unchanged_and_in_order(three, sender, receiver):
    payloads = [bytes([k]) * k for k in range(50)]
    for k, payload in enumerate(payloads):
        three[sender].send(receiver, f"frame{k}", payload)
    assert [three[receiver].receive(sender, f"frame{k}", k) for k in range(50)] == payloads


def test_directions_do_not_mix(three):
    for a, b in PAIRS:
        three[a].send(b, "x", bytes([a, b]))
    for a, b in PAIRS:
        assert three[b].receive(a, "x", 2) == bytes([a, b])


@pytest.mark.parametrize("size", [0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, FIVE_MIB + 3])
def test_frames_of_any_size_arrive_whole(three, size):
    payload = secrets.token_bytes(size)
    for receiver in (PartyIndex(0), PartyIndex(2)):  # one stream that party 1 dials, one that it serves
        three[1].send(receiver, "large", payload)
        three[1].send(receiver, "next", b"x")
    for receiver in (0, 2):
        assert three[receiver].receive(PartyIndex(1), "large", size) == payload
        assert three[receiver].receive(PartyIndex(1), "next", None) == b"x"


def test_traffic_counts_payload_bytes_sent(three):
    three[0].send(PartyIndex(1), "a", bytes(1000))
    three[0].send(PartyIndex(2), "b", bytes(24))
    assert [t.traffic.bytes_sent for t in three] == [1024, 0, 0]


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 0)])
def test_another_label_is_a_fault_of_the_sender(three, sender, receiver):
    three[sender].send(receiver, "mul:int64[3]", bytes(24))
    with pytest.raises(PartyFault, match="'and:int64\\[3\\]' was due") as caught:
        three[receiver].receive(sender, "and:int64[3]", 24)
    assert caught.value.party == sender


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("size", [0, 23, 25])
def test_another_size_is_a_fault_of_the_sender(three, sender, receiver, size):
    three[sender].send(receiver, "x", bytes(size))
    with pytest.raises(PartyFault, match=f"sent {size} bytes for 'x', 24 were due") as caught:
        three[receiver].receive(sender, "x", 24)
    assert caught.value.party == sender


@pytest.mark.parametrize("sequence", [0, 2, 7])
def test_a_repeated_or_skipped_frame_is_a_fault_of_the_sender(three, sequence):
    three[0].send(PartyIndex(1), "x", b"1")
    three[0]._put(PartyIndex(1), Frame(sequence, "x", b"2"))
    assert three[1].receive(PartyIndex(0), "x", 1) == b"1"
    with pytest.raises(PartyFault, match=f"sent frame {sequence}") as caught:
        three[1].receive(PartyIndex(0), "x", 1)
    assert caught.value.party == 0


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 0)])
def test_silence_is_a_fault_of_the_silent_party(three, sender, receiver, monkeypatch):
    monkeypatch.setattr(peer_module, "FRAME_SECONDS", 0.2)
    monkeypatch.setattr(three[receiver], "_seconds", 0.2, raising=False)
    with pytest.raises(PartyFault, match=r"sent nothing for 0\.2 s; 'x' was due") as caught:
        three[receiver].receive(sender, "x", 1)
    assert caught.value.party == sender


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 0)])
def test_what_a_closed_party_had_sent_still_arrives_then_its_peers_hear_at_once(three, sender, receiver):
    three[receiver].send(sender, "begin", b"")
    three[sender].receive(receiver, "begin", 0)  # the stream stands
    three[sender].send(receiver, "last", bytes(FIVE_MIB))
    three[sender].close()
    assert three[receiver].receive(sender, "last", FIVE_MIB) == bytes(FIVE_MIB)
    with pytest.raises(PartyFault, match="'x' was due") as caught:
        three[receiver].receive(sender, "x", 1)
    assert caught.value.party == sender
    assert "sent nothing for" not in str(caught.value)  # it did not take the time-out


def test_sessions_do_not_hear_each_other(connect):
    one, other = connect(), connect()
    one[0].send(PartyIndex(1), "x", b"one")
    other[0].send(PartyIndex(1), "x", b"other")
    assert other[1].receive(PartyIndex(0), "x", None) == b"other"
    assert one[1].receive(PartyIndex(0), "x", None) == b"one"


def test_the_protocols_run_on_it(three):
    x = torch.tensor([3, -4, 1 << 61, 0])
    shared = share(x)

    def run(session):
        product = arithmetic.multiply(session, shared[session.party], shared[session.party])
        negative = arithmetic.bit_to_word(session, boolean.sign_bit(session, shared[session.party]))
        return product, session.open(negative, "negative")

    results = at_three_parties(run, declared=["negative"], transports=three)
    assert torch.equal(reconstruct([product for product, _ in results]), x * x)
    assert all(opened.tolist() == [0, 1, 0, 0] for _, opened in results)


def test_threads_and_grpc_take_the_same_rounds_and_bytes(hubs):
    """The frames are the same; only what carries them differs."""
    counted = []
    for transports in (thread_transports(5.0), hubs.join(secrets.token_bytes(32))):
        shared = share([5, -6])
        at_three_parties(lambda s, x=shared: boolean.sign_bit(s, x[s.party]), transports=transports)
        counted.append([(t.traffic.rounds, t.traffic.bytes_sent) for t in transports])
    assert counted[0] == counted[1]
    assert on_shares(lambda s, x: x, [1]).tolist() == [1]


# ---- who may dial whom, over gRPC only ----------------------------------------------------------------------------


async def _dial(hubs: PeerHubs, folder: str, to: int, session: bytes, hello: str = "") -> grpc.StatusCode:
    """What a member with the certificate in `folder` is told when it opens a peer stream to party `to`.

    It sends `hello` only where the server waits for one: grpc.aio reports INTERNAL if a refusal overtakes a write.
    """
    base = hubs.directory / folder
    tls = TlsFiles(base / "tls.crt", base / "tls.key", base / "ca.crt")
    address = hubs.configs[to].peer_listen
    async with open_channel(address, party_identity(hubs.configs[to].federation, PartyIndex(to)), tls) as channel:
        call = peer_pb2_grpc.PeerStub(channel).Exchange()
        if hello:
            await call.write(peer_pb2.Frame(session=session, label=hello, last=True))
        async for _ in call:
            pass
        return await call.code()


def _refused(hubs: PeerHubs, *args, **kwargs) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        hubs.run(_dial(hubs, *args, **kwargs))
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize("folder", ["participants/mallory", "coordinator"])
def test_only_a_party_can_open_a_peer_stream(hubs, folder):
    code, details = _refused(hubs, folder, 1, secrets.token_bytes(32))
    assert code == grpc.StatusCode.PERMISSION_DENIED, details
    assert "may not call" in details


@pytest.mark.parametrize(("caller", "to"), [(2, 1), (1, 1), (0, 2)])
def test_only_the_previous_party_dials(hubs, caller, to):
    """Party 2 could else take party 0's place at party 1."""
    code, details = _refused(hubs, f"party-{caller}", to, secrets.token_bytes(32))
    assert code == grpc.StatusCode.PERMISSION_DENIED, details
    assert f"does not dial party {to}" in details


def test_a_second_stream_of_a_session_is_refused_and_the_first_goes_on(hubs):
    session = secrets.token_bytes(32)
    transports = hubs.join(session)
    transports[0].send(PartyIndex(1), "x", b"first")
    assert transports[1].receive(PartyIndex(0), "x", None) == b"first"
    code, details = _refused(hubs, "party-0", 1, session, "hello")
    assert code == grpc.StatusCode.FAILED_PRECONDITION, details
    assert "already has its stream" in details
    transports[0].send(PartyIndex(1), "y", b"second")
    assert transports[1].receive(PartyIndex(0), "y", None) == b"second"
    for transport in transports:
        transport.close()


def test_a_stream_that_does_not_begin_with_hello_is_refused(hubs):
    code, details = _refused(hubs, "party-0", 1, secrets.token_bytes(32), "mul:int64[1]")
    assert code == grpc.StatusCode.FAILED_PRECONDITION, details


def test_a_stream_of_a_session_that_nobody_joins_is_refused(hubs, monkeypatch):
    monkeypatch.setattr(peer_module, "OPEN_SECONDS", 0.1)
    code, details = _refused(hubs, "party-0", 1, secrets.token_bytes(32), "hello")
    assert code == grpc.StatusCode.FAILED_PRECONDITION, details
    assert "has not begun" in details


def test_a_session_is_joined_once(hubs):
    session = secrets.token_bytes(32)
    transports = hubs.join(session)
    with pytest.raises(WrongState, match="already running"):
        hubs.run(hubs.hubs[0].join(session))
    for transport in transports:
        transport.close()


def test_a_party_that_joins_late_finds_the_stream_waiting(hubs):
    session = secrets.token_bytes(32)
    early = hubs.run(hubs.hubs[0].join(session))
    early.send(PartyIndex(1), "x", b"early")
    late: list[Transport] = []
    timer = threading.Timer(0.2, lambda: late.extend(hubs.run(hubs.hubs[k].join(session)) for k in (1, 2)))
    timer.start()
    timer.join()
    assert late[0].receive(PartyIndex(0), "x", None) == b"early"
    for transport in (early, *late):
        transport.close()


@pytest.mark.parametrize(("early", "late"), [(0, 1), (1, 0)])
def test_a_peer_that_is_late_still_gets_what_was_sent_before_the_other_left(hubs, early, late):
    session = secrets.token_bytes(32)
    first = hubs.run(hubs.hubs[early].join(session))
    first.send(late, "x", b"in time")
    first.close()
    second = hubs.run(hubs.hubs[late].join(session))
    assert second.receive(early, "x", 7) == b"in time"
    second.close()


def test_frames_on_a_long_line_are_late_and_in_order(hubs, monkeypatch):
    delay = 0.05
    for hub in hubs.hubs:
        monkeypatch.setattr(hub, "_link_delay", delay)
    first, second, _ = hubs.join(secrets.token_bytes(32))
    started = time.monotonic()
    for i in range(20):
        first.send(PartyIndex(1), f"frame {i}", bytes([i]))
    assert [second.receive(PartyIndex(0), f"frame {i}", 1) for i in range(20)] == [bytes([i]) for i in range(20)]
    assert time.monotonic() - started >= delay
    first.close()
    second.close()


def test_no_configuration_makes_a_line_long():
    assert "link_delay" not in PartyConfig.model_fields
    assert PeerHub.__init__.__defaults__ == (0.0,)
