"""The ledger's schema, step by step: from nothing, from before there were steps, at once, and not from the future."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from dicom_node.errors import ConfigurationError, Retry
from dicom_node.ledger import Ledger
from dicom_node.ledger.migrations import bring_up
from dicom_node.ledger.schema import metadata, open_engine
from dicom_node.study import State
from tests.support import at_once, free_port

#: `create_all` of the last version without steps, and what a node had written into it.
BEFORE = (Path(__file__).parent / "data" / "ledger_before_steps.sql").read_text()
_ROWS = (
    "insert into study values ('1.2', 'sent', '', 'ct1', 1, 10.5, 10.5, 'no image for 60 s', 1, 0, 11, 0, 1)",
    "insert into instance values ('1.2.1', 'd', '1.2', '1.2.0', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', "
    "'CT', 'p', '/spool/1.2.1.dcm', 2147483647, 10.5, 'ct1', 'CT1', false)",
)


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    made = open_engine(database)
    yield made
    made.dispose()


def filled(engine: Engine, script: str = BEFORE) -> None:
    with engine.begin() as connection:
        for statement in [*filter(str.strip, script.split(";")), *_ROWS]:
            connection.execute(text(statement))


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_the_steps_lead_to_the_schema(engine: Engine) -> None:
    bring_up(engine)
    assert differences(engine) == [], 'run: python -m dicom_node.ledger.migrations "what changes"'


def test_a_ledger_from_before_there_were_steps_is_brought_up_with_its_rows(engine: Engine, database: str) -> None:
    filled(engine)
    assert differences(engine) != []
    ledger = Ledger(database)
    assert differences(engine) == []
    row = ledger.study("1.2")
    assert row is not None
    assert (row.state, row.last_at) == (State.SENT, 10.5)
    assert [(image.size, image.absent) for image in ledger.instances("1.2")] == [(2147483647, "")]
    assert [image.accession_key for image in ledger.instances("1.2")] == [""]
    ledger.engine.dispose()


def test_an_older_one_is_refused_with_the_way_out(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("create table study (study_uid varchar(64) primary key)"))
    with pytest.raises(ConfigurationError, match=r"remark\.kind is missing.*move it away"):
        bring_up(engine)


def test_a_newer_schema_is_refused_and_left_alone(engine: Engine) -> None:
    bring_up(engine)
    with engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="schema 9999, which a newer version"):
        bring_up(engine)
    with engine.connect() as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalar_one() == "9999"


def test_a_step_that_fails_changes_nothing(engine: Engine) -> None:
    filled(engine)
    with engine.begin() as connection:
        connection.execute(text("create table performed_step (taken integer)"))
    with pytest.raises(Retry, match="cannot be opened"):
        bring_up(engine)
    with engine.connect() as connection:
        columns = connection.execute(text("select * from study")).keys()
    assert "promised_at" not in columns


def opened(url: str) -> str:
    try:
        bring_up(open_engine(url))
    except Exception as error:
        return repr(error)
    return "open"


def test_processes_that_start_at_once_all_find_the_newest_schema(engine: Engine, database: str) -> None:
    engine.dispose()
    assert at_once(opened, [(database,)] * 8) == ["open"] * 8
    assert differences(engine) == []


def test_a_database_that_is_away_is_named() -> None:
    with pytest.raises(Retry, match="cannot be opened"):
        Ledger(f"postgresql://node:secret@127.0.0.1:{free_port()}/ledger")
    with pytest.raises(Retry) as raised:
        Ledger(f"postgresql://node:secret@127.0.0.1:{free_port()}/ledger")
    assert "secret" not in str(raised.value)
