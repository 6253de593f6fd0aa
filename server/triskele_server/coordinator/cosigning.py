"""The parties cosign the log: asked after every entry and waited for; who refused is asked again later."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog

from triskele.errors import TriskeleError, Unavailable
from triskele.ids import PARTIES, PartyIndex
from triskele.transparency import checkpoint
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.parties import Pace, Parties, Waiting, silent_parties
from triskele_server.metrics import coordinator as metrics

AGAIN_SECONDS: Final = 60.0  # after which a party that refused is asked again
_log = structlog.get_logger(__name__)


async def keep_cosigned(log: Log, parties: Parties, pace: Pace, again_seconds: float = AGAIN_SECONDS) -> None:
    """Ask again and again, until cancelled, for what is missing under the log as it is now, from earlier days too.

    A party that refused cosigns once its operator or ours has mended what it refused, and may be asked for no other
    entry: a finished task has no next round.
    """
    while True:
        if log.size:
            await have_cosigned(log, parties, pace)
        await asyncio.sleep(again_seconds)


async def have_cosigned(log: Log, parties: Parties, pace: Pace) -> None:
    """Have the log as it is now cosigned by all three parties, however long one of them is away.

    A party that refuses is told of and left out: its operator has to look; `keep_cosigned` asks it again. One caller at
    a time, whatever the task: a party that was asked for a longer log cosigns no shorter one.
    """
    async with log.cosigning:
        head, newest = log.head(), log.checkpoint(1)
        metrics.LOG_ENTRIES.set(head.size)
        old_size = 0 if newest is None else checkpoint.unverified(newest).size
        whole = log.checkpoint(len(PARTIES))
        if whole is not None and checkpoint.unverified(whole) == head:
            for party in PARTIES:
                metrics.LOG_COSIGNED.labels(str(party)).set(head.size)
            return
        lines: dict[PartyIndex, str] = {}
        missing, waiting = set(PARTIES), Waiting(pace)
        growth = partial(log.growth, size=head.size)
        while missing:
            answers = await parties.ask(lambda party: party.cosign(head, old_size, growth), missing)
            for party, answer in answers.items():
                if not isinstance(answer, TriskeleError):
                    lines[party] = answer
                    metrics.LOG_COSIGNED.labels(str(party)).set(head.size)
                elif not isinstance(answer, Unavailable):
                    metrics.LOG_COSIGNED.labels(str(party))  # shown from now on, as it was
                    _log.error("log_not_cosigned", party=party, size=head.size, error=str(answer))
            if lines.keys() & answers.keys():
                log.cosigned(head, [lines[party] for party in sorted(lines)])
            if missing := silent_parties(answers):
                await waiting.sleep()
