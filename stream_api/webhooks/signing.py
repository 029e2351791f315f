"""Signatures after Standard Webhooks.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

#: The headers of the standard.
ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"


def sign(keys: Sequence[bytes], *, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each key, so that receivers can change theirs at leisure.

    :param keys: the bytes behind `whsec_…`, the newest first.
    :param webhook_id: of the webhook; has no dot, by which the signed parts are told apart.
    :param timestamp: of this try, in seconds of the Unix epoch.
    """
    signed = b".".join((webhook_id.encode(), str(timestamp).encode(), body))
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}" for key in keys)


def headers_for(keys: Sequence[bytes], *, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of the standard for one try; without keys there is no signature."""
    headers = {ID_HEADER: webhook_id, TIMESTAMP_HEADER: str(timestamp)}
    if keys:
        headers[SIGNATURE_HEADER] = sign(keys, webhook_id=webhook_id, timestamp=timestamp, body=body)
    return headers
