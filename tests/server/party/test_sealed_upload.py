"""Uploads that a forwarder brings sealed: taken like the participant's own, and of no use anywhere else."""

from __future__ import annotations

import asyncio
import dataclasses

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from triskele import submission as submissions
from triskele.ids import ParticipantId, PartyIndex, RoundNumber
from triskele.limits import DEFAULT_LIMITS
from triskele.sealed import SealContext, SealedUpload, open_sealed, seal, seal_submission
from triskele.task import TaskSpec
from triskele_proto.v1 import party_pb2
from triskele_server.party.sealed_intake import load_sealing_key
from triskele_server.provision import PortPlan, provision

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SIZE = 8000  # bytes of a heavy share in these tests


@pytest.fixture(scope="session")
def federation(federation, tmp_path_factory):
    """As the folder's federation, with a forwarder."""
    directory = tmp_path_factory.mktemp("sealed-tests") / "federation"
    provision(
        directory, participants=("alice", "bob", "carol", "mallory"), ports=PortPlan.from_base(7000), forwarder=True
    )
    return type(federation)(directory)


def sealing_key(federation, party: int) -> X25519PublicKey:
    pem = (federation.directory / "forwarder" / f"sealing-{party}.crt").read_bytes()
    key = x509.load_pem_x509_certificate(pem).public_key()
    assert isinstance(key, X25519PublicKey)
    return key


def sealed_for(federation, made, party: int = 0, *, chunk_bytes: int = 1024) -> SealedUpload:
    signed = federation.sign(made.signer or made.participant, made.manifest)
    whole = submissions.Submission(made.manifest, signed, made.sharing)
    return seal_submission(whole, PartyIndex(party), sealing_key(federation, party), chunk_bytes=chunk_bytes)


def requests(upload: SealedUpload, made, **changes) -> list[party_pb2.SealedUploadRequest]:
    fields = {
        "task_digest": made.manifest.task,
        "round": made.manifest.round,
        "participant": made.manifest.participant,
        "sealed": upload.header,
    } | changes
    header = party_pb2.SealedUploadRequest(header=party_pb2.SealedUploadHeader(**fields))
    return [header, *(chunk(offset, data) for offset, data in upload.chunks)]


def chunk(offset: int, sealed: bytes) -> party_pb2.SealedUploadRequest:
    return party_pb2.SealedUploadRequest(chunk=party_pb2.SealedChunk(offset=offset, sealed=sealed))


async def bring(party, stream):
    """With the blocking API: it shows an answer given in mid-stream."""
    return await party.sent("forwarder", lambda client: client.UploadSealed(iter(list(stream)), timeout=20))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("index", range(3))
def test_party_keeps_the_same_files_as_from_a_direct_upload_and_counts_repetitions_once(
    start_party, spec, submission, federation, index
):
    async def scenario():
        async with start_party(index) as party:
            await party.open(spec)
            made = [submission(p, slot=slot) for slot, p in enumerate(("alice", "bob", "carol"))]
            sent = [requests(sealed_for(federation, one, index), one) for one in made]
            replies = [await bring(party, stream) for stream in sent + sent]
            direct = await party.submit(made[0])
            return party, made, replies, direct, await party.round_status(spec)

    party, made, replies, direct, status = asyncio.run(scenario())
    expected = {}
    for s in made:
        for share in (index, (index + 1) % 3):
            heavy = share == s.manifest.heavy
            expected[f"{s.manifest.participant}-{share}.{'words' if heavy else 'seed'}"] = (
                s.heavy_bytes if heavy else s.sharing.seeds[share]
            )
    assert party.share_files() == expected
    assert all(reply.complete for reply in replies)
    assert direct == replies[0]
    assert [(c.slot, c.participant, c.manifest_digest) for c in status.complete] == [
        (slot, s.participant, s.manifest.digest) for slot, s in enumerate(made)
    ]


def _attacks():
    """Name -> (stream from (federation, spec, submission), words of the answer), all sent to party 0 in round 1."""

    def for_another_party(federation, spec, make):
        made = make("alice", slot=2)  # parties 0 and 1 get a header of the same form
        return requests(sealed_for(federation, made, 1), made)

    def from_another_round(federation, spec, make):
        made = make("alice", number=2)
        return requests(sealed_for(federation, made), made, round=1)

    def from_another_task(federation, spec, make):
        made = make("alice", task=TaskSpec("other", 1000, 1.0, max_participants=16))
        return requests(sealed_for(federation, made), made, task_digest=spec.digest)

    def as_another_participant(federation, spec, make):
        made = make("alice")
        return requests(sealed_for(federation, made), made, participant="mallory")

    def resealed(federation, made, **changes):
        """What a forwarder can make itself: any header, sealed for any place."""
        context = SealContext(made.manifest.task, made.manifest.round, ParticipantId("alice"), PartyIndex(0))
        signed = federation.sign(made.signer or made.participant, made.manifest)
        header = party_pb2.UploadHeader(manifest=signed, shares=made.shares(0))
        return seal(header.SerializeToString(), sealing_key(federation, 0), context.header_info())

    def own_manifest_under_another_name(federation, spec, make):
        made = make("mallory")
        return requests(sealed_for(federation, made), made, participant="alice", sealed=resealed(federation, made))

    def manifest_that_its_participant_did_not_sign(federation, spec, make):
        made = make("alice")
        made.signer = "mallory"
        return requests(sealed_for(federation, made), made)

    def not_sealed(federation, spec, make):
        made = make("alice")
        return requests(sealed_for(federation, made), made, sealed=made.header(0).header.SerializeToString())

    def changed_header(federation, spec, make):
        made = make("alice")
        upload = sealed_for(federation, made)
        return requests(upload, made, sealed=flipped(upload.header, 100))

    def changed_chunk(federation, spec, make):
        made = make("alice")
        stream = requests(sealed_for(federation, made), made)
        stream[2].chunk.sealed = flipped(stream[2].chunk.sealed, 60)
        return stream

    def chunks_in_each_others_place(federation, spec, make):
        made = make("alice")
        upload = sealed_for(federation, made)
        (first, one), (second, two), *rest = upload.chunks
        return requests(SealedUpload(upload.header, ((first, two), (second, one), *rest)), made)

    def chunks_of_another_upload(federation, spec, make):
        made, other = make("alice"), make("alice", value=8)
        return requests(SealedUpload(sealed_for(federation, made).header, sealed_for(federation, other).chunks), made)

    def invented_words(federation, spec, make):
        made = make("alice")
        context = SealContext(made.manifest.task, made.manifest.round, ParticipantId("alice"), PartyIndex(0))
        info = context.chunk_info(made.manifest.digest, 0)
        words = seal(bytes(SIZE), sealing_key(federation, 0), info)
        return requests(SealedUpload(sealed_for(federation, made).header, ((0, words),)), made)

    def truncated(federation, spec, make):
        made = make("alice")
        return requests(sealed_for(federation, made), made)[:-1]

    def huge_header(federation, spec, make):
        made = make("alice")
        return requests(sealed_for(federation, made), made, sealed=bytes(1 << 15))

    def empty_chunk(federation, spec, make):
        made = make("alice")
        return [requests(sealed_for(federation, made), made)[0], chunk(0, b"")]

    def no_name(federation, spec, make):
        made = make("alice")
        return requests(sealed_for(federation, made), made, participant="../alice")

    other_place = "does not open here"
    return {
        "for another party": (for_another_party, other_place),
        "from another round": (from_another_round, other_place),
        "from another task": (from_another_task, other_place),
        "as another participant": (as_another_participant, other_place),
        "own manifest under another name": (own_manifest_under_another_name, "identity"),
        "a manifest that its participant did not sign": (manifest_that_its_participant_did_not_sign, "identity"),
        "not sealed": (not_sealed, other_place),
        "changed header": (changed_header, other_place),
        "changed chunk": (changed_chunk, other_place),
        "chunks in each other's place": (chunks_in_each_others_place, other_place),
        "chunks of another upload": (chunks_of_another_upload, other_place),
        "invented words": (invented_words, "does not match the manifest's commitment"),
        "truncated": (truncated, "truncated"),
        "huge header": (huge_header, "over the limit"),
        "empty chunk": (empty_chunk, "out of range"),
        "no name": (no_name, "not a name"),
        "nothing": (lambda *_: [], "begins with its header"),
        "only a chunk": (lambda *_: [chunk(0, bytes(100))], "begins with its header"),
    }


@pytest.mark.parametrize("name", _attacks())
def test_forwarder_cannot_bring_what_was_not_sealed_for_this_place(  # noqa: PLR0917  fixtures
    start_party, spec, submission, federation, refused, name
):
    build, words = _attacks()[name]

    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            await party.open(spec, number=2)
            good = submission("alice")

            def make(*args, **changes):
                """What the attack is made from: the good submission itself, where it is about that."""
                itself = args == ("alice",) and not changes
                return dataclasses.replace(good) if itself else submission(*args, **changes)

            bad = build(federation, spec, make)
            async with refused(INVALID, words):
                await bring(party, bad)
            before = await party.round_status(spec)
            reply = await bring(party, requests(sealed_for(federation, good), good))
            return before, reply, await party.round_status(spec)

    before, reply, status = asyncio.run(scenario())
    assert not before.complete
    assert reply.complete
    assert [c.participant for c in status.complete] == ["alice"]


def test_upload_that_broke_is_brought_again_from_its_beginning(start_party, spec, submission, federation, refused):
    async def scenario():
        async with start_party() as party:
            await party.open(spec)
            made = submission("alice")
            stream = requests(sealed_for(federation, made), made)
            async with refused(INVALID, "truncated: 4096 of 8000"):
                await bring(party, stream[:5])
            reply = await bring(party, requests(sealed_for(federation, made), made))  # sealed anew: other ciphertexts
            return reply, party.share_files(), made

    reply, files, made = asyncio.run(scenario())
    assert reply.complete
    assert files["alice-0.words"] == made.heavy_bytes


@pytest.mark.parametrize("by", ["name", "signing certificate"])
def test_forwarder_cannot_bring_the_upload_of_a_denied_participant(  # noqa: PLR0917  fixtures
    start_party, spec, submission, federation, refused, tmp_path, by
):
    certificate = federation.directory / "participants" / "alice" / "signing.crt"
    serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    denied = tmp_path / "denied.txt"
    denied.write_text(federation.identity("alice").uri if by == "name" else f"serial:{serial:x}")
    tls = federation.party_config(0, tmp_path).tls.model_copy(update={"denied": denied})

    async def scenario():
        async with start_party(tls=tls) as party:
            await party.open(spec)
            alice, bob = submission("alice"), submission("bob", slot=1)
            async with refused(grpc.StatusCode.PERMISSION_DENIED, "deny list"):
                await bring(party, requests(sealed_for(federation, alice), alice))
            return await bring(party, requests(sealed_for(federation, bob), bob))

    assert asyncio.run(scenario()).complete


def test_party_without_a_sealing_key_takes_no_sealed_upload(start_party, spec, submission, federation, refused):
    async def scenario():
        async with start_party(sealing_key=None) as party:
            await party.open(spec)
            made = submission("alice")
            async with refused(grpc.StatusCode.PERMISSION_DENIED, "takes no sealed uploads"):
                await bring(party, requests(sealed_for(federation, made), made))

    asyncio.run(scenario())


def test_what_the_forwarder_carries_holds_no_share_and_opens_with_the_partys_key_only(federation, submission):
    made = submission("alice")
    upload = sealed_for(federation, made)
    carried = upload.to_bytes()
    for secret in (*made.sharing.seeds.values(), *made.sharing.salts, made.heavy_bytes[:16], made.heavy_bytes[-16:]):
        assert secret not in carried
    key = load_sealing_key(federation.directory / "party-0" / "sealing.key")
    context = SealContext(made.manifest.task, RoundNumber(1), ParticipantId("alice"), PartyIndex(0))
    opened = open_sealed(upload.header, key, context.header_info())
    assert made.sharing.salts[0] in opened  # the control: the header does hold it
    words = [open_sealed(data, key, context.chunk_info(made.manifest.digest, at)) for at, data in upload.chunks]
    assert b"".join(words) == made.heavy_bytes
    assert SealedUpload.from_bytes(carried, DEFAULT_LIMITS) == upload


def test_sealing_certificate_is_the_partys_and_its_key_is_for_the_party_only(federation):
    for party in range(3):
        pem = (federation.directory / "forwarder" / f"sealing-{party}.crt").read_bytes()
        path = federation.directory / f"party-{party}" / "sealing.key"
        assert path.stat().st_mode & 0o777 == 0o600
        assert load_sealing_key(path).public_key() == x509.load_pem_x509_certificate(pem).public_key()
        assert x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert not list((federation.directory / "forwarder").glob("sealing*.key"))
