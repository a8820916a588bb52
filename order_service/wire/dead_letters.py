"""The reasons for dead letters: a closed set, for the header `dl_reason`, the metrics and the documents."""

from enum import StrEnum


class DeadLetterReason(StrEnum):
    """Every reason for which a record of the commands topic becomes a dead letter."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNKNOWN_FORMAT = "unknown_format"
    UNKNOWN_SCHEMA = "unknown_schema"
    NOT_AVRO = "not_avro"
    NOT_JSON = "not_json"
    BAD_SHAPE = "bad_shape"
    KEY_MISSING = "key_missing"
    KEY_MISMATCH = "key_mismatch"
    WRONG_PARTITION = "wrong_partition"
