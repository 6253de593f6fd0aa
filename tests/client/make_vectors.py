"""Makes proto/vectors/share-format.json. Run from the repository: `PYTHONPATH=tests python -m client.make_vectors`.

Certificates and keys are random, so they are kept once made: what is in the file's "federation" goes on being used, and
everything else follows from it. Delete the file to begin with new ones.
"""

import copy
import json
import struct
import sys
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from triskele.coordinates import positions
from triskele.ids import PARTIES, ParticipantId, RoundNumber, ShareIndex, Slot, TaskDigest, held_shares
from triskele.manifest import Manifest, sign
from triskele.sharing import ShareContext, Sharing, commit, expand, heavy_index, share_key
from triskele.sharing import split as split_words
from triskele.task import TaskSpec
from triskele_proto.v1 import types_pb2

from .certificates import FROM, UNTIL, Authority

FILE = Path(__file__).parents[2] / "proto" / "vectors" / "share-format.json"
FORMAT = "triskele/v2/share-format"
NOW = int(FROM.timestamp()) + 86_400

# The order in which a party checks what it receives; each negative case names the first that must fail.
STEPS = ("task", "decode", "certificate", "identity", "signature", "participant", "belongs-to", "shares", "commitment")

TASKS = {
    "plain": TaskSpec("plain", 5, 1.0),
    "weighted": TaskSpec(
        "weighted", 4, 2.5, rule="multi-krum", rule_options={"num_malicious_nodes": 1}, max_weight=999
    ),
    "long": TaskSpec("long", 67, 0.1, decisions="hidden", max_participants=5),
    "narrow": TaskSpec("narrow", 6, 1.0, rule="mean", ring_bits=32),
    "narrow-weighted": TaskSpec("narrow-weighted", 22, 3.0, max_weight=(1 << 30) - 1, ring_bits=32, fraction_bits=16),
}
WORDS = {
    "plain": [0, 1, -1, 2**20, -(2**20)],
    "weighted": [2**63 - 1, -(2**63), 7, -7, 999],
    "long": [(i - 33) * 31_337 for i in range(67)],
    "narrow": [0, -1, 2**20, -(2**20), 2**31 - 1, -(2**31)],
    "narrow-weighted": [(i - 11) * 5_959 for i in range(22)] + [(1 << 30) - 1],
}


def new_federation() -> dict[str, str]:
    """An authority and the signing certificates that the cases need, in hex."""
    authority = Authority()
    alice, bob = (authority.identity("participant", name) for name in ("alice", "bob"))
    key, foreign = Ed25519PrivateKey.generate(), Authority()
    public = key.public_key()
    certificates = {
        "authority": authority.certificate,
        "alice": authority.issue(alice, public),
        "bob": authority.issue(bob, public),
        "expired": authority.issue(alice, public, valid_until=FROM.replace(hour=1)),
        "foreign": foreign.issue(alice, public),
        "tls": authority.issue(alice, ec.generate_private_key(ec.SECP256R1()).public_key()),
    }
    der = {name: certificate.public_bytes(Encoding.DER).hex() for name, certificate in certificates.items()}
    return {**der, "signing_key": key.private_bytes_raw().hex()}


class Federation:
    """The kept certificates, as objects."""

    def __init__(self, content: dict[str, str]) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(content["signing_key"]))
        self.certificates = {
            name: x509.load_der_x509_certificate(bytes.fromhex(der))
            for name, der in content.items()
            if name != "signing_key"
        }

    def sign(self, manifest: Manifest, certificate="alice") -> types_pb2.SignedManifest:
        return sign(manifest, self.key, self.certificates[certificate])


def positive(name: str, task: str, round_number: int, slot: int, federation: Federation) -> dict:
    """One sharing with every value on the way."""
    spec, words = TASKS[task], np.array(WORDS[task], TASKS[task].ring.dtype)
    context = ShareContext(spec.digest, RoundNumber(round_number), ParticipantId("alice"))
    sharing = split_words(words, heavy=heavy_index(Slot(slot)), context=context, entropy=name.encode().ljust(32, b"."))
    manifest = Manifest(
        spec.digest,
        context.round,
        context.participant,
        Slot(slot),
        sharing.heavy,
        spec.length,
        sharing.commitments(),
    )
    seeds = sorted(sharing.seeds.items())
    return {
        "name": name,
        "task": spec.canonical().decode(),
        "task_digest": spec.digest.hex(),
        "round": round_number,
        "participant": context.participant,
        "slot": slot,
        "heavy": sharing.heavy,
        "ring_bits": spec.ring_bits,
        "words": [str(word) for word in words.tolist()],
        "seeds": {str(index): seed.hex() for index, seed in seeds},
        "salts": [salt.hex() for salt in sharing.salts],
        "hkdf_info": {str(index): context.info(index).hex() for index, _ in seeds},
        "keys": {str(index): share_key(seed, context, index).hex() for index, seed in seeds},
        "expanded": {
            str(index): expand(seed, context, index).words(spec.length, spec.ring).tobytes().hex()
            for index, seed in seeds
        },
        "heavy_share": sharing.heavy_words.tobytes().hex(),
        "commitments": [commitment.hex() for commitment in manifest.commitments],
        "manifest": manifest.canonical().hex(),
        "manifest_digest": manifest.digest.hex(),
        "signature": federation.key.sign(manifest.canonical()).hex(),
        "signed_manifest": federation.sign(manifest).SerializeToString(deterministic=True).hex(),
        "uploads": [upload(sharing, party) for party in PARTIES],
    }


def coordinates(dimension: int, model_dimension: int, number: int) -> dict:
    """Which entries of a model travel in a round of a task."""
    spec = TaskSpec("part", dimension, 1.0, model_dimension=model_dimension)
    return {
        "task": spec.canonical().decode(),
        "task_digest": spec.digest.hex(),
        "round": number,
        "positions": positions(spec, RoundNumber(number)).tolist(),
    }


def upload(sharing: Sharing, party) -> dict:
    """What one party receives beside the signed manifest."""
    shares = [
        {"index": index, "salt": sharing.salts[index].hex(), "share": share_bytes(sharing, index).hex()}
        for index in held_shares(party)
    ]
    return {"party": party, "shares": shares}


def share_bytes(sharing: Sharing, index: ShareIndex) -> bytes:
    return sharing.heavy_words.tobytes() if index == sharing.heavy else sharing.seeds[index]


class Negative:
    """Cases that differ from a valid upload of a positive case to party 0 (heavy share 0, seed 1) in one point each."""

    def __init__(self, base: dict, federation: Federation) -> None:
        self.federation = federation
        self.cases: list[dict] = []
        self.manifest = Manifest.from_proto(
            types_pb2.SignedManifest.FromString(unhex(base["signed_manifest"])).manifest
        )
        self.base = {
            "task": base["task"].encode().hex(),
            "round": base["round"],
            "identity": "spiffe://demo/participant/alice",
            "now": NOW,
            "signed_manifest": base["signed_manifest"],
            **base["uploads"][0],
        }

    def add(self, name: str, step: str, **change) -> None:
        self.cases.append({"name": name, "step": step, **copy.deepcopy(self.base), **change})

    def add_signed(self, name: str, step: str, *, certificate="alice", **change) -> None:
        """A manifest with other content, properly signed."""
        fields = {**self.manifest.__dict__, **change}
        self.add(name, step, signed_manifest=message(self.federation.sign(Manifest(**fields), certificate)))

    def add_proto(self, name: str, step: str, change) -> None:
        """A signed manifest that `change` has altered afterwards."""
        signed = types_pb2.SignedManifest.FromString(unhex(self.base["signed_manifest"]))
        change(signed)
        self.add(name, step, signed_manifest=message(signed))

    def add_share(self, name: str, step: str, place: int, **change) -> None:
        shares = copy.deepcopy(self.base["shares"])
        shares[place].update(change)
        self.add(name, step, shares=shares)


def message(signed: types_pb2.SignedManifest) -> str:
    return signed.SerializeToString(deterministic=True).hex()


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def negatives(base: dict, federation: Federation) -> list[dict]:
    cases = Negative(base, federation)
    task = unhex(cases.base["task"])
    for name, content in {
        "empty task": b"",
        "task with white space": task.replace(b",", b", ", 1),
        "task with a field too many": task.replace(b'"gram"', b'"extra":1,"gram"', 1),
        "task without its format": task.replace(b"triskele/v2/task", b"triskele/v1/task"),
        "task with a clip norm of zero": task.replace(b"0x1.0000000000000p+0", b"0x0.0p+0"),
        "task whose aggregate could wrap": TASKS["plain"]
        .canonical()
        .replace(b'"max_participants":128', b'"max_participants":1024')
        .replace(b'"max_weight":0', b'"max_weight":4294967295'),
        "task in a ring of 16 bits": task.replace(b'"ring_bits":64', b'"ring_bits":16'),
        "task in the 64-bit ring with other places": task.replace(b'"fraction_bits":20', b'"fraction_bits":16'),
        **{
            f"task in the 32-bit ring {name}": task.replace(b'"ring_bits":64', b'"ring_bits":32').replace(old, new)
            for name, old, new in (
                ("with too many places", b'"fraction_bits":20', b'"fraction_bits":21'),
                ("whose sketch could wrap", b'"dimension":5', b'"dimension":16777217'),
                ("with weights that are not lifted", b'"max_weight":0', b'"max_weight":1073741824'),
            )
        },
    }.items():
        assert content != task
        cases.add(name, "task", task=content.hex())
    whole = unhex(cases.base["signed_manifest"])
    cases.add("truncated manifest", "decode", signed_manifest=whole[:-40].hex())
    cases.add("no manifest", "decode", signed_manifest="")
    cases.add_proto("two commitments", "decode", lambda signed: signed.manifest.commitments.pop())
    cases.add_proto("heavy share of another slot", "decode", lambda signed: setattr(signed.manifest, "heavy", 1))
    cases.add_proto("round zero", "decode", lambda signed: setattr(signed.manifest, "round", 0))
    cases.add_proto("no length", "decode", lambda signed: setattr(signed.manifest, "length", 0))
    cases.add_proto("capitals in a name", "decode", lambda signed: setattr(signed.manifest, "participant", "Alice"))
    cases.add_proto("short digest", "decode", lambda signed: setattr(signed.manifest, "task_digest", bytes(31)))
    cases.add_signed("foreign authority", "certificate", certificate="foreign")
    cases.add_signed("expired certificate", "certificate", certificate="expired")
    cases.add_signed("certificate without an Ed25519 key", "certificate", certificate="tls")
    cases.add("certificate not valid yet", "certificate", now=int(FROM.timestamp()) - 1)
    cases.add("certificate not valid any more", "certificate", now=int(UNTIL.timestamp()) + 1)
    cases.add_proto(
        "certificate that is none", "certificate", lambda signed: setattr(signed, "certificate", b"\x30\x00")
    )
    cases.add_signed("certificate of somebody else", "identity", certificate="bob")
    cases.add("sent by somebody else", "identity", identity="spiffe://demo/participant/bob")
    cases.add("sent by a party of the same name", "identity", identity="spiffe://demo/party/alice")
    cases.add("sent by a member of another federation", "identity", identity="spiffe://other/participant/alice")
    for field, value in {"round": 2, "length": 6, "task_digest": bytes(32), "participant": "bob"}.items():
        cases.add_proto(
            f"{field} changed after signing",
            "signature",
            lambda signed, f=field, v=value: setattr(signed.manifest, f, v),
        )
    cases.add_proto("slot and heavy share changed after signing", "signature", next_slot)
    cases.add_proto("commitments exchanged after signing", "signature", exchange_commitments)
    cases.add_proto("empty signature", "signature", lambda signed: setattr(signed, "signature", b""))
    cases.add_proto("signature of zeros", "signature", lambda signed: setattr(signed, "signature", bytes(64)))
    cases.add_signed("signed in another participant's name", "participant", participant=ParticipantId("bob"))
    cases.add_signed("manifest of another round", "belongs-to", round=RoundNumber(2))
    cases.add_signed("manifest of another task", "belongs-to", task=TaskDigest(bytes(32)))
    cases.add_signed("manifest of another length", "belongs-to", length=6)
    cases.add_signed("slot beyond the task's participants", "belongs-to", slot=Slot(129))
    shares = cases.base["shares"]
    cases.add("one share", "shares", shares=shares[:1])
    cases.add("shares in the wrong order", "shares", shares=shares[::-1])
    cases.add("shares of another party", "shares", party=1)
    cases.add_share("salt of 15 bytes", "shares", 0, salt=shares[0]["salt"][:-2])
    cases.add_share("seed of 15 bytes", "shares", 1, share=shares[1]["share"][:-2])
    cases.add_share("truncated heavy share", "shares", 0, share=shares[0]["share"][:-16])
    cases.add_share("heavy share with a word too many", "shares", 0, share=shares[0]["share"] + "00" * 8)
    cases.add_share("heavy share with one bit changed", "commitment", 0, share=flip(shares[0]["share"]))
    cases.add_share("seed with one bit changed", "commitment", 1, share=flip(shares[1]["share"]))
    cases.add_share("salt with one bit changed", "commitment", 1, salt=flip(shares[1]["salt"]))
    cases.add_share("salt of the other share", "commitment", 0, salt=shares[1]["salt"])
    big_endian = struct.pack(">5q", *struct.unpack("<5q", unhex(shares[0]["share"])))
    cases.add_share("heavy share in big endian", "commitment", 0, share=big_endian.hex())
    return cases.cases


def narrow_negatives(base: dict, federation: Federation) -> list[dict]:
    cases = Negative(base, federation)
    wide = unhex(cases.base["task"]).replace(b'"ring_bits":32', b'"ring_bits":64')
    assert wide != unhex(cases.base["task"])
    cases.add("narrow: sent for the same task in the 64-bit ring", "belongs-to", task=wide.hex())
    cases.add_signed("narrow: manifest of another length", "belongs-to", length=5)
    heavy = cases.base["shares"][0]["share"]
    words = struct.unpack("<6i", unhex(heavy))
    cases.add_share("narrow: heavy share of 64-bit words", "shares", 0, share=struct.pack("<6q", *words).hex())
    cases.add_share("narrow: truncated heavy share", "shares", 0, share=heavy[:-8])
    cases.add_share("narrow: heavy share with a word too many", "shares", 0, share=heavy + "00" * 4)
    cases.add_share("narrow: heavy share with one bit changed", "commitment", 0, share=flip(heavy))
    cases.add_share("narrow: heavy share in big endian", "commitment", 0, share=struct.pack(">6i", *words).hex())
    cases.add_share("narrow: seed with one bit changed", "commitment", 1, share=flip(cases.base["shares"][1]["share"]))
    return cases.cases


def next_slot(signed: types_pb2.SignedManifest) -> None:
    signed.manifest.slot += 1
    signed.manifest.heavy = (signed.manifest.heavy + 1) % 3


def exchange_commitments(signed: types_pb2.SignedManifest) -> None:
    first, second, third = signed.manifest.commitments
    signed.manifest.commitments[:] = [second, first, third]


def flip(text: str) -> str:
    data = bytearray.fromhex(text)
    data[0] ^= 1
    return data.hex()


def build(federation: dict[str, str]) -> dict:
    """The whole file; the same federation gives the same file."""
    members = Federation(federation)
    cases = [
        positive("plain", "plain", 1, 0, members),
        positive("weighted, heavy share 1", "weighted", 2, 4, members),
        positive("long, heavy share 2", "long", 2**62, 2, members),
        positive("narrow", "narrow", 3, 3, members),
        positive("narrow and weighted, heavy share 2", "narrow-weighted", 4, 5, members),
    ]
    assert commit(unhex(cases[0]["salts"][1]), unhex(cases[0]["seeds"]["1"])).hex() == cases[0]["commitments"][1]
    return {
        "format": FORMAT,
        "steps": list(STEPS),
        "now": NOW,
        "federation": federation,
        "positive": cases,
        "coordinates": [coordinates(9, 23, 1), coordinates(9, 23, 2**62), coordinates(5, 2**31, 3)],
        "negative": [*negatives(cases[0], members), *narrow_negatives(cases[3], members)],
    }


def main() -> int:
    """Write the file anew."""
    known = json.loads(FILE.read_text(encoding="utf-8"))["federation"] if FILE.exists() else new_federation()
    FILE.write_text(json.dumps(build(known), indent=1) + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
