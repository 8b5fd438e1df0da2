"""Bring PostgreSQL's tables up to date: the numbered files of migrations/, each once, through yoyo.

May import yoyo and psycopg. Never: data.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from urllib.parse import quote, urlencode

import psycopg
import yoyo
from psycopg.conninfo import conninfo_to_dict

from runtime.errors import HeliographError, UnavailableError

_LOCK = 0x68656C696F01
"""Advisory lock of whoever migrates. yoyo's own lock is a row that outlives a killed process."""
CONNECT_TIMEOUT_S = 5
WRITABLE = "read-write"
"""libpq's target_session_attrs: a read-only server (a standby, a primary set so) counts as unavailable; of several hosts the one that writes is taken."""


class MigrationError(HeliographError):
    """A migration does not apply."""


def unavailable(exc: BaseException) -> UnavailableError:
    """What to say when PostgreSQL does not answer; without the connection string."""
    reason = " ".join(str(exc).split())[:200]
    return UnavailableError(f"cannot reach PostgreSQL: {reason}; is it running, and is HELIOGRAPH_POSTGRES__DSN right?")


def migrate(dsn: str) -> list[str]:
    """Apply what is missing and return the names applied; safe from several processes at once.

    Raises UnavailableError when PostgreSQL does not answer, MigrationError when a file does not apply.
    """
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
            return _apply(dsn)
    except psycopg.OperationalError as exc:
        raise unavailable(exc) from exc


def _apply(dsn: str) -> list[str]:
    with as_file(files("producers.reference").joinpath("migrations")) as directory:
        migrations = yoyo.read_migrations(str(directory))
        backend = yoyo.get_backend(_yoyo_uri(dsn))
        try:
            wanted = backend.to_apply(migrations)
            names = [migration.id for migration in wanted]
            backend.apply_migrations(wanted)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as exc:
            raise MigrationError(f"cannot migrate PostgreSQL: {' '.join(str(exc).split())[:300]}") from exc
        finally:
            backend.connection.close()
        return names


def _yoyo_uri(dsn: str) -> str:
    """Any libpq connection string as the URL that yoyo wants."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    user = parts.pop("user", "")
    password = parts.pop("password", "")
    host = parts.pop("host", "")
    port = parts.pop("port", "")
    database = parts.pop("dbname", "")
    if host.startswith("/"):
        parts["host"] = host
        host = ""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
    where = f"{host}:{port}" if port else host
    return f"postgresql+psycopg://{login}{where}/{quote(database, safe='')}?{urlencode(parts)}"
