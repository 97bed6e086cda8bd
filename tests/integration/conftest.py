"""An archive that listens, a node in one hand that delivers to it, and a ledger in each kind of database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from dicom_node.demo.archive import Archive
from dicom_node.ledger import Ledger
from dicom_node.study import Delivery
from tests.factories import a_series
from tests.parts import Bench
from tests.remarks import ALL, IMAGES
from tests.support import missing

POSTGRESQL = os.environ.get("TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "archive", "PACS") as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path, archive: Archive) -> Iterator[Bench]:
    made = Bench(tmp_path / "home", archive.port)
    yield made
    made.ledger.engine.dispose()


class SetClock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture(scope="session")
def scratch() -> Iterator[Engine]:
    """A PostgreSQL database of this run's own, dropped afterwards."""
    server, name = create_engine(POSTGRESQL, isolation_level="AUTOCOMMIT"), f"test_{uuid4().hex[:12]}"
    try:
        with server.connect() as connection:
            connection.execute(text(f"create database {name}"))
    except OperationalError as error:
        missing(f"PostgreSQL: {error}")
    yield create_engine(server.url.set(database=name), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with server.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    server.dispose()


@pytest.fixture
def postgresql(scratch: Engine) -> str:
    """URL of an empty PostgreSQL database: the run's own, emptied, as to make one takes the server half a second."""
    others = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    with scratch.connect() as connection:
        # what a test left open would keep its tables locked
        connection.execute(text(f"select pg_terminate_backend(pid) from ({others}) as other"))
        connection.execute(text("drop schema public cascade"))
        connection.execute(text("create schema public"))
    return scratch.url.render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind in turn."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def ledger(database: str, clock: SetClock) -> Iterator[Ledger]:
    made = Ledger(database, clock)
    yield made
    made.engine.dispose()


@pytest.fixture
def study(bench: Bench) -> str:
    """A study whose report is in the archive."""
    uid = bench.take(a_series("torso", IMAGES, name="remarks"))
    bench.label(uid)
    assert bench.deliver(uid) == [Delivery.SENT]
    return uid


@pytest.fixture
def growing(bench: Bench) -> tuple[str, list[Dataset]]:
    """A study whose report is in the archive, and the images that will come late."""
    images = a_series("torso", ALL, name="remarks")
    uid = bench.take(images[:IMAGES])
    bench.label(uid)
    assert bench.deliver(uid) == [Delivery.SENT]
    return uid, images[IMAGES:]
