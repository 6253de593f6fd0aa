from triskele_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListTasksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTasksReply(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskView]
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskView, _Mapping]]] = ...) -> None: ...

class TaskView(_message.Message):
    __slots__ = ("name", "task", "rounds", "current_round", "finished")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    name: str
    task: bytes
    rounds: int
    current_round: int
    finished: bool
    def __init__(self, name: _Optional[str] = ..., task: _Optional[bytes] = ..., rounds: _Optional[int] = ..., current_round: _Optional[int] = ..., finished: bool = ...) -> None: ...

class WatchRoundsRequest(_message.Message):
    __slots__ = ("task_digest", "from_round", "states_only")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    STATES_ONLY_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    from_round: int
    states_only: bool
    def __init__(self, task_digest: _Optional[bytes] = ..., from_round: _Optional[int] = ..., states_only: bool = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("task_digest",)
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    def __init__(self, task_digest: _Optional[bytes] = ...) -> None: ...

class ListRoundsReply(_message.Message):
    __slots__ = ("rounds",)
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[RoundView]
    def __init__(self, rounds: _Optional[_Iterable[_Union[RoundView, _Mapping]]] = ...) -> None: ...

class RoundView(_message.Message):
    __slots__ = ("task_digest", "round", "state", "enrolled", "uploaded", "quorum", "deadline", "blame", "refused", "accepted_slots", "decisions_public", "participants", "openings")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_FIELD_NUMBER: _ClassVar[int]
    UPLOADED_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    BLAME_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_PUBLIC_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    state: str
    enrolled: int
    uploaded: int
    quorum: int
    deadline: float
    blame: _types_pb2.Blame
    refused: _containers.RepeatedCompositeFieldContainer[_types_pb2.RefusedSubmission]
    accepted_slots: _containers.RepeatedScalarFieldContainer[int]
    decisions_public: bool
    participants: _containers.RepeatedScalarFieldContainer[str]
    openings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., state: _Optional[str] = ..., enrolled: _Optional[int] = ..., uploaded: _Optional[int] = ..., quorum: _Optional[int] = ..., deadline: _Optional[float] = ..., blame: _Optional[_Union[_types_pb2.Blame, _Mapping]] = ..., refused: _Optional[_Iterable[_Union[_types_pb2.RefusedSubmission, _Mapping]]] = ..., accepted_slots: _Optional[_Iterable[int]] = ..., decisions_public: bool = ..., participants: _Optional[_Iterable[str]] = ..., openings: _Optional[_Iterable[str]] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("task_digest", "round")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class EnrolForRequest(_message.Message):
    __slots__ = ("task_digest", "round", "participant", "signature", "certificate")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    participant: str
    signature: bytes
    certificate: bytes
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., participant: _Optional[str] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("slot", "heavy", "party_addresses", "new")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    HEAVY_FIELD_NUMBER: _ClassVar[int]
    PARTY_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    slot: int
    heavy: int
    party_addresses: _containers.RepeatedScalarFieldContainer[str]
    new: bool
    def __init__(self, slot: _Optional[int] = ..., heavy: _Optional[int] = ..., party_addresses: _Optional[_Iterable[str]] = ..., new: bool = ...) -> None: ...

class FetchResultRequest(_message.Message):
    __slots__ = ("task_digest", "round")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class FetchCertificateRequest(_message.Message):
    __slots__ = ("task_digest", "round")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class FetchCertificateReply(_message.Message):
    __slots__ = ("envelope", "index", "hashes", "checkpoint")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    index: int
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    checkpoint: bytes
    def __init__(self, envelope: _Optional[bytes] = ..., index: _Optional[int] = ..., hashes: _Optional[_Iterable[bytes]] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...

class ResultHeader(_message.Message):
    __slots__ = ("dimension", "digest", "party_addresses")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARTY_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    dimension: int
    digest: bytes
    party_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dimension: _Optional[int] = ..., digest: _Optional[bytes] = ..., party_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class ResultChunk(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ResultHeader
    chunk: _types_pb2.Chunk
    def __init__(self, header: _Optional[_Union[ResultHeader, _Mapping]] = ..., chunk: _Optional[_Union[_types_pb2.Chunk, _Mapping]] = ...) -> None: ...

class FetchLogRequest(_message.Message):
    __slots__ = ("from_index", "cosignatures")
    FROM_INDEX_FIELD_NUMBER: _ClassVar[int]
    COSIGNATURES_FIELD_NUMBER: _ClassVar[int]
    from_index: int
    cosignatures: int
    def __init__(self, from_index: _Optional[int] = ..., cosignatures: _Optional[int] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("index", "envelope")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    index: int
    envelope: bytes
    def __init__(self, index: _Optional[int] = ..., envelope: _Optional[bytes] = ...) -> None: ...

class LogPiece(_message.Message):
    __slots__ = ("entry", "checkpoint")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    entry: LogEntry
    checkpoint: bytes
    def __init__(self, entry: _Optional[_Union[LogEntry, _Mapping]] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...
