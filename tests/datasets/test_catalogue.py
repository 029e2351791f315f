"""The catalogue, read from a real server."""

from __future__ import annotations

import asyncpg
import pytest

from stream_api.datasets.catalogue import Column, read_table
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.plan import make_plan
from stream_api.errors import Failure

_TABLE = """
CREATE SCHEMA s;
CREATE TYPE s.mood AS ENUM ('sad', 'it''s');
CREATE DOMAIN s.filled AS text NOT NULL CHECK (VALUE <> '');
CREATE DOMAIN s.filled_too AS s.filled DEFAULT 'x';
CREATE DOMAIN s.price AS numeric(5,2);
CREATE TABLE s."T x" (
    id uuid PRIMARY KEY, gone int, "Name" varchar(10) NOT NULL, c char(3), bp bpchar, one "char",
    n numeric(12,2), n_any numeric, n_rounded numeric(3,-2),
    mood s.mood NOT NULL DEFAULT 'sad', f s.filled, f2 s.filled_too, p s.price, arr int[],
    i int GENERATED ALWAYS AS IDENTITY, j bigserial,
    g int GENERATED ALWAYS AS (1) STORED, v int GENERATED ALWAYS AS (2),
    ts timestamptz(3), iv interval day to second(2), d date DEFAULT now());
ALTER TABLE s."T x" DROP COLUMN gone;
"""


async def test_everything_about_a_table(empty_database: str) -> None:
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute(_TABLE)
        # Types outside pg_catalog keep their schema, whatever the search path, which is as before afterwards.
        await connection.execute("SET search_path TO s, public")
        table = await read_table(connection, '"T x"')
        assert await connection.fetchval("SHOW search_path") == "s, public"
    finally:
        await connection.close()
    assert (table.schema, table.name, table.encoding, table.before_insert) == ("s", "T x", "UTF8", False)
    assert table.sql_name == '"s"."T x"'
    assert table.columns == (
        Column("id", "uuid", "uuid", not_null=True),
        Column("Name", "character varying(10)", "varchar", not_null=True, length=10),
        Column("c", "character(3)", "bpchar", length=3),
        Column("bp", "bpchar", "bpchar"),
        Column("one", '"char"', "char"),
        Column("n", "numeric(12,2)", "numeric", precision=12, scale=2),
        Column("n_any", "numeric", "numeric"),
        Column("n_rounded", "numeric(3,-2)", "numeric", precision=3, scale=-2),
        Column("mood", "s.mood", None, not_null=True, has_default=True, enum=True, labels=("sad", "it's")),
        Column("f", "s.filled", "text", not_null=True, domain=True),
        Column("f2", "s.filled_too", "text", not_null=True, has_default=True, domain=True),
        Column("p", "s.price", "numeric", domain=True),
        Column("arr", "integer[]", "_int4", array=True),
        Column("i", "integer", "int4", not_null=True, has_default=True),
        Column("j", "bigint", "int8", not_null=True, has_default=True),
        Column("g", "integer", "int4", has_default=True, generated=True),
        Column("v", "integer", "int4", has_default=True, generated=True),
        Column("ts", "timestamp(3) with time zone", "timestamptz"),
        Column("iv", "interval day to second(2)", "interval"),
        Column("d", "date", "date", has_default=True),
    )
    assert make_plan(table, Dataset(name="d", table="t"), ["id", "Name", "f"]).copy_format == "csv"


@pytest.mark.parametrize(
    "name",
    ["nope", "s.nope", "", '"open', "a.b.c", "a.b.c.d", "public.events_pkey", "public.shown", "'; DROP TABLE events"],
)
async def test_what_is_not_a_table(empty_database: str, name: str) -> None:
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute("CREATE TABLE events (id int PRIMARY KEY); CREATE VIEW shown AS SELECT * FROM events")
        with pytest.raises(Failure) as caught:
            await read_table(connection, name)
        assert caught.value.code == "table_missing"
        assert (await read_table(connection, "Events")).name == "events"  # and the connection still works
    finally:
        await connection.close()


async def test_triggers_that_may_fill_a_row(empty_database: str) -> None:
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute("""
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
            CREATE TABLE plain (a int);
            CREATE TRIGGER t1 AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION f();
            CREATE TRIGGER t2 BEFORE INSERT ON plain FOR EACH STATEMENT EXECUTE FUNCTION f();
            CREATE TRIGGER t3 BEFORE UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION f();
            CREATE TABLE filled (a int);
            CREATE TRIGGER t BEFORE INSERT OR UPDATE ON filled FOR EACH ROW EXECUTE FUNCTION f();
            CREATE TABLE parent (a int) PARTITION BY RANGE (a);
            CREATE TABLE child PARTITION OF parent DEFAULT;
            CREATE TRIGGER t BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION f();
        """)
        assert not (await read_table(connection, "plain")).before_insert
        assert (await read_table(connection, "filled")).before_insert
        assert (await read_table(connection, "parent")).before_insert
        await connection.execute("ALTER TABLE filled DISABLE TRIGGER t")
        assert not (await read_table(connection, "filled")).before_insert
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("CREATE INDEX ON t (a)", False),
        ("ALTER TABLE t ADD UNIQUE (a), ADD FOREIGN KEY (a) REFERENCES other", False),
        ("ALTER TABLE u ADD FOREIGN KEY (a) REFERENCES t DEFERRABLE", False),
        ("ALTER TABLE t ADD UNIQUE (a) DEFERRABLE", True),
        ("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES other DEFERRABLE INITIALLY DEFERRED", True),
        ("ALTER TABLE t ADD EXCLUDE USING btree (a WITH =) DEFERRABLE", True),
        ("CREATE TRIGGER g AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f()", False),
        ("CREATE TRIGGER g AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION f()", True),
        ("CREATE CONSTRAINT TRIGGER g AFTER INSERT ON child DEFERRABLE FOR EACH ROW EXECUTE FUNCTION f()", True),
    ],
)
async def test_what_may_come_at_the_commit_only(empty_database: str, what: str, *, expected: bool) -> None:
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute("""
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
            CREATE TABLE other (a int PRIMARY KEY); CREATE TABLE u (a int);
            CREATE TABLE t (a int PRIMARY KEY);
            CREATE TABLE parent (a int) PARTITION BY RANGE (a); CREATE TABLE child PARTITION OF parent DEFAULT""")
        await connection.execute(what)
        assert (await read_table(connection, "parent" if "child" in what else "t")).may_defer is expected
    finally:
        await connection.close()
