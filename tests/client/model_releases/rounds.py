"""Three parties of their own keys, certificates that they sign and a log of them, as a publisher is given them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.transparency.rounds import FEDERATION, TASK, digest, enveloped, failed, released
from triskele.ids import PARTIES
from triskele.task import TaskSpec
from triskele.transparency import checkpoint
from triskele.transparency.certificate import Output
from triskele.transparency.logged_certificate import LoggedCertificate
from triskele.transparency.merkle import Tree, leaf_hash
from triskele.transparency.party_keys import key_file

NOW = 1_800_000_000


def certificate(number: int, *, task: TaskSpec = TASK, state: str = "RELEASED", output: str = "words") -> bytes:
    """The statement about a round."""
    if state != "RELEASED":
        return failed(task, number).statement
    keys = (digest("key 0"), digest("key 1"), digest("key 2"))
    made = Output(digest=digest(f"{output} {number}"), weight_total=3, coefficient_bits=0, mask_keys=keys)
    return released(task, number, output=made).statement


class Parties:
    """Three parties with a key each, and folders of the certificates that they signed and logged."""

    def __init__(self, folder: Path) -> None:
        self.keys = [Ed25519PrivateKey.generate() for _ in PARTIES]
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for party in PARTIES:
            pem = self.keys[party].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (folder / key_file(party)).write_bytes(pem)

    def log(
        self,
        folder: Path,
        statements: Sequence[bytes],
        signers: Sequence[int] = PARTIES,
        cosigners: Sequence[int] = PARTIES,
    ) -> list[Path]:
        """A folder for each certificate: certificate.json and proof.json."""
        tree = Tree(leaf_hash(statement) for statement in statements)
        head = checkpoint.Checkpoint(checkpoint.origin(FEDERATION), tree.size, tree.root())
        lines = [
            checkpoint.signature_line(
                checkpoint.cosign(head, self.keys[party], NOW),
                checkpoint.cosigner(FEDERATION, party),
                self.keys[party].public_key(),
            )
            for party in cosigners
        ]
        folders = [folder / f"entry-{index}" for index in range(len(statements))]
        for index, (place, statement) in enumerate(zip(folders, statements, strict=True)):
            envelope = enveloped(statement, [self.keys[party] for party in signers])
            proof = tuple(tree.inclusion_proof(index))
            LoggedCertificate(envelope, index, proof, checkpoint.note(head, lines)).write(place)
        return folders
