from triskele_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenRoundRequest(_message.Message):
    __slots__ = ("task", "round")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    round: int
    def __init__(self, task: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class RoundRequest(_message.Message):
    __slots__ = ("task_digest", "round", "seen")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    seen: Seen
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., seen: _Optional[_Union[Seen, _Mapping]] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("state", "attempt", "running", "enough", "wait_ms")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    ENOUGH_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    state: str
    attempt: int
    running: bool
    enough: int
    wait_ms: int
    def __init__(self, state: _Optional[str] = ..., attempt: _Optional[int] = ..., running: bool = ..., enough: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("slot", "participant", "manifest_digest")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    slot: int
    participant: str
    manifest_digest: bytes
    def __init__(self, slot: _Optional[int] = ..., participant: _Optional[str] = ..., manifest_digest: _Optional[bytes] = ...) -> None: ...

class SealRoundRequest(_message.Message):
    __slots__ = ("task_digest", "round", "submissions")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SUBMISSIONS_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    submissions: _containers.RepeatedCompositeFieldContainer[Submission]
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., submissions: _Optional[_Iterable[_Union[Submission, _Mapping]]] = ...) -> None: ...

class RunRoundRequest(_message.Message):
    __slots__ = ("task_digest", "round", "attempt")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    attempt: int
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class EndRoundRequest(_message.Message):
    __slots__ = ("task_digest", "round", "state", "task", "left_out", "blame")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    BLAME_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    state: str
    task: bytes
    left_out: _containers.RepeatedCompositeFieldContainer[_types_pb2.RefusedSubmission]
    blame: _types_pb2.Blame
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., state: _Optional[str] = ..., task: _Optional[bytes] = ..., left_out: _Optional[_Iterable[_Union[_types_pb2.RefusedSubmission, _Mapping]]] = ..., blame: _Optional[_Union[_types_pb2.Blame, _Mapping]] = ...) -> None: ...

class SignedStatement(_message.Message):
    __slots__ = ("statement", "key_id", "signature")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    key_id: str
    signature: bytes
    def __init__(self, statement: _Optional[bytes] = ..., key_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RoundOutcome(_message.Message):
    __slots__ = ("output_digest", "weight_total", "coefficient_bits", "refused", "accepted_slots", "openings", "attempt")
    OUTPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_TOTAL_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_BITS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    output_digest: bytes
    weight_total: int
    coefficient_bits: int
    refused: _containers.RepeatedCompositeFieldContainer[_types_pb2.RefusedSubmission]
    accepted_slots: _containers.RepeatedScalarFieldContainer[int]
    openings: _containers.RepeatedScalarFieldContainer[str]
    attempt: int
    def __init__(self, output_digest: _Optional[bytes] = ..., weight_total: _Optional[int] = ..., coefficient_bits: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[_types_pb2.RefusedSubmission, _Mapping]]] = ..., accepted_slots: _Optional[_Iterable[int]] = ..., openings: _Optional[_Iterable[str]] = ..., attempt: _Optional[int] = ...) -> None: ...

class RoundStatusReply(_message.Message):
    __slots__ = ("state", "complete", "blame", "outcome", "attempt", "running", "setback", "certificate")
    STATE_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    BLAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SETBACK_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    complete: _containers.RepeatedCompositeFieldContainer[Submission]
    blame: _types_pb2.Blame
    outcome: RoundOutcome
    attempt: int
    running: bool
    setback: str
    certificate: SignedStatement
    def __init__(self, state: _Optional[str] = ..., complete: _Optional[_Iterable[_Union[Submission, _Mapping]]] = ..., blame: _Optional[_Union[_types_pb2.Blame, _Mapping]] = ..., outcome: _Optional[_Union[RoundOutcome, _Mapping]] = ..., attempt: _Optional[int] = ..., running: bool = ..., setback: _Optional[str] = ..., certificate: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class OutputChunk(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: _types_pb2.Chunk
    def __init__(self, chunk: _Optional[_Union[_types_pb2.Chunk, _Mapping]] = ...) -> None: ...

class CosignRequest(_message.Message):
    __slots__ = ("checkpoint", "old_size", "consistency")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    OLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    old_size: int
    consistency: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, checkpoint: _Optional[bytes] = ..., old_size: _Optional[int] = ..., consistency: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CosignReply(_message.Message):
    __slots__ = ("time", "signature", "old_size", "public_key")
    TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    OLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    time: int
    signature: bytes
    old_size: int
    public_key: bytes
    def __init__(self, time: _Optional[int] = ..., signature: _Optional[bytes] = ..., old_size: _Optional[int] = ..., public_key: _Optional[bytes] = ...) -> None: ...
