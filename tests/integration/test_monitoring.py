"""What monitors are told, over SQLite and PostgreSQL: exit codes, JSON, and figures that Prometheus reads."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from dicom_node.cli import app
from dicom_node.desk.health import Finding, findings
from dicom_node.desk.metrics import exposition
from dicom_node.ledger import Ledger
from dicom_node.settings import Peer, Settings
from dicom_node.study import Delivery, NotLabelled, Pulse
from tests.integration.conftest import SetClock
from tests.integration.test_ledger import a_report, an_instance, laid_aside, queued
from tests.support import free_port

PEERS = (
    Peer(name="ct1", ae_title="CT1", host="any"),
    Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, may=frozenset({"reports"})),
)
Figures = dict[tuple[str, ...], float]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, peers=PEERS, reserve_mib=0)


@pytest.fixture
def clock() -> SetClock:
    made = SetClock()
    made.now = time.time()
    return made


def all_live(ledger: Ledger, silent: float = 0.0) -> None:
    for part in ("receive", "watch", "label", "deliver"):
        ledger.pulses.enter(Pulse(f"{part}@a", "waiting", ledger.clock() - silent))


def reported(ledger: Ledger, *notes: NotLabelled) -> None:
    """Study 1.2, whose report is owed to PACS."""
    queued(ledger)
    lease = ledger.claim("1.2", 60)
    assert lease is not None
    ledger.settle(lease, [a_report()], notes, ["pacs"], "ct1")


def figures(settings: Settings, ledger: Ledger) -> Figures:
    """Name without the node's own, and the values of its labels in their order -> value; as Prometheus reads it."""
    found: Figures = {}
    for family in text_string_to_metric_families(exposition(settings, ledger)):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            labels = (value for _, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix("dicom_node_"), *labels] = sample.value
    return found


def test_figures_of_a_node_that_is_well(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    all_live(ledger, silent=7)
    seen = figures(settings, ledger)
    assert seen["well",] == 1
    assert seen["finding_well", "watch@a"] == seen["finding_well", "disk of home"] == 1
    assert seen["process_silence_seconds", "label@a"] == pytest.approx(7)
    assert seen["oldest_waiting_study_age_seconds",] == 0
    assert seen["home_free_bytes",] > 1 << 20
    assert abs(seen["clock_skew_seconds", "disk"]) < 2
    assert seen["refusals", "calling AE unknown"] == 0
    assert not [name for name, *_ in seen if name in ("studies", "deliveries", "unlabelled_images")]


def test_figures_of_studies_deliveries_and_what_waits(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    reported(ledger, NotLabelled("1.2.2", "1.2.0", "colour image", "what the image says"))
    laid_aside(ledger, "1.3", "Doe^Jane is two patients")
    ledger.add_instance(an_instance(study="1.4", at=clock.now - 1000))
    row = ledger.study("1.4")
    assert row is not None
    ledger.complete(row, "quiet")
    seen = figures(settings, ledger)
    assert seen["studies", "ct1", "reported"] == seen["studies", "ct1", "quarantined"] == 1
    assert seen["deliveries", "pacs", "waiting"] == 1
    assert seen["unlabelled_images", "colour image"] == 1
    assert seen["oldest_waiting_study_age_seconds",] == pytest.approx(1000)
    assert (seen["finding_well", "waiting for labels"], seen["finding_well", "receive"], seen["well",]) == (0, 0, 0)


def test_no_stranger_and_no_patient_makes_a_series(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    reported(ledger, NotLabelled("1.2.2", "1.2.0", "colour image", "Doe^Jane"))
    laid_aside(ledger, "1.3", "Doe^Jane")
    ledger.add_instance(an_instance(study="1.5", peer="RENAMED"))
    before = set(figures(settings, ledger))
    for number in range(5):
        name = f"EVIL{number}"
        ledger.refuse(name, "ANATOMY", f"10.6.6.{number}", f"calling AE '{name}' is unknown")
        ledger.refuse(name, "ANATOMY", f"10.6.6.{number}", f"Patient ID is 'Doe{number}'")
    seen = figures(settings, ledger)
    assert set(seen) == before
    assert (seen["refusals", "calling AE unknown"], seen["refusals", "other"]) == (5, 5)
    assert seen["studies", "other", "receiving"] == 1
    text = exposition(settings, ledger)
    assert [word for word in ("EVIL", "Doe", "10.6.6", "RENAMED", "1.2", "9.1") if f'="{word}' in text] == []


def to_an_archive(settings: Settings, ledger: Ledger) -> Finding:
    return next(item for item in findings(settings, ledger) if item.what == "waiting for an archive")


def test_a_delivery_under_way_is_no_ill_health_and_one_that_failed_is(
    settings: Settings, ledger: Ledger, clock: SetClock
) -> None:
    reported(ledger)
    due = ledger.deliveries.claim("pacs", 60)
    assert due is not None
    assert to_an_archive(settings, ledger) == Finding("waiting for an archive", "0 deliveries")
    ledger.deliveries.settle(due, Delivery.WAITING, "no answer", next_at=clock.now + 5)
    assert to_an_archive(settings, ledger).state == "1 deliveries, up to 1 attempts"
    clock.now += 10
    again = ledger.deliveries.claim("pacs", 60)
    assert again is not None
    assert "`dicom-node deliveries` tells why" in to_an_archive(settings, ledger).remedy
    ledger.deliveries.settle(again, Delivery.SENT, "stored")
    assert to_an_archive(settings, ledger).remedy == ""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("pacs (PACS at 10.0.0.9:104) cannot be reached: connection refused; nothing listens", "connection refused"),
        ("pacs (PACS at 10.0.0.9:104) cannot be reached: timed out; check host", "timed out"),
        ("pacs (PACS at p.invalid:104) cannot be looked up: unknown", "cannot be looked up"),
        ("0xC001: no room for Doe^Jane", "its last answer was no success"),
    ],
)
def test_the_archive_that_is_waited_for_is_named(
    settings: Settings, ledger: Ledger, clock: SetClock, answer: str, told: str
) -> None:
    reported(ledger)
    due = ledger.deliveries.claim("pacs", 60)
    assert due is not None
    ledger.deliveries.settle(due, Delivery.WAITING, answer, next_at=clock.now + 5)
    with ledger.engine.begin() as connection:
        ledger.deliveries.destinations.failed(connection, "pacs", answer, lambda _: 0.0)
    assert to_an_archive(settings, ledger).state == f"1 deliveries, up to 1 attempts: pacs ({told})"


def test_a_commitment_that_is_awaited_is_no_ill_health(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    reported(ledger)
    due = ledger.deliveries.claim("pacs", 60)
    assert due is not None
    ledger.deliveries.settle(due, Delivery.AWAITED, "stored", next_at=clock.now + 3600, transaction_uid="2.1")
    assert to_an_archive(settings, ledger).remedy == ""


def test_a_broker_that_is_away_is_told(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    away = settings.model_copy(update={"broker": "redis://127.0.0.1:1/0"})
    told = {item.what: item for item in findings(away, ledger, ahead=[])}
    assert told["broker"].remedy.startswith("start it")
    assert "broker" not in {item.what for item in findings(away, ledger, ahead=[("broker", 0.0)])}


def ask(folder: Path, database: str, *words: str) -> Result:
    config = folder / "dicom-node.toml"
    config.write_text(f'home = "{folder}"\nledger = "{database}"\nreserve_mib = 0\ndestinations = []\n')
    return CliRunner().invoke(app, ["--config", str(config), *words])


def test_health_exits_with_what_a_monitor_makes_of_it(tmp_path: Path, database: str, ledger: Ledger) -> None:
    all_live(ledger)
    well = ask(tmp_path, database, "health")
    assert (well.exit_code, well.stdout.partition("\n")[0]) == (0, "well")
    ledger.pulses.leave("label@a")
    ill = ask(tmp_path, database, "health")
    assert ill.exit_code == 1
    assert "need a person: label (does not run)" in ill.stdout.partition("\n")[0]
    told = ask(tmp_path, database, "health", "--json")
    assert told.exit_code == 1
    said = json.loads(told.stdout)
    assert said["well"] is False
    (label,) = (item for item in said["findings"] if item["what"] == "label")
    assert label["state"] == "does not run"
    assert label["remedy"].startswith("start `dicom-node worker --queues label")


@pytest.mark.parametrize("words", [("health",), ("health", "--json"), ("metrics",)])
def test_a_ledger_that_is_away_is_no_answer(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = ask(tmp_path, f"postgresql://node@127.0.0.1:{free_port()}/db", *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be opened" in done.stderr
    assert "check the database and `ledger`" in done.stderr


@pytest.mark.parametrize("words", [("health",), ("metrics",)])
def test_a_ledger_that_goes_away_meanwhile_is_no_answer(
    tmp_path: Path, database: str, ledger: Ledger, words: tuple[str, ...]
) -> None:
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("alter table pulse rename to gone")
    done = ask(tmp_path, database, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("the ledger does not answer (")


def test_who_asks_as_another_user_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, known = tmp_path / "home" / "ledger.sqlite", Path.stat

    def stat(path: Path, **options: bool) -> object:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return known(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    done = ask(tmp_path, f"sqlite:///{file}", "health")
    assert done.exit_code == 2
    assert "Permission denied; ask as the user that the node runs as" in " ".join(done.stderr.split())
