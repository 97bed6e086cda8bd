"""An archive that listens, and a node in one hand that delivers to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.demo.archive import Archive
from tests.integration.test_ledger import clock, ledger  # noqa: F401
from tests.parts import Bench


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive(tmp_path / "archive", "PACS") as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path, archive: Archive) -> Iterator[Bench]:
    made = Bench(tmp_path / "home", archive.port)
    yield made
    made.ledger.engine.dispose()
