"""Rejections: packed and unpacked, in rows and in objects, exact whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.config import RejectLimit, Settings
from stream_api.dialects.dialect import Dialect, Encoding
from stream_api.errors import Failure
from stream_api.ledger.pool import Connection
from stream_api.ledger.segments import count_rejected
from stream_api.load import recorder
from stream_api.load.recorder import IN_ROW_BYTES
from stream_api.load.rejects import NONE, Rejection, Rejects, Unpacker
from stream_api.load.violations import code_of, is_about_a_row, reason_of
from stream_api.options import Options
from tests.load.conftest import HEADER, Loading, event, open_loading
from tests.support.settings import change

REJECTION = st.builds(
    Rejection,
    st.integers(1, 2**40),
    st.integers(0, 2**50),
    st.none() | st.text(max_size=8),
    st.sampled_from(["invalid_uuid", "too_long"]),
    st.text(max_size=40),
    # Made when it is wanted: Hypothesis would warn of a strategy whose own description is that long.
    st.binary(max_size=60) | st.just(200_000).map(lambda size: b"x" * size),
)


@given(st.lists(st.lists(REJECTION, max_size=20), max_size=4), st.integers(1, 5000))
def test_what_is_packed_comes_back(batches: list[list[Rejection]], piece: int) -> None:
    joined = Rejects.join([Rejects.pack(batch) for batch in batches])
    every = [rejection for batch in batches for rejection in batch]
    assert list(joined) == every
    assert len(joined) == len(every)
    assert joined.by_code == Counter(each.code for each in every)
    assert list(joined.first) == [each.shown for each in every[:10]]
    unpacker = Unpacker()
    found: list[Rejection] = []
    for start in range(0, len(joined.packed), piece):
        found += unpacker.feed(joined.packed[start : start + piece])
    unpacker.finish()
    assert found == every


def test_no_rejections_weigh_nothing() -> None:
    assert Rejects.pack([]) == Rejects.join([]) == NONE
    assert (NONE.size_bytes, list(NONE), bool(NONE)) == (0, [], False)


def test_a_small_object_that_becomes_a_large_one_is_unpacked_in_pieces() -> None:
    packed = Rejects.pack(Rejection(1, 0, None, "nul_byte", "", bytes(60_000)) for _ in range(1000)).packed
    assert len(packed) < 400_000
    unpacker = Unpacker()
    largest = count = 0
    for _ in unpacker.feed(packed):
        count += 1
        largest = max(largest, len(unpacker._frames))
    assert (count, largest < 200_000) == (1000, True)


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_what_is_cut_off_is_noticed(cut: int) -> None:
    packed = Rejects.pack([Rejection(1, 0, None, "nul_byte", "reason", b"record")]).packed
    unpacker = Unpacker()
    list(unpacker.feed(packed[:cut]))
    with pytest.raises(ValueError, match="end early"):
        unpacker.finish()
    with pytest.raises(ValueError, match="incorrect header"):
        list(Unpacker().feed(b"something else"))
    with pytest.raises(ValueError, match="end early"):
        list(Rejects(zlib.compress(b"\0\0\0\x09x")))


@pytest.mark.parametrize(
    ("sqlstate", "about", "code"),
    [
        ("23505", True, "duplicate_key"),
        ("23502", True, "missing_value"),
        ("22P02", True, "invalid_value"),
        ("54000", True, "too_long"),
        ("P0001", True, "trigger_raised"),
        ("ZZ999", True, "trigger_raised"),
        ("45000", True, "trigger_raised"),
        *[(state, False, "") for state in ("40P01", "53100", "57014", "58030", "XX000", "42501", "0A000", "F0000", "")],
    ],
)
def test_errors_that_speak_of_a_row(sqlstate: str, about: bool, code: str) -> None:
    assert is_about_a_row(sqlstate) is about
    if about:
        assert code_of(sqlstate) == code


def test_reasons_are_those_of_postgres_and_bounded() -> None:
    assert reason_of("23505", "twice", "Key (a)=(1)") == "twice: Key (a)=(1)"
    assert reason_of("23514", "no", "Failing row contains (1).") == "no"
    assert len(reason_of("P0001", "x" * 1000, None)) == 300


@pytest.mark.parametrize(
    ("text", "read", "failed", "final", "exceeded"),
    [
        ("0", 1, 0, False, False),
        ("0", 1, 1, False, True),
        ("100", 100, 100, True, False),
        ("100", 101, 101, False, True),
        ("5%", 9_999, 9_999, False, False),
        ("5%", 10_000, 500, False, False),
        ("5%", 10_000, 501, False, True),
        ("5 %", 20, 1, True, False),
        ("2.5%", 20, 1, True, True),
        ("0%", 20, 0, True, False),
        ("0%", 20, 1, True, True),
        ("100%", 20, 20, True, False),
    ],
)
def test_limits(text: str, read: int, failed: int, final: bool, exceeded: bool) -> None:
    limit = RejectLimit.parse(text)
    assert limit.exceeded(read, failed, final=final) is exceeded
    assert RejectLimit.parse(str(limit)) == limit


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "5 percent", "0.05", "%", "1e3", "१"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match="a share of them"):
        RejectLimit.parse(text)


def half_bad(rows: int) -> tuple[bytes, bytes]:
    """A file, and what of it is to be rejected; random enough that it cannot be compressed into a ledger row."""
    records = [
        event(number, **({"amount": f"x{number * 7919 % 100_003}"} if number % 2 else {})) for number in range(rows)
    ]
    return HEADER + b"".join(records), HEADER + b"".join(records[1::2])


async def objects(loading: Loading) -> list[str]:
    return [key for key in await loading.keys() if "/rejects/" in key]


async def test_many_rejections_lie_in_an_object_and_few_in_the_row(loading: Loading) -> None:
    data, bad = half_bad(8000)
    row = await loading.load(await loading.stored(data, segment_bytes=300_000))
    assert (row.state, row.rows_inserted, row.rejected) == ("completed", 4000, {"invalid_number": 4000})
    named = await loading.fetch(
        "SELECT rejects_key, length(rejects) FROM stream_api.segments WHERE rejected <> '{}' ORDER BY number"
    )
    in_objects = [key for key, _ in named if key is not None]
    in_rows = [length for _, length in named if length is not None]
    assert len(in_objects) + len(in_rows) == len(named) == row.segments
    assert in_objects
    assert all(length <= IN_ROW_BYTES for length in in_rows)
    assert sorted(await objects(loading)) == sorted(in_objects)
    assert await loading.original(row.id) == bad
    rejects = await loading.rejects(row.id)
    assert [int(each["line"]) for each in rejects] == list(range(3, 8002, 2))
    assert {each["column"] for each in rejects} == {"amount"}
    # What is mended is uploaded again, and then nothing is missing.
    mended = await loading.load(await loading.stored(bad.replace(b",x", b",")))
    assert (mended.rows_inserted, mended.rows_failed, await loading.count()) == (4000, 0, 8000)


async def test_records_that_are_no_text(loading: Loading) -> None:
    bad = [event(1, status="nul\0"), event(2).replace(b"shop", b"sh\xffp"), b'"two\r\nlines",\xc3\xa9\r\n']
    head = b"\xef\xbb\xbf\r\n" + HEADER
    row = await loading.load(await loading.stored(head + event(0) + b"".join(bad) + b'"open'))
    assert row.rejected == {"nul_byte": 1, "invalid_utf8": 1, "wrong_field_count": 1, "unclosed_quote": 1}
    rejects = await loading.rejects(row.id)
    assert [each["encoding"] for each in rejects] == ["base64", "base64", "utf8", "utf8"]
    assert [each["record"] for each in rejects[2:]] == ['"two\r\nlines",é', '"open']
    assert await loading.original(row.id) == head + b"".join(bad) + b'"open'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
async def test_a_line_that_is_cut_off_is_not_joined_to_the_next(settings: Settings, encoding: Encoding) -> None:
    def file(*records: str) -> bytes:
        return "".join((HEADER.decode(), *records)).encode(encoding)

    bad = event(1, amount="much").decode()
    async with open_loading(change(settings, max_record_bytes=1000)) as loading:
        data = file("x" * 3000 + "\r\n", bad, event(2).decode())
        row = await loading.load(await loading.stored(data, dialect=Dialect(encoding=encoding)))
        assert (row.rows_read, row.rows_inserted) == (3, 1)
        kept = 1000 // len("x".encode(encoding))
        assert await loading.original(row.id) == file("x" * kept + "\n", bad)
        assert [each["code"] for each in await loading.rejects(row.id)] == ["record_too_long", "invalid_number"]


async def test_a_column_with_a_nul_in_its_name(loading: Loading) -> None:
    data = HEADER.replace(b"amount", b"am\0unt") + event(1) + event(2, amount="much")
    options = Options(mapping={"am\0unt": "amount"})
    row = await loading.load(await loading.stored(data, options=options))
    assert (row.state, row.rows_inserted, row.rejected) == ("completed", 1, {"invalid_number": 1}), row.error
    assert [each["column"] for each in row.first_rejects] == ["am\ufffdunt"]
    assert await loading.original(row.id) == data.replace(event(1), b"")


async def test_an_object_whose_transaction_is_rolled_back_is_nobodys(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, bad = half_bad(4000)
    manifest = await loading.stored(data)
    put = loading.store.put
    stored: list[str] = []

    async def put_and_lose_the_session(key: str, body: bytes, **options: object) -> str:
        etag = await put(key, body, **options)  # type: ignore[arg-type]
        if "/rejects/" in key:
            stored.append(key)
            if len(stored) < 3:
                await loading.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name LIKE 'stream-api:%'"
                )
        return etag

    monkeypatch.setattr(loading.store, "put", put_and_lose_the_session)
    row = await loading.load(manifest)
    assert (row.state, row.run, row.rows_inserted, row.rows_failed) == ("completed", 3, 2000, 2000)
    assert (sorted(await objects(loading)), len(stored)) == (sorted(stored), 3)
    assert await loading.fetch("SELECT rejects_key FROM stream_api.segments") == [(stored[-1],)]
    assert await loading.original(row.id) == bad


async def test_a_stale_worker_adds_no_rejects(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    data, bad = half_bad(4000)
    manifest = await loading.stored(data)
    put, stored, others_turn = loading.store.put, asyncio.Event(), asyncio.Event()

    async def put_late(key: str, body: bytes, **options: object) -> str:
        etag = await put(key, body, **options)  # type: ignore[arg-type]
        stored.set()
        await others_turn.wait()
        return etag

    monkeypatch.setattr(loading.store, "put", put_late)
    stale = asyncio.create_task(loading.loader.load(manifest.upload_id))
    await stored.wait()
    (orphan,) = await objects(loading)
    async with open_loading(loading.settings) as other:
        row = await other.load(manifest)
        assert (row.state, row.run, row.rows_inserted, row.rows_failed) == ("completed", 2, 2000, 2000)
        others_turn.set()
        await stale
        assert await other.original(row.id) == bad
        assert await other.ledger.get(row.id) == row
        assert orphan not in {key for (key,) in await other.fetch("SELECT rejects_key FROM stream_api.segments")}


async def test_a_store_that_takes_no_rejects_delays_the_load(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, bad = half_bad(4000)
    async with open_loading(change(settings, load_attempts=2)) as loading:
        manifest = await loading.stored(data)

        async def refuse(*_: object, **__: object) -> str:
            raise Failure("storage_unavailable", "It is away.")

        with monkeypatch.context() as patch:
            patch.setattr(loading.store, "put", refuse)
            with pytest.raises(Failure, match="It is away") as caught:
                await loading.loader.load(manifest.upload_id)
        assert caught.value.transient
        assert (await loading.count(), await loading.lanes()) == (0, [])
        row = await loading.load(manifest)
        assert (row.state, row.rows_inserted, await loading.count()) == ("completed", 2000, 2000)
        assert await loading.original(row.id) == bad


@pytest.mark.parametrize("max_rejects", ["50", "10%"])
async def test_too_many_rejections_fail_the_load(settings: Settings, max_rejects: str) -> None:
    data, _ = half_bad(400)
    # Several lanes may pass the limit together.
    async with open_loading(change(settings, max_rejects=max_rejects, lanes=1)) as loading:
        row = await loading.load(await loading.stored(data, segment_bytes=2000))
        assert row.error is not None
        assert (row.state, row.error["code"], row.error["limit"]) == ("failed", "too_many_rejects", max_rejects)
        assert row.rows_failed <= 50 if max_rejects == "50" else row.rows_failed == 200
        assert len(await loading.rejects(row.id)) == row.rows_failed
        # The upload's own word comes before the setting.
        row = await loading.load(await loading.stored(half_bad(60)[0].replace(b"-4000-", b"-5000-"), max_rejects="50%"))
        assert (row.state, row.rows_failed) == ("completed", 30)


async def test_rejects_over_the_limit_are_not_stored(loading: Loading) -> None:
    rng = random.Random(1)
    data = HEADER + b"".join(event(number, id=rng.randbytes(40).hex()) for number in range(1000))
    manifest = await loading.stored(data, max_rejects="999")
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "too_many_rejects")
    assert await loading.keys() == [manifest.key]
    # They are so many that they would lie in an object.
    assert (await loading.load(await loading.stored(data, max_rejects="1000"))).state == "completed"
    assert len(await loading.keys()) == 2


async def test_lanes_count_one_after_another(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = half_bad(40)
    counting = asyncio.Barrier(2)

    async def count_together(connection: Connection, upload_id: UUID, *, alone: bool) -> tuple[int, int]:
        await counting.wait()
        return await count_rejected(connection, upload_id, alone=alone)

    monkeypatch.setattr(recorder, "count_rejected", count_together)
    async with open_loading(change(settings, lanes=2)) as loading:
        manifest = await loading.stored(data, segment_bytes=len(data) // 2 + 50, max_rejects="19")
        row = await loading.load(manifest)
        assert row.error is not None
        # One of them has committed, and the other has seen it.
        assert (row.error["code"], row.error["rowsFailed"], row.rows_failed) == ("too_many_rejects", 20, 10)
        assert row.rows_inserted == await loading.count()


async def test_lanes_that_pass_the_limit_together(settings: Settings) -> None:
    data, _ = half_bad(40)
    async with open_loading(change(settings, lanes=2)) as loading:
        # Both segments are under the limit as long as neither sees the other.
        manifest = await loading.stored(data, segment_bytes=len(data) // 2 + 50, max_rejects="19")
        row = await loading.load(manifest)
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", "too_many_rejects")
        await loading.ledger.reopen(manifest.upload_id)
        assert (await loading.load(manifest)).state == "failed"
