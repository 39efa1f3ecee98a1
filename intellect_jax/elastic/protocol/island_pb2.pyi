from intellect_jax.elastic.protocol import elastic_pb2 as _elastic_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(_message.Message):
    __slots__ = ("ask", "reduce", "serve", "withdraw", "gather", "fetch", "swap", "shelve", "adopt", "log", "offer", "count", "drop")
    ASK_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    SERVE_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    GATHER_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    SWAP_FIELD_NUMBER: _ClassVar[int]
    SHELVE_FIELD_NUMBER: _ClassVar[int]
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    ask: Ask
    reduce: ReducePart
    serve: Serve
    withdraw: bytes
    gather: GatherPart
    fetch: FetchPart
    swap: Swap
    shelve: Shelve
    adopt: _elastic_pb2.SealedRecord
    log: _elastic_pb2.Records
    offer: _elastic_pb2.OfferState
    count: Count
    drop: bytes
    def __init__(self, ask: _Optional[_Union[Ask, _Mapping]] = ..., reduce: _Optional[_Union[ReducePart, _Mapping]] = ..., serve: _Optional[_Union[Serve, _Mapping]] = ..., withdraw: _Optional[bytes] = ..., gather: _Optional[_Union[GatherPart, _Mapping]] = ..., fetch: _Optional[_Union[FetchPart, _Mapping]] = ..., swap: _Optional[_Union[Swap, _Mapping]] = ..., shelve: _Optional[_Union[Shelve, _Mapping]] = ..., adopt: _Optional[_Union[_elastic_pb2.SealedRecord, _Mapping]] = ..., log: _Optional[_Union[_elastic_pb2.Records, _Mapping]] = ..., offer: _Optional[_Union[_elastic_pb2.OfferState, _Mapping]] = ..., count: _Optional[_Union[Count, _Mapping]] = ..., drop: _Optional[bytes] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: int
    def __init__(self, checkpoint: _Optional[int] = ...) -> None: ...

class ReducePart(_message.Message):
    __slots__ = ("plan", "share")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    plan: _elastic_pb2.Plan
    share: int
    def __init__(self, plan: _Optional[_Union[_elastic_pb2.Plan, _Mapping]] = ..., share: _Optional[int] = ...) -> None: ...

class Serve(_message.Message):
    __slots__ = ("kept", "id", "manifest")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    kept: bytes
    id: bytes
    manifest: bytes
    def __init__(self, kept: _Optional[bytes] = ..., id: _Optional[bytes] = ..., manifest: _Optional[bytes] = ...) -> None: ...

class GatherPart(_message.Message):
    __slots__ = ("id", "attempt", "shares", "holders", "fragment")
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    attempt: bytes
    shares: _containers.RepeatedCompositeFieldContainer[_elastic_pb2.Share]
    holders: _containers.RepeatedScalarFieldContainer[str]
    fragment: int
    def __init__(self, id: _Optional[bytes] = ..., attempt: _Optional[bytes] = ..., shares: _Optional[_Iterable[_Union[_elastic_pb2.Share, _Mapping]]] = ..., holders: _Optional[_Iterable[str]] = ..., fragment: _Optional[int] = ...) -> None: ...

class FetchPart(_message.Message):
    __slots__ = ("id", "state")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    state: _elastic_pb2.Blob
    def __init__(self, id: _Optional[bytes] = ..., state: _Optional[_Union[_elastic_pb2.Blob, _Mapping]] = ...) -> None: ...

class Swap(_message.Message):
    __slots__ = ("id", "parts")
    ID_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    parts: _containers.RepeatedCompositeFieldContainer[_elastic_pb2.Blob]
    def __init__(self, id: _Optional[bytes] = ..., parts: _Optional[_Iterable[_Union[_elastic_pb2.Blob, _Mapping]]] = ...) -> None: ...

class Shelve(_message.Message):
    __slots__ = ("id", "attempt", "shares", "fragment")
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    attempt: bytes
    shares: _containers.RepeatedCompositeFieldContainer[_elastic_pb2.Share]
    fragment: int
    def __init__(self, id: _Optional[bytes] = ..., attempt: _Optional[bytes] = ..., shares: _Optional[_Iterable[_Union[_elastic_pb2.Share, _Mapping]]] = ..., fragment: _Optional[int] = ...) -> None: ...

class Count(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Order(_message.Message):
    __slots__ = ("initialise", "restore", "stand", "window", "step", "freeze", "merge", "revert", "save", "end", "rebuild")
    INITIALISE_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    STAND_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    REVERT_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    initialise: Initialise
    restore: RestoreCheckpoint
    stand: Stand
    window: _elastic_pb2.LeaseGrant
    step: Step
    freeze: Freeze
    merge: Merge
    revert: Revert
    save: Save
    end: End
    rebuild: Rebuild
    def __init__(self, initialise: _Optional[_Union[Initialise, _Mapping]] = ..., restore: _Optional[_Union[RestoreCheckpoint, _Mapping]] = ..., stand: _Optional[_Union[Stand, _Mapping]] = ..., window: _Optional[_Union[_elastic_pb2.LeaseGrant, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., freeze: _Optional[_Union[Freeze, _Mapping]] = ..., merge: _Optional[_Union[Merge, _Mapping]] = ..., revert: _Optional[_Union[Revert, _Mapping]] = ..., save: _Optional[_Union[Save, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., rebuild: _Optional[_Union[Rebuild, _Mapping]] = ...) -> None: ...

class Initialise(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RestoreCheckpoint(_message.Message):
    __slots__ = ("checkpoint", "record")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    checkpoint: int
    record: int
    def __init__(self, checkpoint: _Optional[int] = ..., record: _Optional[int] = ...) -> None: ...

class Stand(_message.Message):
    __slots__ = ("record", "fetched")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    record: _elastic_pb2.Record
    fetched: bytes
    def __init__(self, record: _Optional[_Union[_elastic_pb2.Record, _Mapping]] = ..., fetched: _Optional[bytes] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("position", "total_tokens", "scale")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    position: float
    total_tokens: float
    scale: float
    def __init__(self, position: _Optional[float] = ..., total_tokens: _Optional[float] = ..., scale: _Optional[float] = ...) -> None: ...

class Freeze(_message.Message):
    __slots__ = ("keep_x", "fragment", "eager")
    KEEP_X_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    EAGER_FIELD_NUMBER: _ClassVar[int]
    keep_x: bool
    fragment: int
    eager: Eager
    def __init__(self, keep_x: _Optional[bool] = ..., fragment: _Optional[int] = ..., eager: _Optional[_Union[Eager, _Mapping]] = ...) -> None: ...

class Eager(_message.Message):
    __slots__ = ("part", "learning_rate", "momentum")
    PART_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    part: float
    learning_rate: float
    momentum: float
    def __init__(self, part: _Optional[float] = ..., learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ...) -> None: ...

class Merge(_message.Message):
    __slots__ = ("record", "anchor", "alpha")
    class Anchor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ANCHOR_X: _ClassVar[Merge.Anchor]
        ANCHOR_FROZEN: _ClassVar[Merge.Anchor]
        ANCHOR_THETA: _ClassVar[Merge.Anchor]
    ANCHOR_X: Merge.Anchor
    ANCHOR_FROZEN: Merge.Anchor
    ANCHOR_THETA: Merge.Anchor
    RECORD_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    record: _elastic_pb2.Record
    anchor: Merge.Anchor
    alpha: float
    def __init__(self, record: _Optional[_Union[_elastic_pb2.Record, _Mapping]] = ..., anchor: _Optional[_Union[Merge.Anchor, str]] = ..., alpha: _Optional[float] = ...) -> None: ...

class Revert(_message.Message):
    __slots__ = ("fragment",)
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    fragment: int
    def __init__(self, fragment: _Optional[int] = ...) -> None: ...

class Save(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Rebuild(_message.Message):
    __slots__ = ("checkpoint", "record", "agreed", "right", "fragment")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: int
    record: int
    agreed: bytes
    right: bytes
    fragment: int
    def __init__(self, checkpoint: _Optional[int] = ..., record: _Optional[int] = ..., agreed: _Optional[bytes] = ..., right: _Optional[bytes] = ..., fragment: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("failure",)
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    failure: str
    def __init__(self, failure: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("culprit", "failure", "cancelled", "addresses", "hashes", "squared_norms", "mean_squared_norm", "blob", "record", "state_hash", "rebuilt", "fragments", "bytes_sent", "bytes_relayed", "bytes_received", "upload_rate", "download_rate")
    CULPRIT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    SQUARED_NORMS_FIELD_NUMBER: _ClassVar[int]
    MEAN_SQUARED_NORM_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    REBUILT_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RELAYED_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_RATE_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_RATE_FIELD_NUMBER: _ClassVar[int]
    culprit: str
    failure: str
    cancelled: bool
    addresses: _containers.RepeatedScalarFieldContainer[str]
    hashes: bytes
    squared_norms: _containers.RepeatedScalarFieldContainer[float]
    mean_squared_norm: float
    blob: _elastic_pb2.Blob
    record: int
    state_hash: bytes
    rebuilt: bytes
    fragments: _containers.RepeatedScalarFieldContainer[bytes]
    bytes_sent: int
    bytes_relayed: int
    bytes_received: int
    upload_rate: float
    download_rate: float
    def __init__(self, culprit: _Optional[str] = ..., failure: _Optional[str] = ..., cancelled: _Optional[bool] = ..., addresses: _Optional[_Iterable[str]] = ..., hashes: _Optional[bytes] = ..., squared_norms: _Optional[_Iterable[float]] = ..., mean_squared_norm: _Optional[float] = ..., blob: _Optional[_Union[_elastic_pb2.Blob, _Mapping]] = ..., record: _Optional[int] = ..., state_hash: _Optional[bytes] = ..., rebuilt: _Optional[bytes] = ..., fragments: _Optional[_Iterable[bytes]] = ..., bytes_sent: _Optional[int] = ..., bytes_relayed: _Optional[int] = ..., bytes_received: _Optional[int] = ..., upload_rate: _Optional[float] = ..., download_rate: _Optional[float] = ...) -> None: ...
