"""What a client asks of the load of one file, beside its dialect: form fields and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from stream_api.errors import Failure, field_refused

Conflict = Literal["error", "skip", "update"]
Mode = Literal["append", "atomic", "replace"]


class Options(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """What a client asks of one load; where it says nothing the dataset decides.

    :param header: the first record names the columns; `False` when it is a row already; `None` as the dataset says.
    :param columns: names of the file's columns, in its order, in place of those in its header.
    :param mapping: for names of the file the table's column, or `None` for those that are to be ignored.
    :param mode: `append` row by row; `atomic`: all rows or none; `replace`: they become the table's whole content.
    :param conflict: what becomes of a row whose key the table has: it is rejected, skipped, or updates that one.
    :param key: the columns that `conflict` speaks of; empty for the primary key.
    :param dry_run: everything is checked, and nothing loaded.
    """

    header: bool | None = None
    columns: tuple[str, ...] = ()
    mapping: dict[str, str | None] = msgspec.field(default_factory=dict)
    mode: Mode | None = None
    conflict: Conflict | None = None
    key: tuple[str, ...] = ()
    dry_run: bool = False

    def having(self, name: str, value: str) -> Options:
        """With the value of a form field.

        :param name: one of `FORM_FIELDS`.
        :raises Failure: `option_invalid`, naming what the field may be.
        """
        return msgspec.structs.replace(self, **FORM_FIELDS[name](name, value))


_YES: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _flag(name: str, value: str) -> bool:
    found = _YES.get(value.strip().lower())
    if found is None:
        raise _refused(name, value, ["true", "false"])
    return found


def _header(name: str, value: str) -> dict[str, Any]:
    return {"header": _flag(name, value)}


def _dry_run(name: str, value: str) -> dict[str, Any]:
    return {"dry_run": _flag(name, value)}


def _names(name: str, value: str) -> tuple[str, ...]:
    """Names by commas, or as a JSON array where a name has a comma in it."""
    if value.lstrip().startswith("["):
        try:
            return msgspec.json.decode(value, type=tuple[str, ...])
        except (msgspec.DecodeError, UnicodeEncodeError) as exc:
            raise _refused(name, value, ["names by commas", "a JSON array of names"]) from exc
    return tuple(each.strip() for each in value.split(",")) if value.strip() else ()


def _columns(name: str, value: str) -> dict[str, Any]:
    return {"columns": _names(name, value)}


def _key(name: str, value: str) -> dict[str, Any]:
    return {"key": _names(name, value)}


def _mapping(name: str, value: str) -> dict[str, Any]:
    try:
        return {"mapping": msgspec.json.decode(value, type=dict[str, str | None])}
    except (msgspec.DecodeError, UnicodeEncodeError) as exc:
        raise _refused(
            name, value, ['a JSON object: {"name in the file": "column of the table", "other": null}']
        ) from exc


def _mode(name: str, value: str) -> dict[str, Any]:
    return {"mode": _one_of(name, value, get_args(Mode))}


def _conflict(name: str, value: str) -> dict[str, Any]:
    return {"conflict": _one_of(name, value, get_args(Conflict))}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise _refused(name, value, list(allowed))
    return value


def _refused(name: str, value: str, allowed: list[str]) -> Failure:
    return field_refused("option_invalid", name, value, allowed)


#: The form fields about a load, and what reads each.
FORM_FIELDS: Final[Mapping[str, Callable[[str, str], dict[str, Any]]]] = {
    "header": _header,
    "columns": _columns,
    "mapping": _mapping,
    "mode": _mode,
    "conflict": _conflict,
    "key": _key,
    "dryRun": _dry_run,
}
