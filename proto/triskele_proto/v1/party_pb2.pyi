from triskele_proto.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MaskKeysRequest(_message.Message):
    __slots__ = ("task_digest", "round", "output_digest")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    output_digest: bytes
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., output_digest: _Optional[bytes] = ...) -> None: ...

class MaskKey(_message.Message):
    __slots__ = ("index", "key")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    index: int
    key: bytes
    def __init__(self, index: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class MaskKeysReply(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[MaskKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[MaskKey, _Mapping]]] = ...) -> None: ...

class UploadStatusRequest(_message.Message):
    __slots__ = ("task_digest", "round", "manifest_digest")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    manifest_digest: bytes
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ...) -> None: ...

class ShareHeader(_message.Message):
    __slots__ = ("index", "salt", "seed")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    index: int
    salt: bytes
    seed: bytes
    def __init__(self, index: _Optional[int] = ..., salt: _Optional[bytes] = ..., seed: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("manifest", "shares", "relay", "relayed")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    manifest: _types_pb2.SignedManifest
    shares: _containers.RepeatedCompositeFieldContainer[ShareHeader]
    relay: bool
    relayed: bool
    def __init__(self, manifest: _Optional[_Union[_types_pb2.SignedManifest, _Mapping]] = ..., shares: _Optional[_Iterable[_Union[ShareHeader, _Mapping]]] = ..., relay: bool = ..., relayed: bool = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: _types_pb2.Chunk
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[_Union[_types_pb2.Chunk, _Mapping]] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("committed", "complete", "relayed", "relaying")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    RELAYING_FIELD_NUMBER: _ClassVar[int]
    committed: int
    complete: bool
    relayed: bool
    relaying: bool
    def __init__(self, committed: _Optional[int] = ..., complete: bool = ..., relayed: bool = ..., relaying: bool = ...) -> None: ...

class RelayHeader(_message.Message):
    __slots__ = ("manifest", "salt")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    manifest: _types_pb2.SignedManifest
    salt: bytes
    def __init__(self, manifest: _Optional[_Union[_types_pb2.SignedManifest, _Mapping]] = ..., salt: _Optional[bytes] = ...) -> None: ...

class RelayRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: RelayHeader
    chunk: _types_pb2.Chunk
    def __init__(self, header: _Optional[_Union[RelayHeader, _Mapping]] = ..., chunk: _Optional[_Union[_types_pb2.Chunk, _Mapping]] = ...) -> None: ...

class RelayStatusRequest(_message.Message):
    __slots__ = ("task_digest", "round", "participant", "manifest_digest")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    participant: str
    manifest_digest: bytes
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., participant: _Optional[str] = ..., manifest_digest: _Optional[bytes] = ...) -> None: ...

class SealedUploadHeader(_message.Message):
    __slots__ = ("task_digest", "round", "participant", "sealed")
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    task_digest: bytes
    round: int
    participant: str
    sealed: bytes
    def __init__(self, task_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., participant: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class SealedChunk(_message.Message):
    __slots__ = ("offset", "sealed")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    offset: int
    sealed: bytes
    def __init__(self, offset: _Optional[int] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class SealedUploadRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SealedUploadHeader
    chunk: SealedChunk
    def __init__(self, header: _Optional[_Union[SealedUploadHeader, _Mapping]] = ..., chunk: _Optional[_Union[SealedChunk, _Mapping]] = ...) -> None: ...
