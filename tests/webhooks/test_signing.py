from __future__ import annotations

import base64
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook

from stream_api.config import Settings
from stream_api.webhooks.signing import headers_for, sign


def secret_of(key: bytes) -> str:
    return f"whsec_{base64.b64encode(key).decode()}"


def keys_of(text: str) -> list[bytes]:
    return Settings(webhook_secrets=SecretStr(text)).webhook_keys


def test_the_published_example() -> None:
    """Of https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries (the test of every library)."""
    keys = keys_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(
        keys, webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(
    keys=st.lists(st.binary(min_size=24, max_size=64), min_size=1, max_size=3),
    body=st.text().map(str.encode),
)
def test_what_we_sign_the_library_verifies(keys: list[bytes], body: bytes) -> None:
    headers = headers_for(keys, webhook_id="msg_1_2", timestamp=int(time.time()), body=body)
    for key in keys:
        Webhook(secret_of(key)).verify(body, headers, json_parse=False)
    assert headers["webhook-signature"].split(" ")[0] == Webhook(keys[0]).sign(
        "msg_1_2", datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC), body.decode()
    )


def test_without_a_key_there_is_no_signature() -> None:
    headers = headers_for([], webhook_id="msg_1_2", timestamp=7, body=b"{}")
    assert headers == {"webhook-id": "msg_1_2", "webhook-timestamp": "7"}


def test_secrets_are_read_in_their_order() -> None:
    one, two, three = (bytes([number]) * size for number, size in ((1, 24), (2, 25), (3, 64)))
    text = f" {secret_of(one)},{secret_of(two).rstrip('=')}  {secret_of(three)}, "
    assert keys_of(text) == [one, two, three]
    assert Settings(webhook_secrets=SecretStr(" ")).webhook_keys == []
    assert Settings().webhook_keys == []


@pytest.mark.parametrize(
    "wrong",
    [
        "geheim",
        base64.b64encode(b"x" * 32).decode(),
        secret_of(b"x" * 23),
        secret_of(b"x" * 65),
        "whsec_geh*eim" + "A" * 40,
        "whsec_=",
        f"{secret_of(b'x' * 32)},WHSEC_{base64.b64encode(b'geheim' * 6).decode()}",
    ],
)
def test_wrong_secrets_are_refused_at_start_and_not_shown(wrong: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(webhook_secrets=SecretStr(wrong))
    (error,) = caught.value.errors()
    number = 2 if "," in wrong else 1
    assert error["msg"].endswith(f"secret number {number} is not whsec_ followed by the base64 of 24 to 64 bytes")
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "300.1.1.1", "10.0.0.0/40", "http://localhost", "a b", "*.com", "::g"])
def test_what_is_neither_host_nor_network_is_refused_at_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="is neither a host nor a network"):
        Settings(webhook_allow=f"localhost,{wrong}")


def test_hosts_and_networks_are_told_apart() -> None:
    allowed = Settings(webhook_allow=" LocalHost., 127.0.0.1 ,10.0.0.0/8,[::1],fd00::/8,1a.internal,").webhook_allowed
    assert allowed.hosts == {"localhost", "1a.internal"}
    assert [str(network) for network in allowed.networks] == ["127.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/8"]


def test_the_lines_of_the_readme_verify() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - it is ours
    key, body = b"k" * 32, b'{"status": "completed"}'
    headers = headers_for([b"n" * 32, key], webhook_id="msg_1_2", timestamp=int(time.time()), body=body)
    assert names["verify"](secret_of(key), headers, body)
    assert not names["verify"](secret_of(b"x" * 32), headers, body)
    assert not names["verify"](secret_of(key), headers, body + b" ")
    old = headers_for([key], webhook_id="msg_1_2", timestamp=int(time.time()) - 1000, body=body)
    assert not names["verify"](secret_of(key), old, body)
