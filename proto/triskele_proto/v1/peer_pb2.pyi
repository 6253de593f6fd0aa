from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("session", "sequence", "label", "last", "payload")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    sequence: int
    label: str
    last: bool
    payload: bytes
    def __init__(self, session: _Optional[bytes] = ..., sequence: _Optional[int] = ..., label: _Optional[str] = ..., last: bool = ..., payload: _Optional[bytes] = ...) -> None: ...
