"""Preparing while images come, signs of life, how destinations answer."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    op.create_table(
        "destination",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("rests_until", sa.Float(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "pulse",
        sa.Column("process", sa.String(length=128), nullable=False),
        sa.Column("doing", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("process"),
    )
    op.create_index("delivery_by_destination", "delivery", ["destination", "state", "next_at"], unique=False)
    op.create_index("delivery_by_lease", "delivery", ["lease_until"], unique=False)
    op.add_column("study", sa.Column("prepared_at", sa.Float(), server_default="0", nullable=False))
