"""Deploy files are linted, and their settings are settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.settings import load_settings
from tests.support import needs, tool

DEPLOY = Path(__file__).parents[2] / "deploy"
#: Where Linux distributions keep what cron lines call.
FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.toml")), ids=lambda p: str(p.relative_to(DEPLOY)))
def test_example_settings_are_valid(path: Path) -> None:
    settings = load_settings(path)
    assert settings.receivers_of_reports
    assert settings.broker


def test_the_compose_file_follows_the_specification() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose" / "compose.yaml")


def test_the_dockerfile_is_clean() -> None:
    assert tool("hadolint", DEPLOY / "compose" / "Dockerfile").stdout == ""


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    needs("systemd-analyze")
    units = []
    for path in sorted((DEPLOY / "systemd").iterdir()):
        unit = tmp_path / path.name.replace("@.", "@2.")
        unit.write_text(path.read_text().replace("/opt/dicom-node/bin", str(Path(sys.executable).parent)))
        units.append(unit)
    assert len(units) == 6
    shown = tool("systemd-analyze", "verify", *units)
    assert shown.stdout + shown.stderr == ""


def test_the_figures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """The cron line, as `sh` runs it; another program stands in for the account and the node's command."""
    lines = (DEPLOY / "cron" / "dicom-node").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("* "))
    assert {"DICOM_NODE_CONFIG", "FIGURES"} <= {line.partition("=")[0] for line in lines}
    schedule, command = line.split(" root ")
    assert schedule == "* * * * *"
    node = "runuser -u dicom-node -- timeout 50 /opt/dicom-node/bin/dicom-node metrics"
    assert command.count(node) == 1
    figures = tmp_path / "node.prom"
    for stand_in, wanted in (("echo 1", "1\n"), ("echo 2; false", "1\n"), ("echo 3", "3\n")):
        script = command.replace(node, f"sh -c '{stand_in}'")
        subprocess.run(["sh", "-c", script], env={**os.environ, "FIGURES": str(figures)}, check=False)
        assert figures.read_text() == wanted


def test_cron_finds_the_programs_and_ends_a_run_before_the_next() -> None:
    """By itself it looks in /usr/bin and /bin only, and the line leaves nobody a mail about it."""
    lines = (DEPLOY / "cron" / "dicom-node").read_text().splitlines()
    folders = next((line.removeprefix("PATH=") for line in lines if line.startswith("PATH=")), "/usr/bin:/bin")
    assert set(FOLDERS) <= set(folders.split(":")), "runuser is in a folder of the administrator's"
    (line,) = (line for line in lines if line.startswith("* "))
    seconds = re.search(r" timeout (\d+) ", line)
    assert seconds is not None, "two at once would write into one file"
    assert int(seconds[1]) < 60
