"""The changes of a task's rounds as they happen, across broken connections and restarts of the coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc

from triskele.connection import Connections, RetryPolicy
from triskele.errors import Unavailable, from_rpc_error
from triskele.ids import RoundNumber, TaskDigest
from triskele.views import RoundView
from triskele_proto.v1 import coordinator_pb2

_STREAM_SECONDS = 600.0  # a stream is opened afresh after this, so that none is trusted for ever


class RoundWatch(Iterator[RoundView]):
    """Views of the rounds from `from_round` on: first as they are, then one per change; ends when the task does.

    Costs nothing between changes: the coordinator pushes. After a reconnection what was already seen is left out.
    `__next__` raises Unavailable when the coordinator stays away longer than the policy's outage, TimeoutError after
    `timeout` seconds. `is_finished` asks the coordinator whether the task is over; `states_only` leaves out changes of
    counts. Close it when done.
    """

    def __init__(
        self,
        connections: Connections,
        task: TaskDigest,
        from_round: RoundNumber,
        *,
        retries: RetryPolicy,
        is_finished: Callable[[], bool],
        timeout: float | None = None,
        states_only: bool = False,
    ) -> None:
        self._connections = connections
        self._task = task
        self._from_round = from_round
        self._retries = retries
        self._is_finished = is_finished
        self._states_only = states_only
        self._give_up_at = None if timeout is None else time.monotonic() + timeout
        self._seen: dict[RoundNumber, RoundView] = {}
        self._stream: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> RoundView:
        while (view := self._retries.outlast(self._view_or_end, self._remaining())) is not None:
            if view.round >= self._from_round and self._seen.get(view.round) != view:
                self._remember(view)
                return view
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stop the stream; the iterator may be used again and then goes on."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def _view_or_end(self) -> RoundView | None:
        """The next view of the stream, None at the end of the task; raises Unavailable and TimeoutError."""
        while True:
            if self._stream is None:
                self._stream = self._open()
            try:
                message = next(self._stream)
            except StopIteration:
                self._stream = None
                if self._is_finished():
                    return None
                raise Unavailable("the coordinator ended the stream of rounds before the task was finished") from None
            except grpc.RpcError as error:
                self._stream = None
                self._remaining()
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise from_rpc_error(error, "coordinator") from error
                self._is_finished()  # the stream's own time is over; go on if the coordinator still answers
            else:
                return RoundView.from_proto(message, self._task)

    def _open(self) -> Any:
        remaining = self._remaining()
        seconds = _STREAM_SECONDS if remaining is None else min(_STREAM_SECONDS, remaining)
        request = coordinator_pb2.WatchRoundsRequest(
            task_digest=self._task, from_round=self._from_round, states_only=self._states_only
        )
        return self._connections.coordinator().WatchRounds(request, timeout=seconds)

    def _remaining(self) -> float | None:
        """Seconds until the caller's timeout, None without one; raises TimeoutError when they are over."""
        if self._give_up_at is None:
            return None
        remaining = self._give_up_at - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("nothing more happened in the time given")
        return remaining

    def _remember(self, view: RoundView) -> None:
        """Rounds that have ended are not asked for again, so a long task costs no more than a short one."""
        self._seen[view.round] = view
        while (first := self._seen.get(self._from_round)) is not None and first.ended:
            del self._seen[self._from_round]
            self._from_round = RoundNumber(self._from_round + 1)
