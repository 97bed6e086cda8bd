"""The rehearsal's own parts: a plan follows from its seed, blows hit, and a broken promise is seen."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from dicom_node.chaos.plan import MOMENTS, Course, Means, Plan, Scan, blow_kinds, drawn
from dicom_node.chaos.scanner import Received
from dicom_node.chaos.scans import Expected, Image, scanned
from dicom_node.chaos.struck import _MOMENTS, as_struck, program_of
from dicom_node.chaos.verdict import Verdict, judged
from dicom_node.chaos.wire import Wires
from dicom_node.chaos.world import forget_site, scratch
from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool

KINDS = blow_kinds(database=True, small_disk=True)


def a_plan(seed: int, studies: int = 9, blows: int = 30) -> Plan:
    return drawn(seed, studies, blows, KINDS, 4.0)


@given(st.integers(), st.integers(1, 60), st.integers(0, 200))
def test_a_plan_follows_from_its_seed_and_deals_evenly(seed: int, studies: int, blows: int) -> None:
    plan = a_plan(seed, studies, blows)
    assert plan == a_plan(seed, studies, blows)
    assert (len(plan.scans), len(plan.blows)) == (studies, blows)
    dealt = Counter((blow.means, blow.at) for blow in plan.blows)
    assert {blows // len(KINDS), -(-blows // len(KINDS))} >= {dealt[kind] for kind in KINDS}
    assert all(blow.lasts > 4.0 for blow in plan.blows if blow.means == Means.PAUSE)
    assert all(0 <= scan.after <= blows for scan in plan.scans)


def test_every_moment_of_the_plan_is_one_that_a_program_comes_to() -> None:
    wrapped = {moment for places in _MOMENTS.values() for both in places.values() for moment in both if moment}
    assert wrapped == set(MOMENTS)


@pytest.mark.parametrize("program", list(_MOMENTS))
def test_the_functions_that_are_wrapped_exist(program: str, tmp_path: Path) -> None:
    armed_run(tmp_path, program, "pass").check_returncode()


def test_who_comes_to_an_armed_moment_is_killed_there_and_the_next_is_not(tmp_path: Path) -> None:
    (tmp_path / "armed").mkdir()
    (tmp_path / "armed" / "receive: named, not written").touch()
    code = f"import os; os.pwrite(os.open({str(tmp_path / 'part')!r}, os.O_CREAT | os.O_WRONLY), b'x', 0)"
    assert armed_run(tmp_path, "receive", code).returncode == -signal.SIGKILL
    assert armed_run(tmp_path, "receive", code).returncode == 0


def armed_run(folder: Path, program: str, code: str) -> subprocess.CompletedProcess[str]:
    arm = (
        f"from pathlib import Path; from dicom_node.chaos.struck import _arm; _arm(Path({str(folder)!r}), {program!r})"
    )
    return subprocess.run([sys.executable, "-c", f"{arm}; {code}"], check=False, capture_output=True, text=True)


def test_the_clock_of_a_program_is_set_from_outside(tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("-7200")
    shown = armed_run(tmp_path, "up", "import time; print(time.time())").stdout
    assert float(shown) == pytest.approx(time.time() - 7200, abs=60)


def test_command_lines_are_known_by_what_they_start() -> None:
    assert program_of(["python", "-m", "x", "receive"]) == "receive"
    assert program_of(["python", "-m", "x", "worker", "--queues", "deliver", "--hostname", "h"]) == "deliver"
    assert as_struck(("python", "-m", "dicom_node", "watch"))[2] == "dicom_node.chaos.struck"
    assert as_struck(("valkey-server", "--port", "1")) == ("valkey-server", "--port", "1")


def test_a_home_that_holds_anything_is_refused(tmp_path: Path) -> None:
    assert scratch(tmp_path / "new").is_dir()
    (tmp_path / "new" / "ledger.sqlite").touch()
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        scratch(tmp_path / "new")


def test_the_sites_own_settings_are_forgotten_but_for_what_labels() -> None:
    environment = {"DICOM_NODE_HOME": "/var/lib/dicom-node", "DICOM_NODE_DEVICE": "cuda", "HOME": "/root"}
    forget_site(environment)
    assert environment == {"DICOM_NODE_DEVICE": "cuda", "HOME": "/root"}


@pytest.fixture
def echoing() -> Iterator[int]:
    """A port that sends back what it gets, one connection at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(ConnectionResetError):
                    while data := connection.recv(100):
                        connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])


def test_a_wire_passes_holds_back_and_tears(echoing: int) -> None:
    wires = Wires()
    port = wires.lay("pacs", echoing)
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        line.sendall(b"before")
        assert line.recv(100) == b"before"
        wires.silence("pacs")
        line.sendall(b"during")
        line.settimeout(0.3)
        with pytest.raises(TimeoutError):
            line.recv(100)
        wires.mend("pacs")
        line.settimeout(5)
        assert line.recv(100) == b"during"
        wires.tear("pacs")
        with pytest.raises(ConnectionResetError):
            line.recv(100)
    wires.mend("pacs")
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        line.sendall(b"after")
        assert line.recv(100) == b"after"


def test_every_course_is_written_as_it_says(tmp_path: Path) -> None:
    scans = [Scan(n, course, (3, 2) if "two" in course else (3,), 0) for n, course in enumerate(Course)]
    errands, expected = scanned(scans, 1, tmp_path / "scans")
    by_course = {one.course: one for one in expected}
    images = {image for errand in errands for image in errand.images}
    assert {image.study_uid for image in images} == {one.study_uid for one in expected}
    assert [len(uids) for uids in by_course[Course.TWO_SERIES].reports.values()] == [3, 2]
    assert by_course[Course.CAPTURE].reports == by_course[Course.TWO_PATIENTS].reports == {}
    assert len({image.digest for image in of(images, by_course[Course.OTHER_BYTES])}) == 4
    patients = {dcmread(image.path).PatientID for image in of(images, by_course[Course.TWO_PATIENTS])}
    assert len(patients) == 2
    assert all(Spool.digest_of(image.path) == image.digest for image in images)


def of(images: set[Image], expected: Expected) -> list[Image]:
    return [image for image in images if image.study_uid == expected.study_uid]


def test_what_was_acknowledged_and_is_not_there_is_lost(tmp_path: Path) -> None:
    """An empty home after a success to a scanner: every promise about it is seen as broken."""
    (errand,), (expected,) = scanned([Scan(0, Course.PLAIN, (2,), 0)], 1, tmp_path / "scans")
    received = Received()
    received.answered(errand.images[0], 0x0000)
    received.answered(errand.images[1], 0xA700)
    Spool(tmp_path / "home").incoming.joinpath("x.part").touch()
    ledger = Ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.sqlite'}")
    verdict = found(errand.images, received, expected, ledger, tmp_path)
    ledger.engine.dispose()
    told = "\n".join((*verdict.lost, *verdict.astray, *verdict.left_behind))
    assert "acknowledged, but not in the spool" in told
    assert "never told 0x0000" in told
    assert "PACS has no current report" in told
    assert "unknown instead of sent" in told
    assert "temporary file spool/incoming/x.part" in told


def found(images: list[Image], received: Received, expected: Expected, ledger: Ledger, folder: Path) -> Verdict:
    home, pacs = folder / "home", folder / "pacs"
    return judged([expected], images, received.acknowledged, ledger, home, pacs, [])
