"""Alembic's door: runs the steps on the connection that it is given, in the transaction that is open there."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import String, Text

from dicom_node.ledger.schema import Prose, Words, metadata


def plain(kind: str, thing: object, _: Any) -> str | Literal[False]:
    """Steps name types of SQLAlchemy, not ours, which may change after them."""
    if kind == "type" and isinstance(thing, Words):
        return f"sa.{Text() if isinstance(thing, Prose) else String(thing.length)!r}"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_item=plain,
)
context.run_migrations()
