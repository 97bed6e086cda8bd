"""What a supervisor leaves behind when it is killed, the next one clears; what a living one needs stays."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dicom_node.processes.node import embedded_broker
from dicom_node.processes.supervise import clear_after_dead, die_with
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


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_child_whose_supervisor_has_ended_already_never_starts():
    elsewhere = subprocess.run(["true"], preexec_fn=partial(die_with, os.getpid() + 1), check=False)
    assert elsewhere.returncode == -signal.SIGKILL
    assert subprocess.run(["true"], preexec_fn=partial(die_with, os.getpid()), check=False).returncode == 0
