"""The installed commands, as people run them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.ledger import Ledger
from dicom_node.settings import load_settings
from dicom_node.study import Pulse
from labeler.vocabulary import vocabulary
from tests.factories import a_series, saved
from tests.integration.test_ledger import laid_aside
from tests.support import errors_of_dciodvfy, errors_of_dsrdump, eventually, free_port

BIN = Path(sys.executable).parent


def run(*command: object, folder: Path, check: bool = True, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    program = [str(BIN / "dicom-node")] if command[0] == "dicom-node" else [sys.executable, *map(str, command[1:2])]
    rest = command[1:] if command[0] == "dicom-node" else command[2:]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [*program, *map(str, rest)], cwd=folder, capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def processes_below(folder: Path) -> list[str]:
    """Command lines of running processes that name this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line or str(folder) in environment:
                found.append(line)
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    done = run("dicom-node", "demo", "--out", folder / "out", folder=folder)
    return folder / "out", done.stdout


def test_the_demo_brings_one_report_per_series_and_valid_ones(demo: tuple[Path, str]) -> None:
    out, shown = demo
    kept = sorted((out / "pacs").glob("*.dcm"))
    reports = [path for path in kept if dcmread(path, specific_tags=["Modality"]).Modality == "SR"]
    labels = json.loads((out / "labels.json").read_text())
    assert len(reports) == len(labels) >= 6
    assert len(list((out / "sheets").glob("*.png"))) == len(kept) - len(reports) == len(labels)
    for path in kept:
        assert errors_of_dciodvfy(path) == []
    for path in reports:
        assert errors_of_dsrdump(path) == []
    series = {
        str(dcmread(p).CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID)
        for p in reports
    }
    assert series == set(labels)
    assert "modality is neither CT nor MR" in shown


def test_the_demo_sees_through_the_header_that_is_wrong_on_purpose(demo: tuple[Path, str]) -> None:
    labels = json.loads((demo[0] / "labels.json").read_text())
    torso = next(entry for entry in labels.values() if entry["title"].startswith("CT torso"))
    assert torso["header"] == {"claimed": "HEAD", "implied": "CHESTABDOMEN", "agreement": "DIFFER"}
    brain = next(entry for entry in labels.values() if entry["title"].startswith("MR brain"))
    assert brain["header"]["agreement"] == "agree"


def test_what_the_demo_leaves_is_for_its_user_only(demo: tuple[Path, str]) -> None:
    assert open_to_others(demo[0]) == []


def test_no_patient_stands_in_the_log(demo: tuple[Path, str]) -> None:
    log = (demo[0] / "node.log").read_text()
    assert "labelled" in log
    for name in ("Demo^", "DEMO-", "CQ500", "CompressedSamples"):
        assert name not in log


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [str(BIN / "dicom-node"), "demo", "--out", str(tmp_path / "out")]
    # a shell starts its background jobs with SIGINT ignored, and children inherit that
    process = subprocess.Popen(
        command, env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    eventually(lambda: len(processes_below(tmp_path)) >= 5, 60)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert eventually(lambda: processes_below(tmp_path) == [], 10)
    assert [p for p in tmp_path.iterdir() if p.name.startswith("dicom-node-demo")] == []


def test_kill_9_of_the_supervisor_takes_its_processes_along(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    process = subprocess.Popen([str(BIN / "dicom-node"), "--config", str(config), "up"], cwd=tmp_path)
    eventually(lambda: len(processes_below(tmp_path)) >= 5, 60)
    process.kill()
    process.wait()
    assert eventually(lambda: processes_below(tmp_path) == [], 10)


def a_config(folder: Path, port: int | None = None, pacs: int = 1) -> Path:
    path = folder / "dicom-node.toml"
    path.write_text(
        f"""bind = "127.0.0.1"
port = {port or free_port()}
home = "{folder / "data"}"
quiet_seconds = 1
sweep_seconds = 0.2

[[peers]]
name = "scanner"
ae_title = "SCANNER"
host = "127.0.0.1"
may = ["push"]

[[peers]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs}
may = ["reports"]

[[peers]]
name = "self"
ae_title = "ANATOMY"
host = "127.0.0.1"
port = {port or 1}
may = ["push", "reports"]
"""
    )
    return path


def open_to_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]


def test_up_echo_send_status(tmp_path: Path) -> None:
    """The node pushes a study into itself; nobody takes the report, and status says so."""
    port = free_port()
    config = a_config(tmp_path, port)
    process = subprocess.Popen([str(BIN / "dicom-node"), "--config", str(config), "up"], cwd=tmp_path)
    try:
        eventually(lambda: run("dicom-node", "--config", config, "echo", "self", folder=tmp_path), 60)
        folder = saved(a_series("torso", 4, name="sent"), tmp_path / "images")
        done = run("dicom-node", "--config", config, "send", "self", folder, folder=tmp_path)
        assert "4 objects stored by self" in done.stdout
        (folder / "notes.txt").write_text("no image")
        done = run("dicom-node", "--config", config, "send", "self", folder, folder=tmp_path, check=False)
        assert done.returncode == 1
        assert "4 objects stored by self" in done.stdout
        assert f"{folder / 'notes.txt'}: not a DICOM file" in done.stderr
        uid = str(dcmread(folder / "0001.dcm").StudyInstanceUID)

        def told() -> bool:
            story = run("dicom-node", "--config", config, "status", uid, folder=tmp_path).stdout
            assert "cannot be reached" in story
            return "abdomen" in story

        assert eventually(told, 60)
        overview = run("dicom-node", "--config", config, "status", folder=tmp_path).stdout
        assert "waiting" in overview
        assert open_to_others(tmp_path / "data") == []
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    gone = run("dicom-node", "--config", config, "status", folder=tmp_path).stdout
    assert gone.count("does not run") == 4
    assert "listening" not in gone


def test_a_study_that_waits_for_a_person_is_dismissed(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    ledger = Ledger(load_settings(config).ledger_url)
    laid_aside(ledger, "1.2.3", "its images belong to different patients")
    ledger.engine.dispose()
    ask = ("dicom-node", "--config", config)
    assert "1.2.3" in run(*ask, "status", folder=tmp_path).stdout.partition("Not labelled")[2]
    run(*ask, "dismiss", "1.2.3", "--because", "a phantom", "--by", "anna", folder=tmp_path)
    assert "Not labelled" not in run(*ask, "status", folder=tmp_path).stdout
    assert "a phantom; it was quarantined" in run(*ask, "status", "1.2.3", folder=tmp_path).stdout
    again = run(*ask, "dismiss", "1.2.3", "--because", "a phantom", folder=tmp_path, check=False)
    assert (again.returncode, "is dismissed already" in again.stderr) == (1, True)
    assert run(*ask, "retry", "1.2.3", folder=tmp_path).stdout == "queued again\n"


def test_health_and_metrics_answer_monitors_by_their_exit_codes(tmp_path: Path) -> None:
    config = a_config(tmp_path)

    def asked(*words: str) -> subprocess.CompletedProcess[str]:
        return run("dicom-node", "--config", config, *words, folder=tmp_path, check=False)

    for words in (["health"], ["health", "--json"], ["metrics"]):
        done = asked(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "no node has run here yet" in done.stderr
    ledger = Ledger(load_settings(config).ledger_url)
    for part in ("receive", "watch", "label", "deliver"):
        ledger.pulses.enter(Pulse(f"{part}@here", "waiting", time.time()))
    well = asked("health")
    assert (well.returncode, well.stdout.partition("\n")[0]) == (0, "well")
    assert json.loads(asked("health", "--json").stdout)["well"] is True
    ledger.pulses.leave("watch@here")
    ill = asked("health")
    assert ill.returncode == 1
    assert ill.stdout.startswith("1 of 11 need a person: watch (does not run)\n")
    assert "start `dicom-node watch`" in ill.stdout
    told = asked("metrics")
    assert (told.returncode, told.stderr) == (0, "")
    assert "dicom_node_well 0.0\n" in told.stdout


def test_a_port_that_is_taken_is_told_and_not_fought_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("dicom-node", "-c", a_config(tmp_path, port), "up", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: Address already in use; is another `dicom-node up` running?" in done.stderr
    assert processes_below(tmp_path) == []


def test_messages_show_their_brackets(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    done = run("dicom-node", "-c", config, "send", "nobody", tmp_path, folder=tmp_path, check=False)
    assert "Add a [[peers]] table" in done.stderr
    done = run("dicom-node", "-c", config, "send", "pacs", tmp_path / "nothing", folder=tmp_path, check=False)
    assert "no such file or folder" in done.stderr


def test_config_check_echoes_the_peers(tmp_path: Path) -> None:
    done = run("dicom-node", "--config", a_config(tmp_path), "config", "check", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert "cannot be reached" in done.stdout
    quiet = run("dicom-node", "--config", a_config(tmp_path), "config", "check", "--no-echo", folder=tmp_path)
    assert "PACS at 127.0.0.1:1, may reports" in quiet.stdout


def test_config_check_asks_the_broker(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    config.write_text(f'broker = "redis://127.0.0.1:{free_port()}/0"\n{config.read_text()}')
    done = run("dicom-node", "--config", config, "config", "check", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert "does not answer: start it" in done.stdout


def test_a_wrong_setting_stops_every_command_with_its_line(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    config.write_text(config.read_text().replace("port = ", "prot = ", 1))
    for command in (["up"], ["receive"], ["watch"], ["worker"], ["status"], ["config", "check"]):
        done = run("dicom-node", "--config", config, *command, folder=tmp_path, check=False)
        assert done.returncode == 1
        assert "dicom-node.toml:2: prot: no such setting" in done.stderr


def test_a_worker_without_a_broker_says_what_to_set(tmp_path: Path) -> None:
    done = run("dicom-node", "--config", a_config(tmp_path), "worker", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert 'set broker = "redis://HOST:6379/0"' in done.stderr


def test_the_labeler_says_before_its_work_what_cannot_be_written(tmp_path: Path) -> None:
    for nowhere in (tmp_path / "nobody" / "x.json", tmp_path):
        label = ("label", tmp_path / "no images", "--json", nowhere)
        done = run("python", "-m", "labeler", *label, folder=tmp_path, check=False)
        assert done.returncode == 1
        assert "cannot be written; name a file" in done.stderr


def test_the_labeler_labels_a_volume_and_writes_json(tmp_path: Path) -> None:
    images = a_series("torso", 8, name="nifti")
    volume = np.stack([image.pixel_array.T.astype(np.int16) - 1024 for image in images], axis=-1)
    volume[:, :, 3] = -1024
    path = tmp_path / "torso.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.diag([-4.0, -4.0, 54.0, 1.0])), path)
    done = run("python", "-m", "labeler", "label", path, "--modality", "CT", "--json", "out.json", folder=tmp_path)
    assert "not for diagnosis" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["modality"], found["plane"]) == ("CT", "axial")
    assert [row["index"] for row in found["slices"]] == list(range(8))
    assert all(set(row["labels"]) == set(vocabulary().names) for row in found["slices"])
    assert all(row["sop_instance_uid"] is None for row in found["slices"])
    assert found["slices"][3]["present"] == []
    assert set(found["stations"]) >= {"chest", "abdomen"}
    assert set(found["organs"]) >= {"lung", "liver"}
    assert len(found["bundle"]["weights_sha256"]) == 64


def test_the_labeler_labels_a_dicom_folder(tmp_path: Path) -> None:
    images = a_series("head", 5, name="folder", body_part="HEAD")
    saved(images, tmp_path / "series")
    run("python", "-m", "labeler", "label", tmp_path / "series", "--json", "out.json", folder=tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    assert {row["sop_instance_uid"] for row in found["slices"]} == {str(image.SOPInstanceUID) for image in images}
    assert "head" in found["stations"]


def test_the_labeler_explains_what_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"not DICOM")
    done = run("python", "-m", "labeler", "label", tmp_path / "x.dcm", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert "1 not labelled: not a readable DICOM file (x.dcm: InvalidDicomError)" in done.stdout
    assert "the table" not in done.stdout + done.stderr
    done = run("python", "-m", "labeler", "label", tmp_path / "y", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert "no such file" in done.stderr
