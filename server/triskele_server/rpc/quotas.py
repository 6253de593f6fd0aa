"""What one caller may take: calls a minute, by a token bucket, and calls and uploads at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from triskele.errors import Busy
from triskele.identity import Identity
from triskele_server.limits import ServerLimits
from triskele_server.rpc.interceptors import Context, caller
from triskele_server.rpc.methods import UPLOADS

_REMEMBERED = 10_000  # callers, before those are forgotten that have been quiet for a minute


@dataclass
class _Account:
    """What one caller has left. `tokens` as of `counted_at`, in seconds of the clock."""

    tokens: float
    counted_at: float
    calls: int = 0
    uploads: int = 0


class Quotas:
    """The accounts of all callers of one server, and the layer that keeps them. Runs on one event loop.

    Counted before the access table is asked: calls that are refused cost a caller as much.
    """

    def __init__(self, limits: ServerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    @asynccontextmanager
    async def layer(self, method: str, context: Context) -> AsyncIterator[None]:
        """Around one RPC; raises Busy."""
        identity, upload = caller(context), method in UPLOADS
        account = self._account(identity)
        self._take(account, identity, upload=upload)
        try:
            yield
        finally:
            if upload:
                account.uploads -= 1
            else:
                account.calls -= 1

    def _take(self, account: _Account, identity: Identity, *, upload: bool) -> None:
        per_minute = self._limits.per_minute(identity.role)
        if per_minute is not None:
            if account.tokens < 1:
                raise Busy(f"{identity.uri} makes more than {per_minute} calls a minute: wait, then go on")
            account.tokens -= 1
        at_once = self._limits.at_once(identity.role, upload=upload)
        running = account.uploads if upload else account.calls
        if at_once is not None and running >= at_once:
            what = "uploads" if upload else "calls"
            raise Busy(f"{identity.uri} has {running} {what} under way, its limit: let one end, then go on")
        if upload:
            account.uploads += 1
        else:
            account.calls += 1

    def _account(self, identity: Identity) -> _Account:
        now, most = self._clock(), float(self._limits.per_minute(identity.role) or 0)
        if len(self._accounts) >= _REMEMBERED:
            self._forget_quiet(now)
        account = self._accounts.setdefault(identity.uri, _Account(most, now))
        account.tokens = min(most, account.tokens + (now - account.counted_at) * most / 60)
        account.counted_at = now
        return account

    def _forget_quiet(self, now: float) -> None:
        """After a minute without a call a bucket is full again: nothing is lost with it."""
        self._accounts = {
            uri: account
            for uri, account in self._accounts.items()
            if account.calls or account.uploads or now - account.counted_at < 60
        }
