"""A round's certificate and the proof that it is in the parties' log, checked as whoever runs a model checks them."""

from __future__ import annotations

from pathlib import Path

from triskele.errors import ModelRefused, PartyFault
from triskele.model_releases.releases import CertifiedRound
from triskele.transparency.logged_certificate import LoggedCertificate
from triskele.transparency.merkle import leaf_hash
from triskele.transparency.party_keys import PartyKeys


def certified_round(certificate: Path, proof: Path, keys: PartyKeys, where: str) -> CertifiedRound:
    """What a logged certificate vouches for. `where` begins the error: ModelRefused, reason "uncertified".

    Steps: (1) enough parties have signed the certificate, and cosigned a checkpoint of the log that it is in; (2) its
    round was released. Raises ConfigurationError if a file cannot be read.
    """
    try:
        found = LoggedCertificate.read(certificate, proof).verified(keys)
        if found.account.state != "RELEASED":
            raise PartyFault(f"round {found.round} ended as {found.account.state}: no model comes from it")
    except PartyFault as error:
        raise ModelRefused("uncertified", f"{where}: {error}; no model that builds on it is used") from error
    return CertifiedRound(
        found.account.federation, found.task.digest.hex(), found.round, leaf_hash(found.statement).hex()
    )
