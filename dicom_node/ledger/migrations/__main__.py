"""Write the next step: the difference between `schema` and the steps there are. For developers."""

import sys

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from dicom_node.ledger.migrations import config

with create_engine("sqlite://").begin() as connection:
    steps = config(connection)
    command.upgrade(steps, "head")
    number = len(list(ScriptDirectory.from_config(steps).walk_revisions())) + 1
    command.revision(steps, " ".join(sys.argv[1:]), autogenerate=True, rev_id=f"{number:04d}")
