"""Who may call what: every cell of role x RPC through a real server with mutual TLS; who gets no connection at all."""

from __future__ import annotations

import asyncio
import datetime

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from google.protobuf.message_factory import GetMessageClass

from triskele.identity import Identity
from triskele_proto.v1 import control_pb2, coordinator_pb2, info_pb2, party_pb2, peer_pb2
from triskele_server.rpc.certificates import Credential
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.server import bind, build_server

FEDERATION = "bank.example"
SERVER = Identity(FEDERATION, "party", "0")
ROLES = ("participant", "party", "coordinator", "operator", "reader", "forwarder")
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (coordinator_pb2, party_pb2, control_pb2, peer_pb2, info_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# Written out once more on purpose: a change of the table must be made in two places, knowingly.
EXPECTED = {
    ("participant", "/triskele.v1.Coordinator/ListTasks"),
    ("participant", "/triskele.v1.Coordinator/WatchRounds"),
    ("participant", "/triskele.v1.Coordinator/ListRounds"),
    ("participant", "/triskele.v1.Coordinator/Enrol"),
    ("participant", "/triskele.v1.Coordinator/FetchResult"),
    ("participant", "/triskele.v1.Coordinator/FetchLog"),
    ("participant", "/triskele.v1.Coordinator/FetchCertificate"),
    ("participant", "/triskele.v1.Party/UploadStatus"),
    ("participant", "/triskele.v1.Party/Upload"),
    ("participant", "/triskele.v1.Party/FetchMaskKeys"),
    ("coordinator", "/triskele.v1.PartyControl/OpenRound"),
    ("coordinator", "/triskele.v1.PartyControl/RoundStatus"),
    ("coordinator", "/triskele.v1.PartyControl/SealRound"),
    ("coordinator", "/triskele.v1.PartyControl/RunRound"),
    ("coordinator", "/triskele.v1.PartyControl/FetchOutput"),
    ("coordinator", "/triskele.v1.PartyControl/EndRound"),
    ("coordinator", "/triskele.v1.PartyControl/Cosign"),
    ("party", "/triskele.v1.Peer/Exchange"),
    ("party", "/triskele.v1.Party/Relay"),
    ("party", "/triskele.v1.Party/RelayStatus"),
    ("operator", "/triskele.v1.Coordinator/ListTasks"),
    ("operator", "/triskele.v1.Coordinator/WatchRounds"),
    ("operator", "/triskele.v1.Coordinator/ListRounds"),
    ("operator", "/triskele.v1.Coordinator/FetchLog"),
    ("operator", "/triskele.v1.Coordinator/FetchCertificate"),
    ("reader", "/triskele.v1.Coordinator/ListTasks"),
    ("reader", "/triskele.v1.Coordinator/WatchRounds"),
    ("reader", "/triskele.v1.Coordinator/ListRounds"),
    ("reader", "/triskele.v1.Coordinator/FetchResult"),
    ("reader", "/triskele.v1.Coordinator/FetchLog"),
    ("reader", "/triskele.v1.Coordinator/FetchCertificate"),
    ("reader", "/triskele.v1.Party/FetchMaskKeys"),
    ("forwarder", "/triskele.v1.Coordinator/ListTasks"),
    ("forwarder", "/triskele.v1.Coordinator/WatchRounds"),
    ("forwarder", "/triskele.v1.Coordinator/ListRounds"),
    ("forwarder", "/triskele.v1.Coordinator/FetchResult"),
    ("forwarder", "/triskele.v1.Coordinator/FetchLog"),
    ("forwarder", "/triskele.v1.Coordinator/FetchCertificate"),
    ("forwarder", "/triskele.v1.Coordinator/EnrolFor"),
    ("forwarder", "/triskele.v1.Party/UploadSealed"),
    *((role, "/triskele.v1.Info/Describe") for role in ROLES),
}


def _every_method():
    """A handler for each RPC of the protocol that answers with an empty message."""
    handlers: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for name, method in METHODS.items():
        reply = GetMessageClass(method.output_type)

        async def single(_request, _context, reply=reply):
            return reply()

        async def stream(_request, _context, reply=reply):
            yield reply()

        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        handler = make(
            stream if method.server_streaming else single,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=reply.SerializeToString,
        )
        _, service, short = name.split("/")
        handlers.setdefault(service, {})[short] = handler
    return [grpc.method_handlers_generic_handler(service, methods) for service, methods in handlers.items()]


async def _call(channel, name) -> grpc.StatusCode:
    method = METHODS[name]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    request_class = GetMessageClass(method.input_type)
    stub = getattr(channel, kind)(name, request_class.SerializeToString, GetMessageClass(method.output_type).FromString)
    request = iter([request_class()]) if method.client_streaming else request_class()
    call = stub(request, timeout=10)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _with_server(members, tls_of_callers, names):
    """{(label, method): status} for each caller and method, against one server."""
    server_tls = members.tls(SERVER.role, SERVER.name)
    server = build_server(server_tls, FEDERATION)
    server.add_generic_rpc_handlers(_every_method())
    port = bind(server, "127.0.0.1:0", server_tls)
    await server.start()
    seen = {}
    try:
        for label, tls in tls_of_callers.items():
            async with open_channel(f"127.0.0.1:{port}", SERVER, tls) as channel:
                for name in names:
                    seen[label, name] = await _call(channel, name)
    finally:
        await server.stop(None)
    return seen


@pytest.fixture(scope="module")
def matrix(members):
    return asyncio.run(_with_server(members, {role: members.tls(role, "1") for role in ROLES}, METHODS))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_call_what_the_table_says_and_nothing_else(matrix, role, name):
    allowed = (role, name) in EXPECTED
    assert matrix[role, name] is (grpc.StatusCode.OK if allowed else grpc.StatusCode.PERMISSION_DENIED)


def test_the_expected_table_names_only_methods_that_exist():
    assert {name for _, name in EXPECTED} <= set(METHODS)
    assert len(METHODS) == 23


MINUTE = datetime.timedelta(minutes=1)


def _leaf(members, uris, *, begins=-MINUTE, ends=10 * MINUTE):
    """A certificate of the right authority with the given URI names, and no other; valid from and to, from now."""
    authority = members.authority.credential
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = serialization.load_pem_private_key(authority.key, None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("a.example"), *map(x509.UniformResourceIdentifier, uris)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(names, critical=False)
        .sign(issuer_key, SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Credential(certificate.public_bytes(pem), secret)


LIST_TASKS = "/triskele.v1.Coordinator/ListTasks"


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param([], id="no identity"),
        pytest.param(
            [f"spiffe://{FEDERATION}/participant/p00", f"spiffe://{FEDERATION}/coordinator/main"], id="two identities"
        ),
        pytest.param(["https://bank.example/participant/p00"], id="no SPIFFE id"),
        pytest.param([f"spiffe://{FEDERATION}/participant"], id="no name"),
        pytest.param([f"spiffe://{FEDERATION}/auditor/p00"], id="unknown role"),
        pytest.param([f"spiffe://{FEDERATION}/participant/p00/coordinator/main"], id="longer path"),
        pytest.param(["spiffe://other.example/participant/p00"], id="other federation"),
    ],
)
def test_certificate_of_the_authority_without_one_identity_of_the_federation_may_call_nothing(members, uris):
    tls = members.files("odd", _leaf(members, uris))
    seen = asyncio.run(_with_server(members, {"odd": tls}, METHODS))
    assert set(seen.values()) == {grpc.StatusCode.PERMISSION_DENIED}


def test_the_same_certificate_with_one_identity_is_let_in(members):
    """The control of the test above: what is refused there is refused for its names."""
    tls = members.files("even", _leaf(members, [f"spiffe://{FEDERATION}/participant/p00"]))
    assert asyncio.run(_with_server(members, {"even": tls}, [LIST_TASKS])) == {("even", LIST_TASKS): grpc.StatusCode.OK}


@pytest.mark.parametrize(
    "times",
    [
        pytest.param({"begins": -2 * MINUTE, "ends": -MINUTE}, id="expired"),
        pytest.param({"begins": MINUTE, "ends": 2 * MINUTE}, id="not yet valid"),
    ],
)
def test_certificate_that_is_not_valid_now_gets_no_connection(members, times):
    tls = members.files("untimely", _leaf(members, [f"spiffe://{FEDERATION}/participant/p00"], **times))
    seen = asyncio.run(_with_server(members, {"untimely": tls}, [LIST_TASKS]))
    assert set(seen.values()) == {grpc.StatusCode.UNAVAILABLE}


def test_certificate_of_another_authority_gets_no_connection(members, strangers):
    own = members.tls("participant", "p00")
    other = strangers.tls("participant", "p00")
    mixed = type(other)(other.certificate, other.key, own.authority)  # trusts the server, is not trusted by it
    seen = asyncio.run(_with_server(members, {"own": own, "mixed": mixed, "other": other}, [LIST_TASKS]))
    assert seen == {
        ("own", LIST_TASKS): grpc.StatusCode.OK,
        ("mixed", LIST_TASKS): grpc.StatusCode.UNAVAILABLE,
        ("other", LIST_TASKS): grpc.StatusCode.UNAVAILABLE,
    }


@pytest.mark.parametrize("kind", ["no certificate", "plain text"])
def test_client_without_a_certificate_gets_no_connection(members, kind):
    async def scenario():
        tls = members.tls("party", "0")
        server = build_server(tls, FEDERATION)
        server.add_generic_rpc_handlers(_every_method())
        address = f"127.0.0.1:{bind(server, '127.0.0.1:0', tls)}"
        await server.start()
        options = [("grpc.ssl_target_name_override", SERVER.host)]
        try:
            if kind == "plain text":
                channel = grpc.aio.insecure_channel(address)
            else:
                credentials = grpc.ssl_channel_credentials(tls.authority.read_bytes())
                channel = grpc.aio.secure_channel(address, credentials, options=options)
            async with channel:
                return await _call(channel, LIST_TASKS)
        finally:
            await server.stop(None)

    assert asyncio.run(scenario()) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("role", "name"), [("party", "1"), ("coordinator", "main"), ("participant", "0"), ("operator", "0")]
)
def test_no_other_member_can_pose_as_party_0(members, role, name):
    async def scenario():
        impostor = members.tls(role, name)
        server = build_server(impostor, FEDERATION)
        server.add_generic_rpc_handlers(_every_method())
        port = bind(server, "127.0.0.1:0", impostor)
        await server.start()
        try:
            async with open_channel(f"127.0.0.1:{port}", SERVER, members.tls("participant", "p00")) as channel:
                return await _call(channel, LIST_TASKS)
        finally:
            await server.stop(None)

    assert asyncio.run(scenario()) is grpc.StatusCode.UNAVAILABLE


def test_unknown_method_is_not_implemented(members):
    async def scenario():
        tls = members.tls("party", "0")
        server = build_server(tls, FEDERATION)
        port = bind(server, "127.0.0.1:0", tls)
        await server.start()
        try:
            async with open_channel(f"127.0.0.1:{port}", SERVER, members.tls("participant", "p00")) as channel:
                return await _call(channel, LIST_TASKS)
        finally:
            await server.stop(None)

    assert asyncio.run(scenario()) is grpc.StatusCode.UNIMPLEMENTED
