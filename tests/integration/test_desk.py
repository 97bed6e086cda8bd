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
from dicom_node.spool.dataset import accession_key, patient_key
from dicom_node.study import Delivery, State
from tests.integration.test_dismissal import answered, reported
from tests.integration.test_ledger import an_instance, laid_aside

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
    laid_aside(ledger, STUDY, "its images belong to different patients, and somebody has to look at them")
    environment = {**os.environ, "COLUMNS": ""}
    command = [sys.executable, "-c", "from dicom_node.cli import app; app()", "--config", str(config), "status"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "different patients" in line)
    assert STUDY in line


def test_a_study_is_found_by_its_state_and_by_its_patients_number(config: Path, ledger: Ledger) -> None:
    for number in range(12):
        key = patient_key(f"P{number}", "HOSPITAL" if number == 3 else "")
        ledger.add_instance(an_instance(study=f"1.2.{number}", at=1000.0 + number, patient_key=key))
    laid_aside(ledger, "1.9", "because")
    latest = ask(config, "status").stdout.partition("The latest studies")[2].partition("Not labelled")[0]
    assert [f" 1.2.{number} " in latest for number in range(12)] == [False] * 2 + [True] * 10
    assert "1.9" in ask(config, "studies", "--state", "quarantined").stdout
    assert ask(config, "studies", "--state", "sent").stdout == "Studies: none\n"
    assert ask(config, "studies", "--limit", "3").stdout.count("receiving") == 3
    found = ask(config, "studies", "--patient", "P7 ").stdout
    assert "1.2.7" in found
    assert found.count("receiving") == 1
    assert "none" in ask(config, "studies", "--patient", "P3").stdout
    assert "1.2.3" in ask(config, "studies", "--patient", "P3", "--issuer", "HOSPITAL").stdout


def test_a_study_is_found_by_the_number_of_its_order(config: Path, ledger: Ledger) -> None:
    for number, order in enumerate(["A1", "A1", "A2", ""]):  # of a study whose images are of two orders, both find it
        ledger.add_instance(an_instance(number, study=f"1.2.{number // 2}", accession_key=accession_key(order)))
    ledger.add_instance(an_instance(study="1.9"))
    assert "1.2.0" in (found := ask(config, "studies", "--accession", " A1").stdout)
    assert found.count("receiving") == 1
    assert "1.2.1" in ask(config, "studies", "--accession", "A2").stdout
    assert "none" in ask(config, "studies", "--accession", "A").stdout
    assert "none" in ask(config, "studies", "--accession", "A2", "--state", "sent").stdout
    assert ask(config, "studies", "--accession", " ").exit_code == 2


def test_all_studies_of_a_bad_night_are_queued_with_one_word(config: Path, ledger: Ledger) -> None:
    for study in ("1.1", "1.2", "1.3"):
        laid_aside(ledger, study, "out of memory" if study == "1.1" else "its decoder crashed")
    assert ask(config, "retry", "--quarantined", "--reason", "memory").stdout == "1 study queued again\n"
    assert ask(config, "retry", "--quarantined").stdout == "2 studies queued again\n"
    assert {row.state for row in ledger.studies()} == {State.QUEUED}
    assert ask(config, "retry", "--quarantined", "--unlabelled").exit_code == 1


@pytest.mark.parametrize("words", [(), ("1.1", "--quarantined"), ("1.1", "--reason", "x"), ("--reason", "x")])
def test_retry_wants_one_study_or_a_state(config: Path, ledger: Ledger, words: tuple[str, ...]) -> None:
    laid_aside(ledger, "1.1", "x")
    assert ask(config, "retry", *words).exit_code == 2
    assert {row.state for row in ledger.studies()} == {State.QUARANTINED}


def test_a_study_is_dismissed_and_taken_back(config: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_aside(ledger, "1.1", "its images belong to different patients")
    monkeypatch.setenv("SUDO_USER", "anna")
    done = ask(config, "dismiss", "1.1", "--because", "sent [by mistake]")
    assert done.stdout.startswith("dismissed. Images go 30 days after the last one came, sooner")
    assert "`dicom-node retry 1.1` takes it back" in done.stdout
    told = ask(config, "status", "1.1").stdout
    assert "dismissed by anna at " in told
    assert "sent [by mistake]; it was quarantined: its images belong to different patients" in told
    assert "Not labelled" not in ask(config, "status").stdout
    assert "1.1" in ask(config, "studies", "--state", "dismissed").stdout
    assert "1.1: is dismissed already (dismissed by anna" in ask(config, "dismiss", "1.1", "--because", "x").stderr
    assert ask(config, "retry", "1.1").stdout == "queued again\n"
    refused = ask(config, "dismiss", "1.1", "--because", "x")
    assert refused.exit_code == 1
    assert "1.1: is queued, it does not wait for a person; see `dicom-node status 1.1`" in refused.stderr
    assert "1.9: never received here" in ask(config, "dismiss", "1.9", "--because", "x").stderr


def test_all_studies_of_one_reason_are_dismissed_with_one_word(config: Path, ledger: Ledger) -> None:
    for study in ("1.1", "1.2", "1.3"):
        laid_aside(ledger, study, "out of memory" if study == "1.1" else "two patients")
    words = ("--quarantined", "--reason", "patients", "--because", "phantoms", "--by", "Dr. No")
    assert ask(config, "dismiss", *words).stdout.startswith("2 studies dismissed. Images go")
    assert {row.state for row in ledger.studies()} == {State.QUARANTINED, State.DISMISSED}
    none = ask(config, "dismiss", *words)
    assert none.exit_code == 1
    assert "`dicom-node deliveries --failed`" in none.stderr
    assert ask(config, "retry", "--dismissed", "--reason", "Dr. No").stdout == "2 studies queued again\n"


@pytest.mark.parametrize(
    "words", [("--because", "x"), ("1.1",), ("1.1", "--because", " "), ("1.1", "--quarantined", "--because", "x")]
)
def test_dismiss_wants_one_study_or_a_state_and_a_reason(config: Path, ledger: Ledger, words: tuple[str, ...]) -> None:
    laid_aside(ledger, "1.1", "x")
    assert ask(config, "dismiss", *words).exit_code == 2
    assert {row.state for row in ledger.studies()} == {State.QUARANTINED}


def test_what_an_archive_refused_is_dismissed_by_delivery(config: Path, ledger: Ledger) -> None:
    reported(ledger, "pacs")
    answered(ledger, "pacs", Delivery.FAILED)
    refused = ask(config, "dismiss", "1.2", "--because", "x").stderr
    assert "1.2: is labelled, delivery to pacs failed: 0xA900. To leave it at that: `dicom-node deliveries" in refused
    assert ask(config, "deliveries", "dismiss", "--because", "x").exit_code == 2
    assert "tried again by itself" in ask(config, "deliveries", "dismiss", "9.9", "--because", "x").stderr
    done = ask(config, "deliveries", "dismiss", "9.1", "--to", "pacs", "--because", "film only", "--by", "anna")
    assert done.stdout.startswith("1 delivery dismissed; `dicom-node deliveries retry REPORT` takes one back")
    assert "dismissed by anna" in ask(config, "status", "1.2").stdout
    assert ask(config, "deliveries", "--failed").stdout == "Deliveries: none failed\n"
    assert ask(config, "deliveries", "retry", "9.1").stdout == "1 delivery is due now\n"


def test_who_retries_a_purged_study_is_told_to_push_it_again(config: Path, ledger: Ledger) -> None:
    laid_aside(ledger, "1.1", "x")
    ask(config, "dismiss", "1.1", "--because", "x")
    ledger.holdings.purge("1.1", 10_000.0, False, lambda paths: None)
    assert "its images have left the spool; push it again" in ask(config, "retry", "1.1").stderr
    assert "its images have left the spool already" in ask(config, "dismiss", "1.1", "--because", "x").stderr


def test_an_empty_list_of_deliveries_says_that_none_waits(config: Path, ledger: Ledger) -> None:
    assert ask(config, "deliveries").stdout == "Deliveries: none waits, none failed\n"
    assert ask(config, "deliveries", "--failed").stdout == "Deliveries: none failed\n"


def test_help_shows_its_brackets() -> None:
    said = CliRunner().invoke(app, ["corrections", "export", "--help"]).stdout
    assert "`[data] hospital`" in said


def test_who_exports_is_told_that_the_images_name_their_patients(
    config: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.corrections.export", lambda ledger, folder: 1)
    done = ask(config, "corrections", "export", "somewhere")
    assert done.stdout == "1 corrected series in somewhere\n"
    assert "name their patients" in done.stderr
