"""A short night, seeded: the node is struck while scanners push, and every promise holds afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from dicom_node.chaos.plan import Means
from tests.acceptance.test_commands import processes_below, run

#: What a clean clone's machine surely has; with a PostgreSQL beside it the ledger is there.
STUDIES, BLOWS, SEED = 10, 14, 200


def test_a_short_night_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = {"--studies": STUDIES, "--blows": BLOWS, "--seed": SEED, "--home": tmp_path / "night", "--json": figures}
    flat = [word for option in options.items() for word in option]
    done = run("dicom-node", "chaos", *flat, folder=tmp_path, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-5000:]
    told = json.loads(figures.read_text())
    assert (told["kept"], told["studies"], told["lost"], told["doubled"]) == (True, STUDIES, [], [])
    assert told["instances"] > STUDIES
    dealt = {blow.partition(": ")[0] for blow in told["blows"]}
    assert dealt >= {Means.KILL, Means.FAULT}
    assert processes_below(tmp_path) == []
