"""A hash of Accession Number, by which people find a study; empty at images that came before."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0005", "0004"


def upgrade() -> None:
    op.add_column("instance", sa.Column("accession_key", sa.String(length=64), server_default="", nullable=False))
