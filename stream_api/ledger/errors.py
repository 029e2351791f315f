"""What PostgreSQL and asyncpg raise, in the words of the error table: by type and SQLSTATE, never by text."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import asyncpg

from stream_api.errors import Failure

#: Classes of SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html) that pass by themselves:
#: connections, transaction rollbacks, resources, operator intervention, errors of the system.
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "40", "53", "57", "58"})
#: Single ones: a write on a standby (a failover under way), the time-outs of a transaction, a lock not had in time.
_UNAVAILABLE: Final = frozenset({"25006", "25P03", "25P04", "55006", "55P03"})
#: What only a person can put right: authentication, privileges, names of databases, schemas and objects.
_REFUSED_CLASSES: Final = frozenset({"28", "3D", "3F"})
_REFUSED: Final = frozenset({"42501", "42P01", "42703", "42883", "57P04", "08P01"})
#: What to do about a refusal, by SQLSTATE or its class.
_ADVICE: Final[dict[str, str]] = {
    "28": "PostgreSQL refused the user or the password: check DATABASE_URL",
    "3D": "The database that DATABASE_URL names does not exist: create it, or correct the URL",
    "3F": "Schema or table is missing: run `stream-api migrate` on this database",
    "42P01": "Schema or table is missing: run `stream-api migrate` on this database",
    "42703": "A column is missing: run `stream-api migrate` on this database",
    "42501": "The database role lacks a privilege: grant it and try again",
}
#: The same for what never came to a statement.
_ADVICE_BY_TYPE: Final[dict[type[Exception], str]] = {
    asyncpg.ClientConfigurationError: "DATABASE_URL is not usable: check its form and its parameters",
    asyncpg.UnsupportedClientFeatureError: "PostgreSQL wants a way to log in that asyncpg does not know",
    asyncpg.UnsupportedServerFeatureError: "The server lacks what this service needs: is it PostgreSQL?",
    ssl.SSLCertVerificationError: "The certificate of PostgreSQL could not be verified",
}


class Closable(Protocol):
    """A connection, as far as it can say whether it is closed."""

    def is_closed(self) -> bool:
        """Whether nothing can be sent over it any more."""


def translate(error: BaseException, connection: Closable | None = None) -> Failure | None:
    """The failure that an error of PostgreSQL, of asyncpg or of the network stands for.

    :param error: what was raised.
    :param connection: the connection it was raised on. asyncpg reports the use of a connection that has been lost in
        the meantime with the type of a programming error; only the connection can tell the two apart.
    :returns: `database_unavailable` (transient) or `database_refused`; `None` for what is not the database's
        availability: errors about data and constraints, which concern the caller, and bugs.
    """
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        # A migration while we work: the statement is prepared anew the next time.
        return Failure("database_unavailable", "Tables of the service have just changed", sqlstate=error.sqlstate)
    if isinstance(error, asyncpg.PostgresError):
        return _from_sqlstate(error.sqlstate or "", error.message or "")
    for kind, advice in _ADVICE_BY_TYPE.items():
        if isinstance(error, kind):
            return Failure("database_refused", advice)
    if isinstance(error, OSError):  # TimeoutError is one, too
        return Failure("database_unavailable", "PostgreSQL could not be reached, or did not answer in time")
    # A server that says farewell (terminated, shutting down, crashed) leaves asyncpg, until it has read the end of the
    # connection as well, in a state in which it refuses the next statement with an InternalClientError.
    unusable = isinstance(error, asyncpg.InternalClientError)
    if not unusable and isinstance(error, asyncpg.InterfaceError) and connection is not None:
        unusable = is_gone(connection)
    return Failure("database_unavailable", "The connection to PostgreSQL was lost") if unusable else None


def is_gone(connection: Closable) -> bool:
    """Whether nothing can be sent over a connection any more. The pool takes one that is lost back by itself."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True


def unexpected(error: asyncpg.PostgresError) -> Failure:
    """The failure that any other error of the server stands for, where it ends a load: it is the operator's to mend.

    :returns: `database_refused`, with the server's own words.
    """
    said = error.message or type(error).__name__
    detail = (
        f"PostgreSQL refused a statement (SQLSTATE {error.sqlstate}: {said}). See its log, mend the cause and retry."
    )
    return Failure("database_refused", detail, sqlstate=error.sqlstate)


def _from_sqlstate(sqlstate: str, message: str) -> Failure | None:
    if sqlstate in _REFUSED or sqlstate[:2] in _REFUSED_CLASSES:
        advice = _ADVICE.get(sqlstate) or _ADVICE.get(sqlstate[:2], "PostgreSQL refused the request")
        # Its own words on privileges and names (class 42) say which object it is; those on users are not for clients.
        said = f": {message}" if sqlstate[:2] == "42" else ""
        detail = f"{advice} (SQLSTATE {sqlstate}{said})"
        return Failure("database_refused", detail, sqlstate=sqlstate)
    if sqlstate in _UNAVAILABLE or sqlstate[:2] in _UNAVAILABLE_CLASSES:
        detail = f"PostgreSQL is not available at the moment (SQLSTATE {sqlstate})"
        return Failure("database_unavailable", detail, sqlstate=sqlstate)
    return None


@contextmanager
def translated(connection: Closable | None = None) -> Iterator[None]:
    """Turns what is raised inside into the failure it stands for; what `translate` does not know passes as it is.

    :raises Failure: `database_unavailable`, `database_refused`.
    """
    try:
        yield
    except Exception as error:
        failure = translate(error, connection)
        if failure is None:
            raise
        raise failure from error
