"""The ledger's schema, step by step (Alembic). Whoever opens the ledger brings its database up to date first.

A step is written by `python -m dicom_node.ledger.migrations "what changes"`, which compares `schema` with the steps
there are. Steps lead upwards only, and a released one is never edited.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from dicom_node.errors import ConfigurationError, Retry

#: The step that is the schema of ledgers from before there were steps.
FIRST = "0001"
#: What the last such ledgers have and older ones lack.
_LATEST_BEFORE = {"remark": "kind", "report": "kind", "delivery": "transaction_uid"}
#: PostgreSQL's advisory lock under which one process at a time looks and migrates; "DCM" in ASCII.
_LOCK = 0x44434D


def config(connection: Connection) -> Config:
    """Alembic's configuration for one connection."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.attributes["connection"] = connection
    return made


def bring_up(engine: Engine) -> None:
    """Bring the ledger's database to the newest step, all or nothing; many processes may do so at once.

    Raises:
        Retry: the database cannot be reached.
        ConfigurationError: it was made by a newer version, or before the first release.
    """
    shown = engine.url.render_as_string()
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            _upgrade(connection, shown)
    except DBAPIError as error:
        raise Retry(f"the ledger at {shown} cannot be opened: {error.orig}; check the database and `ledger`") from error


def _upgrade(connection: Connection, shown: str) -> None:
    steps = config(connection)
    scripts = ScriptDirectory.from_config(steps)
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision == scripts.get_current_head():
        return
    if revision not in {None, *(script.revision for script in scripts.walk_revisions())}:
        raise ConfigurationError(
            f"the ledger at {shown} has schema {revision}, which a newer version of this program made; "
            "install that version again, or restore the ledger's backup from before it"
        )
    if revision is None and inspect(connection).has_table("study"):
        _recognised(connection, shown)
        command.stamp(steps, FIRST)
    command.upgrade(steps, "head")


def _recognised(connection: Connection, shown: str) -> None:
    """Is this the schema that the last version without steps made?"""
    found = inspect(connection)
    for table, column in _LATEST_BEFORE.items():
        if not found.has_table(table) or column not in {known["name"] for known in found.get_columns(table)}:
            raise ConfigurationError(
                f"the ledger at {shown} was made before the first release ({table}.{column} is missing): move it away; "
                "the receiver enters every spooled image into a new one when it starts"
            )
