from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SeatKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEAT_KIND_UNSPECIFIED: _ClassVar[SeatKind]
    SEAT_KIND_NEAR_WORKER: _ClassVar[SeatKind]
    SEAT_KIND_NEAR_READER: _ClassVar[SeatKind]
    SEAT_KIND_FAR_WORKER: _ClassVar[SeatKind]
SEAT_KIND_UNSPECIFIED: SeatKind
SEAT_KIND_NEAR_WORKER: SeatKind
SEAT_KIND_NEAR_READER: SeatKind
SEAT_KIND_FAR_WORKER: SeatKind

class ResponseHeader(_message.Message):
    __slots__ = ("epoch", "version")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: int
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class CreateModelBegin(_message.Message):
    __slots__ = ("spec_json", "servers")
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    servers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, spec_json: _Optional[str] = ..., servers: _Optional[_Iterable[str]] = ...) -> None: ...

class CreateModelRequest(_message.Message):
    __slots__ = ("begin", "chunk")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    begin: CreateModelBegin
    chunk: bytes
    def __init__(self, begin: _Optional[_Union[CreateModelBegin, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class CreateModelResponse(_message.Message):
    __slots__ = ("header", "spec_json")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    spec_json: str
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., spec_json: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("header", "spec_json")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    spec_json: str
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., spec_json: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("after_name", "limit_count")
    AFTER_NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    after_name: str
    limit_count: int
    def __init__(self, after_name: _Optional[str] = ..., limit_count: _Optional[int] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("header", "names", "more")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    names: _containers.RepeatedScalarFieldContainer[str]
    more: bool
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ..., more: _Optional[bool] = ...) -> None: ...

class DeleteModelRequest(_message.Message):
    __slots__ = ("name", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    identity: str
    def __init__(self, name: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class DeleteModelResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ...) -> None: ...

class SetLearningRateRequest(_message.Message):
    __slots__ = ("name", "learning_rate", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    learning_rate: float
    identity: str
    def __init__(self, name: _Optional[str] = ..., learning_rate: _Optional[float] = ..., identity: _Optional[str] = ...) -> None: ...

class SetLearningRateResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("name", "metadata_json", "timeout_ms", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    metadata_json: str
    timeout_ms: int
    identity: str
    def __init__(self, name: _Optional[str] = ..., metadata_json: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., identity: _Optional[str] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("header", "path", "version")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    path: str
    version: int
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., path: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RestoreModelRequest(_message.Message):
    __slots__ = ("path", "name", "servers", "shards_count", "checkpoints_json", "timeout_ms")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_JSON_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    path: str
    name: str
    servers: _containers.RepeatedScalarFieldContainer[str]
    shards_count: int
    checkpoints_json: str
    timeout_ms: int
    def __init__(self, path: _Optional[str] = ..., name: _Optional[str] = ..., servers: _Optional[_Iterable[str]] = ..., shards_count: _Optional[int] = ..., checkpoints_json: _Optional[str] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class RestoreModelResponse(_message.Message):
    __slots__ = ("header", "spec_json")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    spec_json: str
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., spec_json: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("name", "kind", "worker", "slots_count", "compression_json", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_COUNT_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_JSON_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: SeatKind
    worker: int
    slots_count: int
    compression_json: str
    identity: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[SeatKind, str]] = ..., worker: _Optional[int] = ..., slots_count: _Optional[int] = ..., compression_json: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("header", "seat", "generation", "slots_count", "next_step", "lease_id", "lease_ttl_ms")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SEAT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    seat: int
    generation: int
    slots_count: int
    next_step: int
    lease_id: str
    lease_ttl_ms: int
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., seat: _Optional[int] = ..., generation: _Optional[int] = ..., slots_count: _Optional[int] = ..., next_step: _Optional[int] = ..., lease_id: _Optional[str] = ..., lease_ttl_ms: _Optional[int] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("name", "lease_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    lease_id: str
    def __init__(self, name: _Optional[str] = ..., lease_id: _Optional[str] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("name", "seat", "generation", "lease_id", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEAT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    seat: int
    generation: int
    lease_id: str
    identity: str
    def __init__(self, name: _Optional[str] = ..., seat: _Optional[int] = ..., generation: _Optional[int] = ..., lease_id: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class CloseResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("name", "worker", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    worker: int
    identity: str
    def __init__(self, name: _Optional[str] = ..., worker: _Optional[int] = ..., identity: _Optional[str] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("name", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    identity: str
    def __init__(self, name: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ("header", "version")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    version: int
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class PushBegin(_message.Message):
    __slots__ = ("name", "lease_id", "step", "examples", "loss", "timeout_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    lease_id: str
    step: int
    examples: int
    loss: float
    timeout_ms: int
    def __init__(self, name: _Optional[str] = ..., lease_id: _Optional[str] = ..., step: _Optional[int] = ..., examples: _Optional[int] = ..., loss: _Optional[float] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("begin", "chunk", "coded")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CODED_FIELD_NUMBER: _ClassVar[int]
    begin: PushBegin
    chunk: bytes
    coded: bytes
    def __init__(self, begin: _Optional[_Union[PushBegin, _Mapping]] = ..., chunk: _Optional[bytes] = ..., coded: _Optional[bytes] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("header", "step", "duplicate", "next_step", "version_read", "own", "skipped")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_READ_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    step: int
    duplicate: bool
    next_step: int
    version_read: int
    own: bool
    skipped: bool
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., step: _Optional[int] = ..., duplicate: _Optional[bool] = ..., next_step: _Optional[int] = ..., version_read: _Optional[int] = ..., own: _Optional[bool] = ..., skipped: _Optional[bool] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("name", "lease_id", "min_version", "timeout_ms", "replica", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    lease_id: str
    min_version: int
    timeout_ms: int
    replica: int
    identity: str
    def __init__(self, name: _Optional[str] = ..., lease_id: _Optional[str] = ..., min_version: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., replica: _Optional[int] = ..., identity: _Optional[str] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("header", "replica", "coded", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CODED_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    replica: int
    coded: bytes
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., replica: _Optional[int] = ..., coded: _Optional[bytes] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PushPullBegin(_message.Message):
    __slots__ = ("push", "min_version", "replica")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    push: PushBegin
    min_version: int
    replica: int
    def __init__(self, push: _Optional[_Union[PushBegin, _Mapping]] = ..., min_version: _Optional[int] = ..., replica: _Optional[int] = ...) -> None: ...

class PushPullRequest(_message.Message):
    __slots__ = ("begin", "chunk", "coded")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CODED_FIELD_NUMBER: _ClassVar[int]
    begin: PushPullBegin
    chunk: bytes
    coded: bytes
    def __init__(self, begin: _Optional[_Union[PushPullBegin, _Mapping]] = ..., chunk: _Optional[bytes] = ..., coded: _Optional[bytes] = ...) -> None: ...

class PushPullResponse(_message.Message):
    __slots__ = ("header", "replica", "coded", "receipt", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CODED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    replica: int
    coded: bytes
    receipt: PushResponse
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., replica: _Optional[int] = ..., coded: _Optional[bytes] = ..., receipt: _Optional[_Union[PushResponse, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "epoch", "version", "parameters_count", "optimizer", "consistency", "shards_count", "workers_count", "seats_count", "pushes_count", "duplicates_count", "examples_count", "loss_sum", "loss_examples_count", "staleness_sum", "staleness_max", "pushes_per_s", "waiting_for", "failure", "memory_bytes", "gradient_files_count", "gradient_files_note", "checkpoint_version", "checkpoint_failure", "late_count", "not_finite_count", "pending_count", "blocked_count", "behind_server", "received_bytes", "sent_bytes", "swept_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_COUNT_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COUNT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEATS_COUNT_FIELD_NUMBER: _ClassVar[int]
    PUSHES_COUNT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    LOSS_EXAMPLES_COUNT_FIELD_NUMBER: _ClassVar[int]
    STALENESS_SUM_FIELD_NUMBER: _ClassVar[int]
    STALENESS_MAX_FIELD_NUMBER: _ClassVar[int]
    PUSHES_PER_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FILES_COUNT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FILES_NOTE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FAILURE_FIELD_NUMBER: _ClassVar[int]
    LATE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NOT_FINITE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_COUNT_FIELD_NUMBER: _ClassVar[int]
    BEHIND_SERVER_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SWEPT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    version: int
    parameters_count: int
    optimizer: str
    consistency: str
    shards_count: int
    workers_count: int
    seats_count: int
    pushes_count: int
    duplicates_count: int
    examples_count: int
    loss_sum: float
    loss_examples_count: int
    staleness_sum: int
    staleness_max: int
    pushes_per_s: float
    waiting_for: _containers.RepeatedScalarFieldContainer[int]
    failure: str
    memory_bytes: int
    gradient_files_count: int
    gradient_files_note: str
    checkpoint_version: int
    checkpoint_failure: str
    late_count: int
    not_finite_count: int
    pending_count: int
    blocked_count: int
    behind_server: str
    received_bytes: int
    sent_bytes: int
    swept_s: float
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., parameters_count: _Optional[int] = ..., optimizer: _Optional[str] = ..., consistency: _Optional[str] = ..., shards_count: _Optional[int] = ..., workers_count: _Optional[int] = ..., seats_count: _Optional[int] = ..., pushes_count: _Optional[int] = ..., duplicates_count: _Optional[int] = ..., examples_count: _Optional[int] = ..., loss_sum: _Optional[float] = ..., loss_examples_count: _Optional[int] = ..., staleness_sum: _Optional[int] = ..., staleness_max: _Optional[int] = ..., pushes_per_s: _Optional[float] = ..., waiting_for: _Optional[_Iterable[int]] = ..., failure: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., gradient_files_count: _Optional[int] = ..., gradient_files_note: _Optional[str] = ..., checkpoint_version: _Optional[int] = ..., checkpoint_failure: _Optional[str] = ..., late_count: _Optional[int] = ..., not_finite_count: _Optional[int] = ..., pending_count: _Optional[int] = ..., blocked_count: _Optional[int] = ..., behind_server: _Optional[str] = ..., received_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., swept_s: _Optional[float] = ...) -> None: ...

class ModelMemory(_message.Message):
    __slots__ = ("name", "memory_bytes", "shards_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARDS_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_bytes: int
    shards_bytes: int
    def __init__(self, name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., shards_bytes: _Optional[int] = ...) -> None: ...

class ObserverStatus(_message.Message):
    __slots__ = ("directory", "name", "observer", "state", "failure", "traceback", "delivered_count", "queued_count", "vetoed_count")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OBSERVER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_COUNT_FIELD_NUMBER: _ClassVar[int]
    VETOED_COUNT_FIELD_NUMBER: _ClassVar[int]
    directory: str
    name: str
    observer: str
    state: str
    failure: str
    traceback: str
    delivered_count: int
    queued_count: int
    vetoed_count: int
    def __init__(self, directory: _Optional[str] = ..., name: _Optional[str] = ..., observer: _Optional[str] = ..., state: _Optional[str] = ..., failure: _Optional[str] = ..., traceback: _Optional[str] = ..., delivered_count: _Optional[int] = ..., queued_count: _Optional[int] = ..., vetoed_count: _Optional[int] = ...) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("server_id", "block_count", "block_bytes", "spilled_count", "spilled_bytes", "evicted_count", "fetched_count", "loaded_count", "waiting_count", "mounts", "failure", "observers")
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPILLED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SPILLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FETCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOADED_COUNT_FIELD_NUMBER: _ClassVar[int]
    WAITING_COUNT_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    OBSERVERS_FIELD_NUMBER: _ClassVar[int]
    server_id: str
    block_count: int
    block_bytes: int
    spilled_count: int
    spilled_bytes: int
    evicted_count: int
    fetched_count: int
    loaded_count: int
    waiting_count: int
    mounts: _containers.RepeatedScalarFieldContainer[str]
    failure: str
    observers: _containers.RepeatedCompositeFieldContainer[ObserverStatus]
    def __init__(self, server_id: _Optional[str] = ..., block_count: _Optional[int] = ..., block_bytes: _Optional[int] = ..., spilled_count: _Optional[int] = ..., spilled_bytes: _Optional[int] = ..., evicted_count: _Optional[int] = ..., fetched_count: _Optional[int] = ..., loaded_count: _Optional[int] = ..., waiting_count: _Optional[int] = ..., mounts: _Optional[_Iterable[str]] = ..., failure: _Optional[str] = ..., observers: _Optional[_Iterable[_Union[ObserverStatus, _Mapping]]] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("header", "uptime_s", "memory_used_bytes", "memory_limit_bytes", "models", "tier", "memory")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    uptime_s: float
    memory_used_bytes: int
    memory_limit_bytes: int
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    tier: TierStatus
    memory: _containers.RepeatedCompositeFieldContainer[ModelMemory]
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., uptime_s: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., tier: _Optional[_Union[TierStatus, _Mapping]] = ..., memory: _Optional[_Iterable[_Union[ModelMemory, _Mapping]]] = ...) -> None: ...

class ServeShardsRequest(_message.Message):
    __slots__ = ("spec_json", "parameters_path", "server")
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_PATH_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    parameters_path: str
    server: str
    def __init__(self, spec_json: _Optional[str] = ..., parameters_path: _Optional[str] = ..., server: _Optional[str] = ...) -> None: ...

class ServeShardsResponse(_message.Message):
    __slots__ = ("header", "spec_json")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    spec_json: str
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., spec_json: _Optional[str] = ...) -> None: ...

class DropShardsRequest(_message.Message):
    __slots__ = ("name", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    identity: str
    def __init__(self, name: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class DropShardsResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ...) -> None: ...
