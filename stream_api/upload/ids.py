"""Upload ids: UUIDs of version 7, so that keys and rows sort by time, or derived from an `Idempotency-Key`."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import Final
from uuid import UUID

from stream_api.errors import Failure

MAX_KEY_CHARS: Final = 255
#: Visible characters of ASCII (RFC 5234, appendix B.1: VCHAR); quotes, if any, are part of the key.
_KEY: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_CHARS}}}")
#: Ours alone, made at random once. Another one would give every key another upload: it never changes.
KEY_NAMESPACE: Final = UUID("179c40ac-efc7-45e0-84c6-075cd426312d")


def new_upload_id() -> UUID:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds since 1970, then 74 random bits.

    The standard library makes them from Python 3.14.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80
        | 0x7 << 76
        | (random >> 62) << 64
        | 0b10 << 62
        | random & (1 << 62) - 1
    )


def derived_upload_id(idempotency_key: str) -> UUID:
    """The id of the upload that an `Idempotency-Key` stands for: the same key, the same id, on every machine.

    :raises Failure: `idempotency_key_invalid`.
    """
    if _KEY.fullmatch(idempotency_key) is None:
        detail = f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} visible ASCII characters, such as a random UUID."
        raise Failure("idempotency_key_invalid", detail, limitChars=MAX_KEY_CHARS)
    return name_based_uuid8(KEY_NAMESPACE, idempotency_key.encode("ascii"))


def name_based_uuid8(namespace: UUID, name: bytes) -> UUID:
    """A UUIDv8 of a name (RFC 9562, section 5.8, made as in appendix B.2): the first 128 bits of a SHA-256.

    Not version 5, which is made in the same way of SHA-1: for SHA-1 two names with one id can be found, and whoever
    chooses keys could so have one upload answered for by another.
    """
    digest = int.from_bytes(hashlib.sha256(namespace.bytes + name).digest()[:16])
    version, variant = 0xF << 76, 0b11 << 62
    return UUID(int=digest & ~version & ~variant | 0x8 << 76 | 0b10 << 62)
