"""What stands still, grows or disagrees is seen, over SQLite and PostgreSQL and a real broker."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.cli import app
from dicom_node.desk.health import Finding, findings, missing, skews
from dicom_node.desk.status import health
from dicom_node.ledger import Ledger
from dicom_node.processes.node import announced, embedded_broker
from dicom_node.processes.notify import Signs
from dicom_node.settings import Settings
from dicom_node.study import Pulse, State
from dicom_node.tasks import Bell, connect
from tests.integration.conftest import SetClock
from tests.integration.test_ledger import an_instance
from tests.parts import told
from tests.support import eventually, free_port, running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, lease_seconds=30)


def found(settings: Settings, ledger: Ledger) -> dict[str, Finding]:
    return {item.what: item for item in findings(settings, ledger)}


def a_queued_study(ledger: Ledger) -> str:
    ledger.add_instance(an_instance())
    (row,) = ledger.receiving()
    assert ledger.complete(row, "quiet")
    return row.study_uid


def test_processes_that_live_are_well_and_the_others_are_named(
    settings: Settings,
    ledger: Ledger,
    clock: SetClock,
) -> None:
    ledger.pulses.enter(Pulse("label@a", "busy for 3 s", clock.now - 3))
    ledger.pulses.enter(Pulse("watch@a", "watching", clock.now - 700))
    ledger.pulses.enter(Pulse("watch@a", "watching", clock.now - 600))
    ledger.pulses.enter(Pulse("label@gone", "waiting", clock.now - 100_000))
    seen = found(settings, ledger)
    assert seen["label@a"] == Finding("label@a", "busy for 3 s")
    assert seen["watch@a"].state == "no sign for 10 min"
    assert seen["receive"].remedy.startswith("start `dicom-node receive`")
    assert "label@gone" not in seen
    assert "label" not in seen
    assert seen["deliver"].remedy.startswith("start `dicom-node worker --queues deliver --hostname deliver@%h")
    shown = told([health(seen.values())])
    assert "busy for 3 s" in shown
    assert "dicom-node receive" in shown


def test_where_systemd_runs_the_node_its_command_is_named(
    settings: Settings, ledger: Ledger, clock: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = tmp_path / "dicom-node.target"
    monkeypatch.setattr("dicom_node.desk.health._UNITS", (unit,))
    assert "`dicom-node up`" in found(settings, ledger)["watch"].remedy
    unit.touch()
    assert found(settings, ledger)["watch"].remedy.startswith("systemctl start dicom-node.target")
    uid = a_queued_study(ledger)
    clock.now += 1000
    behind = found(settings, ledger)["waiting for labels"].remedy
    ledger.claim(uid, 30)
    clock.now += 61
    stuck = found(settings, ledger)["leases"].remedy
    assert "systemctl" in behind
    assert "systemctl" in stuck
    assert "dicom-node watch" not in stuck
    assert "dicom-node worker" not in behind


def test_a_worker_without_a_model_is_not_well(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    ledger.pulses.enter(Pulse("label@a", "cannot load the model: no such folder", clock.now))
    assert "mend `bundle` or `device` in the settings" in found(settings, ledger)["label@a"].remedy


def test_a_disk_whose_reserve_is_reached_is_told(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    disk = found(settings.model_copy(update={"reserve_mib": 0}), ledger)["disk of home"]
    assert "MiB free" in disk.state
    assert disk.remedy == ""
    full = found(settings.model_copy(update={"reserve_mib": 1 << 40}), ledger)["disk of home"]
    assert full.state.startswith("every push is refused (0xA700): ")
    assert "lower retention_days or reserve_mib" in full.remedy
    assert "stay until `dicom-node retry` or `dismiss`" in full.remedy


def test_reports_that_go_to_nobody_are_told_with_the_setting_that_mends_it(
    settings: Settings, ledger: Ledger, clock: SetClock
) -> None:
    nobody = found(settings, ledger)["reports go to"]
    assert nobody.state == "nobody, and images stay for ever"
    assert 'may = ["reports"]' in nobody.remedy
    assert "destinations = []" in nobody.remedy
    meant = found(settings.model_copy(update={"destinations": ()}), ledger)["reports go to"]
    assert meant == Finding("reports go to", "nobody (destinations = [])")


def test_processes_that_have_just_been_started_are_said_to_start(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, receivers=2)
    with announced(settings):
        kept = Ledger(settings.ledger_url)
        seen = found(settings, kept)
        for part in ("receive", "receive-2", "watch", "label", "deliver"):
            assert seen[f"{part}@{socket.gethostname()}"].state == "starting"
            assert part not in seen
    assert kept.pulses.all() == []


def test_a_receiver_of_a_time_with_more_of_them_is_not_missed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, receivers=1)
    kept, here = Ledger(settings.ledger_url), socket.gethostname()
    for process in (f"receive-2@{here}", "receive-2@elsewhere", f"label-2@{here}"):
        kept.pulses.enter(Pulse(process, "listening", kept.clock()))
    with announced(settings):
        seen = {sign.process for sign in kept.pulses.all()}
    assert f"receive-2@{here}" not in seen
    assert {"receive-2@elsewhere", f"label-2@{here}"} <= seen


def test_a_ledger_that_is_away_keeps_no_node_from_starting(tmp_path: Path) -> None:
    with announced(Settings(home=tmp_path, ledger=f"postgresql://node@127.0.0.1:{free_port()}/db")):
        pass


def test_a_worker_of_its_own_name_is_taken_for_both() -> None:
    assert missing(["receive@a", "watch@a", "celery@gpu"]) == []
    assert missing(["receive@a", "label@a"]) == ["watch", "deliver"]
    assert missing(["receive-2@a", "watch@a", "label@a"]) == ["deliver"]


def test_a_process_that_ends_as_told_is_not_missed(ledger: Ledger) -> None:
    signs = Signs(ledger, "watch@a", 0.01)
    signs.give("watching")
    eventually(lambda: [sign.process for sign in ledger.pulses.all()] == ["watch@a"], 5)
    time.sleep(0.02)
    signs.give("watching")
    signs.leave()
    assert ledger.pulses.all() == []


def test_who_only_asks_makes_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for question in (
        ["status"],
        ["rejections"],
        ["deliveries"],
        ["discrepancies"],
        ["corrections"],
        ["retry", "1.2"],
        ["dismiss", "1.2", "--because", "x"],
    ):
        answer = CliRunner().invoke(app, question)
        assert answer.exit_code == 1
        assert "no node has run here yet" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_needs_no_retry_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    settings.home.mkdir()
    uid = a_queued_study(Ledger(settings.ledger_url))
    assert f"{uid}: is queued, nothing of it failed" in CliRunner().invoke(app, ["retry", uid]).stderr
    assert "1.2.3: never received here" in CliRunner().invoke(app, ["retry", "1.2.3"]).stderr
    assert "settings from the defaults" in CliRunner().invoke(app, ["status"]).stdout


def test_stuck_leases_and_backlogs_are_told_with_what_to_do(
    settings: Settings,
    ledger: Ledger,
    clock: SetClock,
) -> None:
    uid = a_queued_study(ledger)
    assert found(settings, ledger)["waiting for labels"].remedy == ""
    clock.now += 1000
    waiting = found(settings, ledger)["waiting for labels"]
    assert "1 studies, the oldest for 17 min; in the last hour 1 came, 0 were reported" in waiting.state
    assert "start another worker" in waiting.remedy
    ledger.claim(uid, 30)
    assert found(settings, ledger)["leases"] == Finding("leases", "1 held, 0 stuck")
    clock.now += 61
    leases = found(settings, ledger)["leases"]
    assert leases.state == "1 held, 1 stuck"
    assert uid in leases.remedy


def test_a_clock_that_is_off_is_told(settings: Settings, ledger: Ledger, clock: SetClock) -> None:
    clock.now = time.time()
    assert all(item.remedy == "" for what, item in found(settings, ledger).items() if what.startswith("clock"))
    clock.now -= 100
    ledger.add_instance(an_instance(at=time.time()))
    seen = found(settings, ledger)
    assert "s ahead of ours" in seen["clock of the disk"].state
    assert "ahead" in seen["clock of the latest image"].state
    if ledger.engine.dialect.name == "postgresql":
        assert "ahead" in seen["clock of the database"].state


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    program, url = embedded_broker(tmp_path)
    with running(list(program.command), tmp_path / "broker.log"):
        eventually(lambda: Bell(connect(Settings(broker=url))).time(), 20)
        yield url


def test_the_brokers_clock_is_asked_too(settings: Settings, ledger: Ledger, clock: SetClock, broker: str) -> None:
    clock.now = time.time() + 50
    asked = dict(skews(settings.model_copy(update={"broker": broker}), ledger))
    assert asked["broker"] == pytest.approx(-50, abs=2)
    away = dict(skews(settings.model_copy(update={"broker": "redis://127.0.0.1:1/0"}), ledger))
    assert "broker" not in away


def test_a_study_handed_back_is_queued_at_once_and_its_attempt_not_counted(ledger: Ledger, clock: SetClock) -> None:
    uid = a_queued_study(ledger)
    ledger.rung_study(uid)
    lease = ledger.claim(uid, 600)
    assert lease is not None
    ledger.hand_back(lease)
    row = ledger.study(uid)
    assert row is not None
    assert (row.state, row.attempts) == (State.QUEUED, 0)
    assert ledger.due_studies(30) == [uid]
    again = ledger.claim(uid, 600)
    assert again is not None
    assert again.fence > lease.fence


def test_a_growing_study_is_rung_for_once_until_somebody_has_looked(ledger: Ledger, clock: SetClock) -> None:
    ledger.add_instance(an_instance())
    assert [row.prepared_at for row in ledger.growing(30)] == [0.0]
    ledger.rung_study("1.2")
    assert ledger.growing(30) == []
    ledger.prepared("1.2", clock.now)
    assert [row.prepared_at for row in ledger.growing(30)] == [clock.now]
    clock.now += 100
    (row,) = ledger.receiving()
    ledger.complete(row, "quiet")
    ledger.prepared("1.2", clock.now)
    assert ledger.growing(30) == []
    assert ledger.due_studies(30) == ["1.2"]
