from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FetchRequest(_message.Message):
    __slots__ = ("id", "start", "stop", "island", "fetch")
    ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    start: int
    stop: int
    island: str
    fetch: bytes
    def __init__(self, id: _Optional[bytes] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., island: _Optional[str] = ..., fetch: _Optional[bytes] = ...) -> None: ...

class RawFrame(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RelayHello(_message.Message):
    __slots__ = ("island",)
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    island: str
    def __init__(self, island: _Optional[str] = ...) -> None: ...

class RelayedFetch(_message.Message):
    __slots__ = ("ticket", "request")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    request: FetchRequest
    def __init__(self, ticket: _Optional[bytes] = ..., request: _Optional[_Union[FetchRequest, _Mapping]] = ...) -> None: ...

class Delivered(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("protocol", "run_id", "run_json", "run_digest", "term", "relays")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_JSON_FIELD_NUMBER: _ClassVar[int]
    RUN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run_id: str
    run_json: str
    run_digest: str
    term: int
    relays: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol: _Optional[int] = ..., run_id: _Optional[str] = ..., run_json: _Optional[str] = ..., run_digest: _Optional[str] = ..., term: _Optional[int] = ..., relays: _Optional[_Iterable[str]] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("number", "steps", "tokens", "samples")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    number: int
    steps: int
    tokens: int
    samples: _containers.RepeatedCompositeFieldContainer[Interval]
    def __init__(self, number: _Optional[int] = ..., steps: _Optional[int] = ..., tokens: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("start", "stop", "addresses")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("id", "length", "parts")
    ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    length: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, id: _Optional[bytes] = ..., length: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("island", "incarnation", "windows", "weight", "clip", "delta", "norm", "serial")
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    island: str
    incarnation: int
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    weight: float
    clip: float
    delta: Blob
    norm: float
    serial: int
    def __init__(self, island: _Optional[str] = ..., incarnation: _Optional[int] = ..., windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., weight: _Optional[float] = ..., clip: _Optional[float] = ..., delta: _Optional[_Union[Blob, _Mapping]] = ..., norm: _Optional[float] = ..., serial: _Optional[int] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("start", "stop", "owner", "mean")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    owner: str
    mean: Blob
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ..., owner: _Optional[str] = ..., mean: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("number", "term", "previous", "total_tokens", "islands", "final", "step", "annulment", "genesis", "settings")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ISLANDS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ANNULMENT_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    number: int
    term: int
    previous: bytes
    total_tokens: int
    islands: int
    final: bool
    step: OuterStep
    annulment: Annulment
    genesis: Genesis
    settings: Settings
    def __init__(self, number: _Optional[int] = ..., term: _Optional[int] = ..., previous: _Optional[bytes] = ..., total_tokens: _Optional[int] = ..., islands: _Optional[int] = ..., final: _Optional[bool] = ..., step: _Optional[_Union[OuterStep, _Mapping]] = ..., annulment: _Optional[_Union[Annulment, _Mapping]] = ..., genesis: _Optional[_Union[Genesis, _Mapping]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ...) -> None: ...

class OuterStep(_message.Message):
    __slots__ = ("attempt", "fragment", "base", "members", "shares", "codec", "learning_rate", "momentum", "base_state", "minority", "scale", "mean_norm", "blocks")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    BASE_STATE_FIELD_NUMBER: _ClassVar[int]
    MINORITY_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MEAN_NORM_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    attempt: bytes
    fragment: int
    base: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    codec: str
    learning_rate: float
    momentum: float
    base_state: bytes
    minority: bool
    scale: float
    mean_norm: float
    blocks: _containers.RepeatedCompositeFieldContainer[Interval]
    def __init__(self, attempt: _Optional[bytes] = ..., fragment: _Optional[int] = ..., base: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ..., codec: _Optional[str] = ..., learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., base_state: _Optional[bytes] = ..., minority: _Optional[bool] = ..., scale: _Optional[float] = ..., mean_norm: _Optional[float] = ..., blocks: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("values", "at_record", "pause", "finish", "evicted", "reason")
    class Pause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PAUSE_UNCHANGED: _ClassVar[Settings.Pause]
        PAUSE_BEGIN: _ClassVar[Settings.Pause]
        PAUSE_END: _ClassVar[Settings.Pause]
    PAUSE_UNCHANGED: Settings.Pause
    PAUSE_BEGIN: Settings.Pause
    PAUSE_END: Settings.Pause
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    AT_RECORD_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, str]
    at_record: int
    pause: Settings.Pause
    finish: bool
    evicted: Eviction
    reason: str
    def __init__(self, values: _Optional[_Mapping[str, str]] = ..., at_record: _Optional[int] = ..., pause: _Optional[_Union[Settings.Pause, str]] = ..., finish: _Optional[bool] = ..., evicted: _Optional[_Union[Eviction, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Eviction(_message.Message):
    __slots__ = ("island", "incarnation")
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    island: str
    incarnation: int
    def __init__(self, island: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class Annulment(_message.Message):
    __slots__ = ("to", "reason")
    TO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    to: int
    reason: str
    def __init__(self, to: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Genesis(_message.Message):
    __slots__ = ("state", "fragments")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    fragments: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, state: _Optional[bytes] = ..., fragments: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SealedRecord(_message.Message):
    __slots__ = ("body", "hash", "holders")
    BODY_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    hash: bytes
    holders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, body: _Optional[bytes] = ..., hash: _Optional[bytes] = ..., holders: _Optional[_Iterable[str]] = ...) -> None: ...

class FromIsland(_message.Message):
    __slots__ = ("term", "hello", "heartbeat", "state_ready", "ready", "lease_request", "proposal", "share_reduced", "prepared", "fetch_failed", "leave", "dropped", "records", "rechecked")
    TERM_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    STATE_READY_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LEASE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    SHARE_REDUCED_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    FETCH_FAILED_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    RECHECKED_FIELD_NUMBER: _ClassVar[int]
    term: int
    hello: Hello
    heartbeat: Heartbeat
    state_ready: StateReady
    ready: Ready
    lease_request: LeaseRequest
    proposal: Proposal
    share_reduced: ShareReduced
    prepared: Prepared
    fetch_failed: FetchFailed
    leave: Leave
    dropped: Dropped
    records: Records
    rechecked: Rechecked
    def __init__(self, term: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., state_ready: _Optional[_Union[StateReady, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., lease_request: _Optional[_Union[LeaseRequest, _Mapping]] = ..., proposal: _Optional[_Union[Proposal, _Mapping]] = ..., share_reduced: _Optional[_Union[ShareReduced, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., fetch_failed: _Optional[_Union[FetchFailed, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., dropped: _Optional[_Union[Dropped, _Mapping]] = ..., records: _Optional[_Union[Records, _Mapping]] = ..., rechecked: _Optional[_Union[Rechecked, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "run_digest", "run_id", "island", "incarnation", "process", "addresses", "place", "has_state", "record", "record_hash", "alone", "tokens_trained", "head", "leases", "tokens_open")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    HAS_STATE_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TRAINED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_OPEN_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run_digest: str
    run_id: str
    island: str
    incarnation: int
    process: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    place: str
    has_state: bool
    record: int
    record_hash: bytes
    alone: bool
    tokens_trained: int
    head: int
    leases: _containers.RepeatedCompositeFieldContainer[LeaseGrant]
    tokens_open: int
    def __init__(self, protocol: _Optional[int] = ..., run_digest: _Optional[str] = ..., run_id: _Optional[str] = ..., island: _Optional[str] = ..., incarnation: _Optional[int] = ..., process: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., place: _Optional[str] = ..., has_state: _Optional[bool] = ..., record: _Optional[int] = ..., record_hash: _Optional[bytes] = ..., alone: _Optional[bool] = ..., tokens_trained: _Optional[int] = ..., head: _Optional[int] = ..., leases: _Optional[_Iterable[_Union[LeaseGrant, _Mapping]]] = ..., tokens_open: _Optional[int] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ("records", "end")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[SealedRecord]
    end: int
    def __init__(self, records: _Optional[_Iterable[_Union[SealedRecord, _Mapping]]] = ..., end: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("record", "window", "step", "tokens_trained", "activity", "loss", "tokens_per_second", "train_seconds", "blocked_seconds", "bytes_sent", "bytes_received", "evaluations", "busy_seconds", "hand_in_seconds", "bytes_relayed", "tokens_open", "upload_rate", "download_rate", "checkpoints", "outer")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TRAINED_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HAND_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_RELAYED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_OPEN_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_RATE_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_RATE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    OUTER_FIELD_NUMBER: _ClassVar[int]
    record: int
    window: int
    step: int
    tokens_trained: int
    activity: str
    loss: float
    tokens_per_second: float
    train_seconds: float
    blocked_seconds: float
    bytes_sent: int
    bytes_received: int
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    busy_seconds: float
    hand_in_seconds: float
    bytes_relayed: int
    tokens_open: int
    upload_rate: float
    download_rate: float
    checkpoints: _containers.RepeatedScalarFieldContainer[int]
    outer: OuterFigures
    def __init__(self, record: _Optional[int] = ..., window: _Optional[int] = ..., step: _Optional[int] = ..., tokens_trained: _Optional[int] = ..., activity: _Optional[str] = ..., loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., train_seconds: _Optional[float] = ..., blocked_seconds: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., busy_seconds: _Optional[float] = ..., hand_in_seconds: _Optional[float] = ..., bytes_relayed: _Optional[int] = ..., tokens_open: _Optional[int] = ..., upload_rate: _Optional[float] = ..., download_rate: _Optional[float] = ..., checkpoints: _Optional[_Iterable[int]] = ..., outer: _Optional[_Union[OuterFigures, _Mapping]] = ...) -> None: ...

class OuterFigures(_message.Message):
    __slots__ = ("record", "outer_learning_rate", "outer_momentum", "delta_norm", "island_cosine", "gain", "delta_cosine")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    OUTER_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    OUTER_MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    DELTA_NORM_FIELD_NUMBER: _ClassVar[int]
    ISLAND_COSINE_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    DELTA_COSINE_FIELD_NUMBER: _ClassVar[int]
    record: int
    outer_learning_rate: float
    outer_momentum: float
    delta_norm: float
    island_cosine: float
    gain: float
    delta_cosine: float
    def __init__(self, record: _Optional[int] = ..., outer_learning_rate: _Optional[float] = ..., outer_momentum: _Optional[float] = ..., delta_norm: _Optional[float] = ..., island_cosine: _Optional[float] = ..., gain: _Optional[float] = ..., delta_cosine: _Optional[float] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("record", "loss")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    record: int
    loss: float
    def __init__(self, record: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class StateReady(_message.Message):
    __slots__ = ("record", "state", "fragments")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    record: int
    state: Blob
    fragments: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, record: _Optional[int] = ..., state: _Optional[_Union[Blob, _Mapping]] = ..., fragments: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: int
    def __init__(self, record: _Optional[int] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("window", "samples")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    window: int
    samples: int
    def __init__(self, window: _Optional[int] = ..., samples: _Optional[int] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("fragment", "base", "windows", "delta", "norm", "base_state", "tokens_trained", "serial", "steps", "tokens", "blocks")
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    BASE_STATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TRAINED_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    fragment: int
    base: int
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    delta: Blob
    norm: float
    base_state: bytes
    tokens_trained: int
    serial: int
    steps: int
    tokens: int
    blocks: _containers.RepeatedCompositeFieldContainer[Interval]
    def __init__(self, fragment: _Optional[int] = ..., base: _Optional[int] = ..., windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., delta: _Optional[_Union[Blob, _Mapping]] = ..., norm: _Optional[float] = ..., base_state: _Optional[bytes] = ..., tokens_trained: _Optional[int] = ..., serial: _Optional[int] = ..., steps: _Optional[int] = ..., tokens: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ...) -> None: ...

class ShareReduced(_message.Message):
    __slots__ = ("attempt", "share", "mean", "squared_norms", "mean_squared_norm")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    SQUARED_NORMS_FIELD_NUMBER: _ClassVar[int]
    MEAN_SQUARED_NORM_FIELD_NUMBER: _ClassVar[int]
    attempt: bytes
    share: int
    mean: Blob
    squared_norms: _containers.RepeatedScalarFieldContainer[float]
    mean_squared_norm: float
    def __init__(self, attempt: _Optional[bytes] = ..., share: _Optional[int] = ..., mean: _Optional[_Union[Blob, _Mapping]] = ..., squared_norms: _Optional[_Iterable[float]] = ..., mean_squared_norm: _Optional[float] = ...) -> None: ...

class Prepared(_message.Message):
    __slots__ = ("attempt",)
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    attempt: bytes
    def __init__(self, attempt: _Optional[bytes] = ...) -> None: ...

class FetchFailed(_message.Message):
    __slots__ = ("attempt", "peer", "reason")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attempt: bytes
    peer: str
    reason: str
    def __init__(self, attempt: _Optional[bytes] = ..., peer: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Rechecked(_message.Message):
    __slots__ = ("record", "state", "rebuilt", "checkpoint", "agreed", "mended", "fragment")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REBUILT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    MENDED_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    record: int
    state: bytes
    rebuilt: bytes
    checkpoint: int
    agreed: bool
    mended: bool
    fragment: int
    def __init__(self, record: _Optional[int] = ..., state: _Optional[bytes] = ..., rebuilt: _Optional[bytes] = ..., checkpoint: _Optional[int] = ..., agreed: _Optional[bool] = ..., mended: _Optional[bool] = ..., fragment: _Optional[int] = ...) -> None: ...

class Dropped(_message.Message):
    __slots__ = ("windows", "cause")
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    cause: str
    def __init__(self, windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., cause: _Optional[str] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ToIsland(_message.Message):
    __slots__ = ("term", "welcome", "refusal", "restore", "offer_state", "lease_grant", "plan", "fix", "record", "finished", "ask_records", "closing", "recheck")
    TERM_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    OFFER_STATE_FIELD_NUMBER: _ClassVar[int]
    LEASE_GRANT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ASK_RECORDS_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    RECHECK_FIELD_NUMBER: _ClassVar[int]
    term: int
    welcome: Welcome
    refusal: Refusal
    restore: Restore
    offer_state: OfferState
    lease_grant: LeaseGrant
    plan: Plan
    fix: Fix
    record: SealedRecord
    finished: Finished
    ask_records: AskRecords
    closing: Closing
    recheck: Recheck
    def __init__(self, term: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., restore: _Optional[_Union[Restore, _Mapping]] = ..., offer_state: _Optional[_Union[OfferState, _Mapping]] = ..., lease_grant: _Optional[_Union[LeaseGrant, _Mapping]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., fix: _Optional[_Union[Fix, _Mapping]] = ..., record: _Optional[_Union[SealedRecord, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., ask_records: _Optional[_Union[AskRecords, _Mapping]] = ..., closing: _Optional[_Union[Closing, _Mapping]] = ..., recheck: _Optional[_Union[Recheck, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("run_id", "head", "start", "evicted", "relays")
    class Start(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        START_UNSPECIFIED: _ClassVar[Welcome.Start]
        START_GO_ON: _ClassVar[Welcome.Start]
        START_INITIALISE: _ClassVar[Welcome.Start]
        START_RESTORE: _ClassVar[Welcome.Start]
        START_GO_BACK: _ClassVar[Welcome.Start]
    START_UNSPECIFIED: Welcome.Start
    START_GO_ON: Welcome.Start
    START_INITIALISE: Welcome.Start
    START_RESTORE: Welcome.Start
    START_GO_BACK: Welcome.Start
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    head: int
    start: Welcome.Start
    evicted: bool
    relays: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_id: _Optional[str] = ..., head: _Optional[int] = ..., start: _Optional[_Union[Welcome.Start, str]] = ..., evicted: _Optional[bool] = ..., relays: _Optional[_Iterable[str]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Restore(_message.Message):
    __slots__ = ("record", "state")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    record: int
    state: Blob
    def __init__(self, record: _Optional[int] = ..., state: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class AskRecords(_message.Message):
    __slots__ = ("start",)
    START_FIELD_NUMBER: _ClassVar[int]
    start: int
    def __init__(self, start: _Optional[int] = ...) -> None: ...

class Closing(_message.Message):
    __slots__ = ("number", "fragment")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    number: int
    fragment: int
    def __init__(self, number: _Optional[int] = ..., fragment: _Optional[int] = ...) -> None: ...

class OfferState(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Recheck(_message.Message):
    __slots__ = ("right", "fragment")
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    right: bytes
    fragment: int
    def __init__(self, right: _Optional[bytes] = ..., fragment: _Optional[int] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("window", "samples")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    window: int
    samples: _containers.RepeatedCompositeFieldContainer[Interval]
    def __init__(self, window: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("attempt", "term", "serial", "number", "fragment", "base", "members", "shares")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    attempt: bytes
    term: int
    serial: int
    number: int
    fragment: int
    base: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    def __init__(self, attempt: _Optional[bytes] = ..., term: _Optional[int] = ..., serial: _Optional[int] = ..., number: _Optional[int] = ..., fragment: _Optional[int] = ..., base: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ...) -> None: ...

class Fix(_message.Message):
    __slots__ = ("attempt", "means")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MEANS_FIELD_NUMBER: _ClassVar[int]
    attempt: bytes
    means: _containers.RepeatedCompositeFieldContainer[Blob]
    def __init__(self, attempt: _Optional[bytes] = ..., means: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ReadLogRequest(_message.Message):
    __slots__ = ("start",)
    START_FIELD_NUMBER: _ClassVar[int]
    start: int
    def __init__(self, start: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("run_id", "term", "record", "total_tokens", "run_tokens", "final", "phase", "islands", "tokens_trained", "tokens_lost", "losses", "evaluations", "warnings", "paused", "settings")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ISLANDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TRAINED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_LOST_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    term: int
    record: int
    total_tokens: int
    run_tokens: int
    final: bool
    phase: str
    islands: _containers.RepeatedCompositeFieldContainer[IslandStatus]
    tokens_trained: int
    tokens_lost: int
    losses: _containers.RepeatedCompositeFieldContainer[Loss]
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    paused: bool
    settings: _containers.ScalarMap[str, str]
    def __init__(self, run_id: _Optional[str] = ..., term: _Optional[int] = ..., record: _Optional[int] = ..., total_tokens: _Optional[int] = ..., run_tokens: _Optional[int] = ..., final: _Optional[bool] = ..., phase: _Optional[str] = ..., islands: _Optional[_Iterable[_Union[IslandStatus, _Mapping]]] = ..., tokens_trained: _Optional[int] = ..., tokens_lost: _Optional[int] = ..., losses: _Optional[_Iterable[_Union[Loss, _Mapping]]] = ..., evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., paused: _Optional[bool] = ..., settings: _Optional[_Mapping[str, str]] = ...) -> None: ...

class IslandStatus(_message.Message):
    __slots__ = ("island", "incarnation", "place", "state", "silent_seconds", "heartbeat", "state_hash", "state_record")
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_RECORD_FIELD_NUMBER: _ClassVar[int]
    island: str
    incarnation: int
    place: str
    state: str
    silent_seconds: float
    heartbeat: Heartbeat
    state_hash: bytes
    state_record: int
    def __init__(self, island: _Optional[str] = ..., incarnation: _Optional[int] = ..., place: _Optional[str] = ..., state: _Optional[str] = ..., silent_seconds: _Optional[float] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., state_hash: _Optional[bytes] = ..., state_record: _Optional[int] = ...) -> None: ...

class Loss(_message.Message):
    __slots__ = ("island", "incarnation", "tokens", "cause")
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    island: str
    incarnation: int
    tokens: int
    cause: str
    def __init__(self, island: _Optional[str] = ..., incarnation: _Optional[int] = ..., tokens: _Optional[int] = ..., cause: _Optional[str] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("set", "pause", "finish", "evict", "rollback", "reason")
    SET_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    EVICT_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    set: Set
    pause: SetPause
    finish: Finish
    evict: Evict
    rollback: Rollback
    reason: str
    def __init__(self, set: _Optional[_Union[Set, _Mapping]] = ..., pause: _Optional[_Union[SetPause, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., evict: _Optional[_Union[Evict, _Mapping]] = ..., rollback: _Optional[_Union[Rollback, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Set(_message.Message):
    __slots__ = ("values", "at_record")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    AT_RECORD_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, str]
    at_record: int
    def __init__(self, values: _Optional[_Mapping[str, str]] = ..., at_record: _Optional[int] = ...) -> None: ...

class SetPause(_message.Message):
    __slots__ = ("paused",)
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    def __init__(self, paused: _Optional[bool] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Evict(_message.Message):
    __slots__ = ("island",)
    ISLAND_FIELD_NUMBER: _ClassVar[int]
    island: str
    def __init__(self, island: _Optional[str] = ...) -> None: ...

class Rollback(_message.Message):
    __slots__ = ("to",)
    TO_FIELD_NUMBER: _ClassVar[int]
    to: int
    def __init__(self, to: _Optional[int] = ...) -> None: ...

class ControlReply(_message.Message):
    __slots__ = ("refusal", "record")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    refusal: str
    record: int
    def __init__(self, refusal: _Optional[str] = ..., record: _Optional[int] = ...) -> None: ...
