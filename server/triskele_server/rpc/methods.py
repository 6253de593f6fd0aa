"""The RPCs of all services and their kinds, from the protocol's own descriptors."""

from __future__ import annotations

from typing import Final

from triskele_proto.v1 import control_pb2, coordinator_pb2, info_pb2, party_pb2, peer_pb2

_METHODS: Final = {
    f"/{service.full_name}/{method.name}": (method.client_streaming, method.server_streaming)
    for file in (coordinator_pb2, party_pb2, control_pb2, peer_pb2, info_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

ALL: Final = frozenset(_METHODS)
CALLS: Final = frozenset(m for m, (requests, replies) in _METHODS.items() if not requests and not replies)
UPLOADS: Final = frozenset(m for m, (requests, replies) in _METHODS.items() if requests and not replies)
STREAMS: Final = frozenset(m for m, (_, replies) in _METHODS.items() if replies)  # watches, results, frames of a round
