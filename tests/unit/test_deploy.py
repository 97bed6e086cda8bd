"""Deploy files are linted, and their settings are settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dicom_node.settings import load_settings
from tests.support import needs, tool

DEPLOY = Path(__file__).parents[2] / "deploy"


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
