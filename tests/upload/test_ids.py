from __future__ import annotations

import re
from uuid import NAMESPACE_DNS, RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.errors import Failure
from stream_api.upload.ids import derived_upload_id, name_based_uuid8, new_upload_id

VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F))


def test_the_example_of_the_rfc() -> None:
    # RFC 9562, appendix B.2.
    assert name_based_uuid8(NAMESPACE_DNS, b"www.example.com") == UUID("5c146b14-3c52-8afd-938a-375d0df1fbf6")


@pytest.mark.parametrize(
    ("key", "upload_id"),
    [
        ("a", "e5bc85ed-f6f4-86b2-9d91-c9442b801a92"),
        ('"a"', "e40481f2-0959-8c96-8e10-611dfb4c241b"),
        ("x" * 255, "e84c117a-7b5a-8cd1-aa93-186c3bf5f078"),
    ],
)
def test_a_key_names_the_same_upload_in_every_version(key: str, upload_id: str) -> None:
    assert derived_upload_id(key) == UUID(upload_id)


@given(st.text(VISIBLE, min_size=1, max_size=255), st.text(VISIBLE, min_size=1, max_size=255))
def test_ids_are_uuids_of_version_8_and_differ_as_keys_do(one: str, other: str) -> None:
    upload_id = derived_upload_id(one)
    assert (upload_id.version, upload_id.variant) == (8, RFC_4122)
    assert (derived_upload_id(other) == upload_id) == (one == other)


@given(st.text(max_size=300))
def test_what_is_no_key_is_refused(text: str) -> None:
    if re.fullmatch(r"[!-~]{1,255}", text):
        assert derived_upload_id(text).version == 8
    else:
        with pytest.raises(Failure) as refused:
            derived_upload_id(text)
        assert (refused.value.code, refused.value.status) == ("idempotency_key_invalid", 400)


def test_other_ids_sort_by_time() -> None:
    ids = [new_upload_id() for _ in range(100)]
    assert {(upload_id.version, upload_id.variant) for upload_id in ids} == {(7, RFC_4122)}
    assert [upload_id.int >> 80 for upload_id in ids] == sorted(upload_id.int >> 80 for upload_id in ids)
