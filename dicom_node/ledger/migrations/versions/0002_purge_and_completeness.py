"""Purged files, promises, performed steps, counts of archives, sizes past 2 GiB."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    op.create_table(
        "archive_count",
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("objects", sa.Integer(), nullable=False),
        sa.Column("counted_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("study_uid", "peer"),
    )
    op.create_table(
        "performed_step",
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("images", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("sop_instance_uid"),
    )
    op.create_index("performed_step_by_study", "performed_step", ["study_uid"], unique=False)
    op.create_index("delivery_by_study", "delivery", ["study_uid"], unique=False)
    op.add_column("instance", sa.Column("absent", sa.String(length=16), server_default="", nullable=False))
    op.create_index("report_by_study", "report", ["study_uid"], unique=False)
    op.add_column("study", sa.Column("promised_at", sa.Float(), server_default="0", nullable=False))
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("instance", "size", type_=sa.BigInteger())
