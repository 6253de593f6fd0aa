"""Who may call what: one table, role × RPC. What does not stand in it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from triskele.errors import Forbidden
from triskele.identity import Identity, Role

_PACKAGE = "triskele.v1"


def _methods(service: str, *names: str) -> frozenset[str]:
    return frozenset(f"/{_PACKAGE}.{service}/{name}" for name in names)


_LOOKS_ON = ("ListTasks", "WatchRounds", "ListRounds", "FetchCertificate", "FetchLog")
_READS = (*_LOOKS_ON, "FetchResult")

ALLOWED: Mapping[Role, frozenset[str]] = MappingProxyType(
    {
        "participant": _methods("Coordinator", *_READS, "Enrol")
        | _methods("Party", "UploadStatus", "Upload", "FetchMaskKeys"),
        "coordinator": _methods(
            "PartyControl", "OpenRound", "RoundStatus", "SealRound", "RunRound", "FetchOutput", "EndRound", "Cosign"
        ),
        "party": _methods("Peer", "Exchange") | _methods("Party", "Relay", "RelayStatus"),
        "operator": _methods("Coordinator", *_LOOKS_ON),
        # The server of another framework: a reader fetches aggregates, and the keys of their mask
        # where a party's policy lets readers; a forwarder brings sealed uploads and reads public releases only.
        "reader": _methods("Coordinator", *_READS) | _methods("Party", "FetchMaskKeys"),
        "forwarder": _methods("Coordinator", *_READS, "EnrolFor") | _methods("Party", "UploadSealed"),
    }
)

FOR_EVERYBODY: Final = _methods("Info", "Describe")
"""What every member may ask of every server."""


def check_access(caller: Identity, method: str, federation: str) -> None:
    """Raise Forbidden unless the table allows `caller` the full RPC name `method` in this federation."""
    if caller.federation != federation:
        raise Forbidden(
            f"{caller.uri} is not of the federation {federation!r}: use the certificate that this federation issued"
        )
    if method not in ALLOWED[caller.role] | FOR_EVERYBODY:
        raise Forbidden(f"the role {caller.role!r} may not call {method}: use a certificate of the role that may")
