from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResponseHeader(_message.Message):
    __slots__ = ("server_id", "epoch")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    epoch: int
    def __init__(self, server_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class MetadataValue(_message.Message):
    __slots__ = ("text", "number")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: int
    def __init__(self, text: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class BlockInfo(_message.Message):
    __slots__ = ("path", "size_bytes", "offset_bytes", "created_ns", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    offset_bytes: int
    created_ns: int
    metadata: _containers.MessageMap[str, MetadataValue]
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., created_ns: _Optional[int] = ..., metadata: _Optional[_Mapping[str, MetadataValue]] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("challenge",)
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    def __init__(self, challenge: _Optional[bytes] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("header", "nonce_path", "directory", "proof", "line_path", "line_port", "line_ticket")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NONCE_PATH_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    LINE_PATH_FIELD_NUMBER: _ClassVar[int]
    LINE_PORT_FIELD_NUMBER: _ClassVar[int]
    LINE_TICKET_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    nonce_path: str
    directory: str
    proof: bytes
    line_path: str
    line_port: int
    line_ticket: bytes
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., nonce_path: _Optional[str] = ..., directory: _Optional[str] = ..., proof: _Optional[bytes] = ..., line_path: _Optional[str] = ..., line_port: _Optional[int] = ..., line_ticket: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("header", "directory", "memory_used_bytes", "memory_limit_bytes", "block_count", "block_bytes", "reservation_count", "started_ns", "damaged_count", "damaged")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_COUNT_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    directory: str
    memory_used_bytes: int
    memory_limit_bytes: int
    block_count: int
    block_bytes: int
    reservation_count: int
    started_ns: int
    damaged_count: int
    damaged: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., directory: _Optional[str] = ..., memory_used_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., block_count: _Optional[int] = ..., block_bytes: _Optional[int] = ..., reservation_count: _Optional[int] = ..., started_ns: _Optional[int] = ..., damaged_count: _Optional[int] = ..., damaged: _Optional[_Iterable[str]] = ...) -> None: ...

class ReadBlockRequest(_message.Message):
    __slots__ = ("path", "offset_bytes", "limit_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    offset_bytes: int
    limit_bytes: int
    def __init__(self, path: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ...) -> None: ...

class ReadBlockResponse(_message.Message):
    __slots__ = ("header", "block", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    block: BlockInfo
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., block: _Optional[_Union[BlockInfo, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...
