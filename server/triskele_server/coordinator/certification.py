"""An ended round's certificate at the coordinator: the parties' signatures put together, and its place in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import structlog

from triskele.errors import Conflict, PartyFault
from triskele.ids import PartyIndex
from triskele.transparency.certificate import assemble
from triskele_server.coordinator.cosigning import have_cosigned
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.parties import Pace, Parties
from triskele_server.coordinator.rounds import RoundId, Signed

_log = structlog.get_logger(__name__)


async def certify(id_: RoundId, signed: Mapping[PartyIndex, Signed], log: Log, parties: Parties, pace: Pace) -> None:
    """Put the round's certificate into the log, and have the parties cosign that."""
    statement = common_statement(signed)
    for party, given in signed.items():
        if given.statement != statement:  # who is right is not known here; a participant misses that signature
            _log.error("statements_differ", round=id_.number, party=party)
    if statement is None:
        _log.error("round_not_certified", round=id_.number, signed=sorted(signed))
        return
    envelope = assemble(statement, {s.key_id: s.signature for s in signed.values() if s.statement == statement})
    try:
        log.append(id_, envelope)
    except (Conflict, PartyFault) as error:
        _log.error("round_not_logged", round=id_.number, error=str(error))
        return
    await have_cosigned(log, parties, pace)


def common_statement(signed: Mapping[PartyIndex, Signed]) -> bytes | None:
    """What at least two parties have signed, or the only one that has signed at all."""
    counted = Counter(given.statement for given in signed.values()).most_common(1)
    if not counted or (counted[0][1] == 1 and len(signed) > 1):
        return None
    return counted[0][0]
