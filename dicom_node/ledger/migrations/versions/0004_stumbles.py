"""How often a destination failed on the very object that it was sent."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    op.add_column("delivery", sa.Column("stumbles", sa.Integer(), server_default="0", nullable=False))
