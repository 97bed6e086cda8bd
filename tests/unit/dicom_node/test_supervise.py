"""What a supervisor leaves behind when it is killed, the next one clears; what a living one needs stays."""

import os
import signal
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from dicom_node.processes import supervise
from dicom_node.processes.node import embedded_broker
from dicom_node.processes.supervise import Program, Supervisor, clear_after_dead, die_with
from tests.support import eventually, listens


def test_only_the_folders_of_dead_supervisors_are_cleared(tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, own, other = (tmp_path / f"dicom-node-up-{name}" for name in (f"{gone.pid}-x", f"{os.getpid()}-y", "z"))
    for folder in (dead, own, other):
        folder.mkdir()
        (folder / "label").touch()
    clear_after_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, other])


def test_the_broker_runs_in_a_home_that_is_given_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, url = embedded_broker(Path("data"))
    broker = subprocess.Popen(program.command)
    try:
        assert eventually(lambda: listens(urlsplit(url).port or 0), 20)
    finally:
        broker.terminate()
        broker.wait()
    assert (tmp_path / "data" / "broker" / "log").exists()


def test_what_fails_at_once_is_tried_ever_later_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1000.0
    monkeypatch.setattr(supervise.time, "monotonic", lambda: moment)
    started: list[float] = []
    supervisor = Supervisor((Program("receive", ("false",)),), {})
    monkeypatch.setattr(
        supervisor, "_start", lambda _: started.append(moment) or supervisor._born.update(receive=moment)
    )
    ended = SimpleNamespace(poll=lambda: 1)
    supervisor._running, supervisor._ears = {"receive": ended}, {"receive": SimpleNamespace(silence=lambda: 0.0)}
    supervisor._born = {"receive": moment}
    with capture_logs() as logs:
        for _ in range(400):
            moment += 0.1
            supervisor.revive()
    pauses = [round(later - earlier) for earlier, later in pairwise([1000.0, *started])]
    assert pauses == [1, 2, 4, 8, 10, 10]
    assert sum(entry["event"].startswith("process fails again and again") for entry in logs) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_child_whose_supervisor_has_ended_already_never_starts():
    elsewhere = subprocess.run(["true"], preexec_fn=partial(die_with, os.getpid() + 1), check=False)
    assert elsewhere.returncode == -signal.SIGKILL
    assert subprocess.run(["true"], preexec_fn=partial(die_with, os.getpid()), check=False).returncode == 0


class Unkillable:
    """A process that waits for a disk that does not answer."""

    pid, returncode, kills = 4711, None, 0

    def poll(self) -> None:
        return None

    def send_signal(self, _: int) -> None:
        pass

    def kill(self) -> None:
        self.kills += 1

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is not None, "it would be waited for without end"
        raise subprocess.TimeoutExpired("dicom-node receive", timeout)


@pytest.fixture
def with_stuck(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """A supervisor of two processes of which one cannot be killed."""
    monkeypatch.setattr(supervise, "_GRACE", 0.0)
    supervisor = Supervisor((Program("receive", ("sleep", "60")), Program("label", ("sleep", "60"))), {})
    supervisor.drain_seconds = 0.2
    supervisor.start()
    supervisor._running["receive"].kill()
    supervisor._running["receive"].wait()
    supervisor._running["receive"] = Unkillable()  # type: ignore[assignment]
    return supervisor


def test_a_process_that_cannot_be_killed_is_named_and_left_behind(with_stuck: Supervisor) -> None:
    other = with_stuck._running["label"]
    with capture_logs() as logs:
        assert with_stuck.stop() == ["receive"]
    assert other.poll() is not None
    (told,) = (entry for entry in logs if entry["event"].startswith("process cannot be killed"))
    assert (told["process"], told["pid"]) == ("receive", 4711)
    assert "disk" in told["remedy"]


def test_a_silent_process_that_cannot_be_killed_is_told_once_and_holds_up_no_other(with_stuck: Supervisor) -> None:
    with_stuck._ears["receive"].silence = lambda: 1000.0  # type: ignore[method-assign]
    with_stuck._running["label"].kill()
    with_stuck._running["label"].wait()
    with_stuck._born["label"] -= 100
    with capture_logs() as logs:
        for _ in range(3):
            with_stuck.revive()
    assert sum(entry["event"].startswith("process cannot be killed") for entry in logs) == 1
    assert with_stuck._running["label"].poll() is None, "it was started again"
    with_stuck.stop()
