"""The coordinator's link to one party: a channel that does not work is replaced, one that works is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from fake_parties import SPEC, federation, tls_files

from triskele.errors import NotFound, Unavailable
from triskele.identity import Identity
from triskele.ids import PartyIndex, RoundNumber
from triskele_server.coordinator.party_link import PartyLink
from triskele_server.coordinator.rounds import RoundId
from triskele_server.rpc.channel import open_channel

FIRST = RoundId(SPEC.digest, RoundNumber(1))


class Connect:
    """Opens channels to an address as one member, expecting `server` there, and counts them."""

    def __init__(self, members: Path, address: str, server: str = "0", member: str = "coordinator") -> None:
        self.count = 0
        self._arguments = (address, Identity("demo", "party", server), tls_files(members / member))

    def __call__(self) -> grpc.aio.Channel:
        self.count += 1
        return open_channel(*self._arguments)


@pytest.mark.parametrize(("renew_seconds", "channels"), [(0.0, 3), (1000.0, 1)])
def test_broken_channel_is_renewed_but_not_too_often(members: Path, renew_seconds: float, channels: int) -> None:
    async def scenario() -> None:
        connect = Connect(members, "127.0.0.1:1")
        link = PartyLink(PartyIndex(0), connect, renew_seconds=renew_seconds)
        for _ in range(3):
            with pytest.raises(Unavailable, match="party 0"):
                await link.status(FIRST)
        await link.close()
        assert connect.count == channels

    asyncio.run(scenario())


def test_refusal_of_a_party_keeps_the_channel(members: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(members, tmp_path) as it:
            connect = Connect(members, it.addresses[0])
            link = PartyLink(PartyIndex(0), connect, renew_seconds=0.0)
            for _ in range(2):
                with pytest.raises(NotFound):
                    await link.status(FIRST)
            await link.close()
            assert connect.count == 1

    asyncio.run(scenario())


def test_other_party_at_the_address_is_not_mistaken_for_this_one(members: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(members, tmp_path) as it:
            link = PartyLink(PartyIndex(1), Connect(members, it.addresses[0], server="1"))
            with pytest.raises(Unavailable):
                await link.status(FIRST)
            await link.close()
            assert it.parties[0].calls == []

    asyncio.run(scenario())
