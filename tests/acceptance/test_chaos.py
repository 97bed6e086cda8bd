"""A short night, seeded: the node is struck while scanners push, and every promise holds afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from dicom_node.chaos.plan import Means
from dicom_node.chaos.servers import has_database
from tests.acceptance.test_commands import processes_below, run

STUDIES, BLOWS = 8, 11
#: Seeds whose few blows fall on many: processes at their moments, broker, PACS and database, disk and wires.
SEEDS = {"postgresql": 489, "sqlite": 1105}


def test_a_short_night_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    ledger = "postgresql" if has_database() else "sqlite"
    night, figures = tmp_path / "night", tmp_path / "figures.json"
    size = ("--studies", STUDIES, "--blows", BLOWS, "--seed", SEEDS[ledger], "--ledger", ledger)
    command = ("dicom-node", "chaos", *size, "--home", night, "--json", figures)
    done = run(*command, folder=tmp_path, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-5000:]
    told = json.loads(figures.read_text())
    assert (told["kept"], told["studies"], told["lost"], told["doubled"]) == (True, STUDIES, [], [])
    assert told["instances"] > STUDIES
    assert {blow.partition(": ")[0] for blow in told["blows"]} >= {Means.KILL, Means.FAULT, Means.TEAR}
    assert processes_below(tmp_path) == []
    assert not list(tmp_path.rglob("*.part"))


def test_it_leaves_a_home_alone_that_holds_anything(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    done = run("dicom-node", "chaos", "--home", tmp_path, folder=tmp_path, check=False)
    assert done.returncode == 1
    assert "not an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]
