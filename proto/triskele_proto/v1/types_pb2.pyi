from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Manifest(_message.Message):
    __slots__ = ("task_digest", "round", "participant", "slot", "heavy", "length", "commitments")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    HEAVY_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    participant: str
    slot: int
    heavy: int
    length: int
    commitments: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., participant: _Optional[str] = ..., slot: _Optional[int] = ..., heavy: _Optional[int] = ..., length: _Optional[int] = ..., commitments: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SignedManifest(_message.Message):
    __slots__ = ("manifest", "signature", "certificate")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    signature: bytes
    certificate: bytes
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Blame(_message.Message):
    __slots__ = ("reason", "who", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: str
    who: str
    detail: str
    def __init__(self, reason: _Optional[str] = ..., who: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class RefusedSubmission(_message.Message):
    __slots__ = ("slot", "participant", "reason")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    slot: int
    participant: str
    reason: str
    def __init__(self, slot: _Optional[int] = ..., participant: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
