"""Ids and digests that are the same on every call: of commands, events and rejections."""

from hashlib import blake2b, sha1
from typing import Final
from uuid import UUID, uuid5

import msgspec
from msgspec import structs

from order_service.domain.messages import Command

_NAMESPACE: Final = sha1(UUID("6d3a1f0e-6f2b-5d7e-9f5a-0f3c5f1d2b4a").bytes, usedforsecurity=False)
_KEYED_IDS: Final = UUID("0c8f7c1e-54f1-5b0e-8d54-3b6a5f0f9f5e")
"""The namespace of ids from idempotency keys. Never change it: keys that were used before would be unknown."""
_VARIANTS: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
_BLANK: Final = blake2b(digest_size=16)
_encode_deterministic: Final = msgspec.msgpack.Encoder(order="deterministic").encode


def blake2b_128(data: bytes) -> bytes:
    """Return the BLAKE2b-128 digest. Copying an empty hash is faster than creating one; each command needs two."""
    hashed = _BLANK.copy()
    hashed.update(data)
    return hashed.digest()


def command_digest(command: Command) -> bytes:
    """Return the digest of a command: the same for JSON and Avro, and for a retry with another deadline.

    Shape: BLAKE2b-128 of the MessagePack map of `type` and the command's fields, in the order of `messages`, without
           `decide_by`, `correlation_id` and fields at their default; the keys of `metadata` sorted.
    """
    if command.decide_by is not None or command.correlation_id is not None:
        command = structs.replace(command, decide_by=None, correlation_id=None)
    return blake2b_128(_encode_deterministic(command))


def event_id(order_id: str, version: int) -> str:
    """Return the id of an event: the uuid5 of its order and version, so the same event has the same id in every run."""
    return name_uuid(order_id, str(version))


def keyed_id(actor: str, use: str, key: str) -> str:
    """Return the id that the `Idempotency-Key` of a caller over HTTP results in; `use` is `command` or `order`."""
    return str(uuid5(_KEYED_IDS, f"{actor}\0{use}\0{key}"))


def name_uuid(*names: str) -> str:
    """Return the uuid5 of `names` joined by NUL: the result of `uuid.uuid5` in a fifth of the time."""
    hashed = _NAMESPACE.copy()
    hashed.update("\0".join(names).encode())
    digest = hashed.hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{_VARIANTS[digest[16]]}{digest[17:20]}-{digest[20:32]}"
