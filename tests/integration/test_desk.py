"""What people ask at the desk, as they ask it: commands over a ledger that a node has left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dicom_node.cli import app
from dicom_node.ledger import Ledger
from dicom_node.settings import load_settings
from tests.integration.test_ledger import an_instance

STUDY = f"1.2.826.0.1.3680043.8.498.{'7' * 38}"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "dicom-node.toml"
    path.write_text(f'home = "{tmp_path / "data"}"\n')
    return path


@pytest.fixture
def ledger(config: Path) -> Iterator[Ledger]:
    made = Ledger(load_settings(config).ledger_url)
    yield made
    made.engine.dispose()


def ask(config: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["--config", str(config), *words])


def test_a_uid_comes_whole_through_a_pipe(config: Path, ledger: Ledger) -> None:
    ledger.add_instance(an_instance(study=STUDY))
    (row,) = ledger.receiving()
    ledger.complete(row, "quiet")
    lease = ledger.claim(STUDY, 60)
    assert lease is not None
    ledger.quarantine(lease, "its images belong to different patients, and somebody has to look at them")
    environment = {**os.environ, "COLUMNS": ""}
    command = [sys.executable, "-c", "from dicom_node.cli import app; app()", "--config", str(config), "status"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "different patients" in line)
    assert STUDY in line
