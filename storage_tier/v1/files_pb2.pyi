from storage_tier.v1 import tier_pb2 as _tier_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_KIND_UNSPECIFIED: _ClassVar[FileKind]
    FILE_KIND_FILE: _ClassVar[FileKind]
    FILE_KIND_DIRECTORY: _ClassVar[FileKind]
    FILE_KIND_MOUNT: _ClassVar[FileKind]

class Persisted(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERSISTED_UNSPECIFIED: _ClassVar[Persisted]
    PERSISTED_NOT_NEEDED: _ClassVar[Persisted]
    PERSISTED_WAITING: _ClassVar[Persisted]
    PERSISTED_DONE: _ClassVar[Persisted]
FILE_KIND_UNSPECIFIED: FileKind
FILE_KIND_FILE: FileKind
FILE_KIND_DIRECTORY: FileKind
FILE_KIND_MOUNT: FileKind
PERSISTED_UNSPECIFIED: Persisted
PERSISTED_NOT_NEEDED: Persisted
PERSISTED_WAITING: Persisted
PERSISTED_DONE: Persisted

class Value(_message.Message):
    __slots__ = ("text", "number", "real", "truth")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: int
    real: float
    truth: bool
    def __init__(self, text: _Optional[str] = ..., number: _Optional[int] = ..., real: _Optional[float] = ..., truth: _Optional[bool] = ...) -> None: ...

class FileInfo(_message.Message):
    __slots__ = ("path", "kind", "version", "size_bytes", "created_ns", "modified_ns", "metadata", "pinned", "persisted", "expires_ns", "locations")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_NS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    PERSISTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_NS_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: FileKind
    version: int
    size_bytes: int
    created_ns: int
    modified_ns: int
    metadata: _containers.MessageMap[str, Value]
    pinned: bool
    persisted: Persisted
    expires_ns: int
    locations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[_Union[FileKind, str]] = ..., version: _Optional[int] = ..., size_bytes: _Optional[int] = ..., created_ns: _Optional[int] = ..., modified_ns: _Optional[int] = ..., metadata: _Optional[_Mapping[str, Value]] = ..., pinned: _Optional[bool] = ..., persisted: _Optional[_Union[Persisted, str]] = ..., expires_ns: _Optional[int] = ..., locations: _Optional[_Iterable[str]] = ...) -> None: ...

class CommitOptions(_message.Message):
    __slots__ = ("overwrite", "expected_version", "metadata", "ttl_ms", "pinned", "write_type", "existing_parents")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    WRITE_TYPE_FIELD_NUMBER: _ClassVar[int]
    EXISTING_PARENTS_FIELD_NUMBER: _ClassVar[int]
    overwrite: bool
    expected_version: int
    metadata: _containers.MessageMap[str, Value]
    ttl_ms: int
    pinned: bool
    write_type: str
    existing_parents: bool
    def __init__(self, overwrite: _Optional[bool] = ..., expected_version: _Optional[int] = ..., metadata: _Optional[_Mapping[str, Value]] = ..., ttl_ms: _Optional[int] = ..., pinned: _Optional[bool] = ..., write_type: _Optional[str] = ..., existing_parents: _Optional[bool] = ...) -> None: ...

class PutFileRequest(_message.Message):
    __slots__ = ("path", "content", "options")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    path: str
    content: bytes
    options: CommitOptions
    def __init__(self, path: _Optional[str] = ..., content: _Optional[bytes] = ..., options: _Optional[_Union[CommitOptions, _Mapping]] = ...) -> None: ...

class PutFileResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class SendFileBegin(_message.Message):
    __slots__ = ("path", "size_bytes", "options")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    options: CommitOptions
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., options: _Optional[_Union[CommitOptions, _Mapping]] = ...) -> None: ...

class SendFileRequest(_message.Message):
    __slots__ = ("begin", "chunk")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    begin: SendFileBegin
    chunk: bytes
    def __init__(self, begin: _Optional[_Union[SendFileBegin, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SendFileResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class CreateFileRequest(_message.Message):
    __slots__ = ("path", "size_bytes", "options")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    options: CommitOptions
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., options: _Optional[_Union[CommitOptions, _Mapping]] = ...) -> None: ...

class CreateFileResponse(_message.Message):
    __slots__ = ("header", "reservation_id", "directory", "block_path", "ttl_ms")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_PATH_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    reservation_id: str
    directory: str
    block_path: str
    ttl_ms: int
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., reservation_id: _Optional[str] = ..., directory: _Optional[str] = ..., block_path: _Optional[str] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class CommitFileRequest(_message.Message):
    __slots__ = ("reservation_id", "options")
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    reservation_id: str
    options: CommitOptions
    def __init__(self, reservation_id: _Optional[str] = ..., options: _Optional[_Union[CommitOptions, _Mapping]] = ...) -> None: ...

class CommitFileResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class StageFileResponse(_message.Message):
    __slots__ = ("header", "reservation_id", "ttl_ms")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    reservation_id: str
    ttl_ms: int
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., reservation_id: _Optional[str] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class CommitFilesRequest(_message.Message):
    __slots__ = ("commits",)
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    commits: _containers.RepeatedCompositeFieldContainer[CommitFileRequest]
    def __init__(self, commits: _Optional[_Iterable[_Union[CommitFileRequest, _Mapping]]] = ...) -> None: ...

class CommitFilesResponse(_message.Message):
    __slots__ = ("header", "files")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    files: _containers.RepeatedCompositeFieldContainer[FileInfo]
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., files: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ...) -> None: ...

class AbortFileRequest(_message.Message):
    __slots__ = ("reservation_id",)
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    reservation_id: str
    def __init__(self, reservation_id: _Optional[str] = ...) -> None: ...

class AbortFileResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ...) -> None: ...

class OpenFileRequest(_message.Message):
    __slots__ = ("path", "version")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    path: str
    version: int
    def __init__(self, path: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class OpenFileResponse(_message.Message):
    __slots__ = ("header", "file", "local_path", "block_path")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PATH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_PATH_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    local_path: str
    block_path: str
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ..., local_path: _Optional[str] = ..., block_path: _Optional[str] = ...) -> None: ...

class ReadFileRequest(_message.Message):
    __slots__ = ("path", "version", "offset_bytes", "limit_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    version: int
    offset_bytes: int
    limit_bytes: int
    def __init__(self, path: _Optional[str] = ..., version: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ...) -> None: ...

class ReadFileResponse(_message.Message):
    __slots__ = ("header", "file", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    chunk: bytes
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class StatFileRequest(_message.Message):
    __slots__ = ("path", "locations")
    PATH_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    path: str
    locations: bool
    def __init__(self, path: _Optional[str] = ..., locations: _Optional[bool] = ...) -> None: ...

class StatFileResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class ListFilesRequest(_message.Message):
    __slots__ = ("path", "after_name", "page_count")
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    path: str
    after_name: str
    page_count: int
    def __init__(self, path: _Optional[str] = ..., after_name: _Optional[str] = ..., page_count: _Optional[int] = ...) -> None: ...

class ListFilesResponse(_message.Message):
    __slots__ = ("header", "files", "next_after_name")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_AFTER_NAME_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    files: _containers.RepeatedCompositeFieldContainer[FileInfo]
    next_after_name: str
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., files: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., next_after_name: _Optional[str] = ...) -> None: ...

class FindFilesRequest(_message.Message):
    __slots__ = ("path", "after_path", "page_count")
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_PATH_FIELD_NUMBER: _ClassVar[int]
    PAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    path: str
    after_path: str
    page_count: int
    def __init__(self, path: _Optional[str] = ..., after_path: _Optional[str] = ..., page_count: _Optional[int] = ...) -> None: ...

class FindFilesResponse(_message.Message):
    __slots__ = ("header", "files", "next_after_path")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_AFTER_PATH_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    files: _containers.RepeatedCompositeFieldContainer[FileInfo]
    next_after_path: str
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., files: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., next_after_path: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("server_id", "address", "here", "silent_ms", "level")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    address: str
    here: bool
    silent_ms: int
    level: str
    def __init__(self, server_id: _Optional[str] = ..., address: _Optional[str] = ..., here: _Optional[bool] = ..., silent_ms: _Optional[int] = ..., level: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("header", "file", "block_id", "route", "holders", "under_url", "sentences")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    UNDER_URL_FIELD_NUMBER: _ClassVar[int]
    SENTENCES_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    block_id: str
    route: str
    holders: _containers.RepeatedCompositeFieldContainer[Holder]
    under_url: str
    sentences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ..., block_id: _Optional[str] = ..., route: _Optional[str] = ..., holders: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ..., under_url: _Optional[str] = ..., sentences: _Optional[_Iterable[str]] = ...) -> None: ...

class MakeDirectoryRequest(_message.Message):
    __slots__ = ("path", "parents", "exist_ok")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    path: str
    parents: bool
    exist_ok: bool
    def __init__(self, path: _Optional[str] = ..., parents: _Optional[bool] = ..., exist_ok: _Optional[bool] = ...) -> None: ...

class MakeDirectoryResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("path", "expected_version")
    PATH_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    path: str
    expected_version: int
    def __init__(self, path: _Optional[str] = ..., expected_version: _Optional[int] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ...) -> None: ...

class RemoveDirectoryRequest(_message.Message):
    __slots__ = ("path", "recursive")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    path: str
    recursive: bool
    def __init__(self, path: _Optional[str] = ..., recursive: _Optional[bool] = ...) -> None: ...

class RemoveDirectoryResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("source", "target", "overwrite")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    overwrite: bool
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., overwrite: _Optional[bool] = ...) -> None: ...

class RenameResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class CopyRequest(_message.Message):
    __slots__ = ("source", "target", "overwrite")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    overwrite: bool
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., overwrite: _Optional[bool] = ...) -> None: ...

class CopyResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("path", "pinned", "ttl_ms")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    path: str
    pinned: bool
    ttl_ms: int
    def __init__(self, path: _Optional[str] = ..., pinned: _Optional[bool] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class ChangeResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class PersistRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class PersistResponse(_message.Message):
    __slots__ = ("header", "file")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    file: FileInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class FreeRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class FreeResponse(_message.Message):
    __slots__ = ("header", "freed")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    freed: bool
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., freed: _Optional[bool] = ...) -> None: ...

class ReplicateRequest(_message.Message):
    __slots__ = ("path", "server_count")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SERVER_COUNT_FIELD_NUMBER: _ClassVar[int]
    path: str
    server_count: int
    def __init__(self, path: _Optional[str] = ..., server_count: _Optional[int] = ...) -> None: ...

class ReplicateResponse(_message.Message):
    __slots__ = ("header", "server_ids")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SERVER_IDS_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    server_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., server_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class MountInfo(_message.Message):
    __slots__ = ("path", "url", "write_type")
    PATH_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    WRITE_TYPE_FIELD_NUMBER: _ClassVar[int]
    path: str
    url: str
    write_type: str
    def __init__(self, path: _Optional[str] = ..., url: _Optional[str] = ..., write_type: _Optional[str] = ...) -> None: ...

class MountRequest(_message.Message):
    __slots__ = ("path", "url", "options_json", "write_type")
    PATH_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_JSON_FIELD_NUMBER: _ClassVar[int]
    WRITE_TYPE_FIELD_NUMBER: _ClassVar[int]
    path: str
    url: str
    options_json: str
    write_type: str
    def __init__(self, path: _Optional[str] = ..., url: _Optional[str] = ..., options_json: _Optional[str] = ..., write_type: _Optional[str] = ...) -> None: ...

class MountResponse(_message.Message):
    __slots__ = ("header", "mount")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    mount: MountInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., mount: _Optional[_Union[MountInfo, _Mapping]] = ...) -> None: ...

class UnmountRequest(_message.Message):
    __slots__ = ("path", "discard")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    path: str
    discard: bool
    def __init__(self, path: _Optional[str] = ..., discard: _Optional[bool] = ...) -> None: ...

class UnmountResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ...) -> None: ...

class ListMountsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMountsResponse(_message.Message):
    __slots__ = ("header", "mounts")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    mounts: _containers.RepeatedCompositeFieldContainer[MountInfo]
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., mounts: _Optional[_Iterable[_Union[MountInfo, _Mapping]]] = ...) -> None: ...

class AttachmentInfo(_message.Message):
    __slots__ = ("directory", "name", "observer", "parameters_json", "state", "failure", "traceback", "delivered_count", "queued_count")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OBSERVER_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_COUNT_FIELD_NUMBER: _ClassVar[int]
    directory: str
    name: str
    observer: str
    parameters_json: str
    state: str
    failure: str
    traceback: str
    delivered_count: int
    queued_count: int
    def __init__(self, directory: _Optional[str] = ..., name: _Optional[str] = ..., observer: _Optional[str] = ..., parameters_json: _Optional[str] = ..., state: _Optional[str] = ..., failure: _Optional[str] = ..., traceback: _Optional[str] = ..., delivered_count: _Optional[int] = ..., queued_count: _Optional[int] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("directory", "observer", "parameters_json", "name")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OBSERVER_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    directory: str
    observer: str
    parameters_json: str
    name: str
    def __init__(self, directory: _Optional[str] = ..., observer: _Optional[str] = ..., parameters_json: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("header", "attachment")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    attachment: AttachmentInfo
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., attachment: _Optional[_Union[AttachmentInfo, _Mapping]] = ...) -> None: ...

class DetachRequest(_message.Message):
    __slots__ = ("directory", "name")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    directory: str
    name: str
    def __init__(self, directory: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DetachResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ...) -> None: ...

class ListAttachmentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAttachmentsResponse(_message.Message):
    __slots__ = ("header", "attachments")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    attachments: _containers.RepeatedCompositeFieldContainer[AttachmentInfo]
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., attachments: _Optional[_Iterable[_Union[AttachmentInfo, _Mapping]]] = ...) -> None: ...

class FilesStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FilesStatusResponse(_message.Message):
    __slots__ = ("header", "address", "catalog_revision", "members", "failure", "evicted_count", "spilled_count", "spilled_bytes", "fetched_count", "loaded_count", "persister_json")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CATALOG_REVISION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    EVICTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SPILLED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SPILLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOADED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PERSISTER_JSON_FIELD_NUMBER: _ClassVar[int]
    header: _tier_pb2.ResponseHeader
    address: str
    catalog_revision: int
    members: _containers.RepeatedCompositeFieldContainer[Holder]
    failure: str
    evicted_count: int
    spilled_count: int
    spilled_bytes: int
    fetched_count: int
    loaded_count: int
    persister_json: str
    def __init__(self, header: _Optional[_Union[_tier_pb2.ResponseHeader, _Mapping]] = ..., address: _Optional[str] = ..., catalog_revision: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ..., failure: _Optional[str] = ..., evicted_count: _Optional[int] = ..., spilled_count: _Optional[int] = ..., spilled_bytes: _Optional[int] = ..., fetched_count: _Optional[int] = ..., loaded_count: _Optional[int] = ..., persister_json: _Optional[str] = ...) -> None: ...
