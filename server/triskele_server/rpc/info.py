"""What a server says of itself: version, clock, and a party's policy, so that members can compare before a round."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc

from triskele.protocol import PROTOCOL
from triskele_proto.v1 import info_pb2, info_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Description:
    """A server's answer. `unix_time` is its clock; `policy` is what a party lets itself be asked for, else empty."""

    version: str
    protocol: int
    unix_time: float
    policy: dict[str, Any]

    @classmethod
    def from_proto(cls, message: info_pb2.DescribeReply) -> Description:
        """Decode; a policy that is no JSON object counts as none."""
        try:
            policy = json.loads(message.policy or "{}")
        except (ValueError, RecursionError):
            policy = {}
        return cls(message.version, message.protocol, message.unix_time, policy if isinstance(policy, dict) else {})


class InfoService(info_pb2_grpc.InfoServicer):  # type: ignore[misc]  # generated without types
    """Answers from what the process knows; never refuses a member."""

    def __init__(self, policy: dict[str, Any] | None = None, clock: Callable[[], float] = time.time) -> None:
        self._policy = json.dumps(policy, sort_keys=True) if policy else ""
        self._clock = clock

    async def Describe(  # noqa: N802  gRPC's name
        self, request: info_pb2.DescribeRequest, context: Context
    ) -> info_pb2.DescribeReply:
        """This server, now."""
        return info_pb2.DescribeReply(
            version=version("triskele"), protocol=PROTOCOL, unix_time=self._clock(), policy=self._policy
        )
