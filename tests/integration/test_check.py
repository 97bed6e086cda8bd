"""Settings that read well and cannot work: `config check` and `up` say which, why, and what mends it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import EnhancedSRStorage, SecondaryCaptureImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from dicom_node.desk import check as looks
from dicom_node.desk.check import Row, looked_at, must_work, table_of
from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import open_engine
from dicom_node.settings import Peer, Settings
from dicom_node.spool import Spool
from labeler.bundle import MANIFEST
from tests.certificates import Authority
from tests.parts import told
from tests.support import free_port


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it takes seconds; for tests of something else."""
    monkeypatch.setattr(looks, "_model", lambda _: "")


def check(home: Path, ask: bool = False, **settings: Any) -> dict[str, Row]:
    return {row.what: row for row in looked_at(Settings(home=home, **{"reserve_mib": 1, **settings}), ask)}


def test_defaults_are_well_and_leave_nothing_behind(tmp_path: Path) -> None:
    seen = check(tmp_path / "home", ask=True)
    assert all(row.well for row in seen.values())
    assert seen["home"].state == f"will be made in {tmp_path}"
    assert seen["bundle"].state.startswith("loads: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_model")
def test_a_place_where_nobody_can_listen_is_told(tmp_path: Path) -> None:
    here = check(tmp_path, bind="127.0.0.1", port=free_port())["we are"]
    assert (here.state, here.well) == ("free", True)
    elsewhere = check(tmp_path, bind="192.0.2.1")["we are"]  # of no machine (RFC 5737)
    assert (elsewhere.state.startswith("cannot listen at 192.0.2.1:11112 ("), elsewhere.well) == (True, False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = check(tmp_path, bind="127.0.0.1", port=port)["we are"]
        assert taken.state == f"{port} taken: by this node if it runs, else by another program"
        secure = Authority.founded(tmp_path / "hospital").issue("node", port=port)
        both = check(tmp_path, bind="127.0.0.1", port=free_port(), tls=secure)["we are"]
        assert both.state == f"{port} taken: by this node if it runs, else by another program"


def test_a_receiver_on_a_taken_port_says_so_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        values = {"HOME": str(tmp_path), "BIND": "127.0.0.1", "PORT": str(port), "RESERVE_MIB": "1"}
        environment = {**os.environ, **{f"DICOM_NODE_{name}": value for name, value in values.items()}}
        node = [sys.executable, "-m", "dicom_node", "receive"]
        answer = subprocess.run(node, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 1
    *_, told = answer.stderr.splitlines()
    assert told.startswith(f"cannot listen at 127.0.0.1:{port}: Address already in use; is another `dicom-node up`")
    assert told.endswith("or set another `port`")
    assert "Traceback" not in answer.stderr


@pytest.mark.usefixtures("no_model")
def test_a_home_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for home in (file, file / "below"):
        assert f"{file} is a file, and a folder is wanted" in check(home)["home"].state
        with pytest.raises(ConfigurationError, match="give it to the node's user, or set another `home`"):
            Spool(home)
    with pytest.raises(ConfigurationError, match="set another `home` or `ledger`"):
        Ledger(f"sqlite:///{file / 'ledger.sqlite'}")


@pytest.mark.skipif(sys.platform != "linux", reason="nobody, not even root, writes there on Linux")
@pytest.mark.usefixtures("no_model")
def test_a_home_that_cannot_be_written_is_told() -> None:
    home = check(Path("/proc/node"), reserve_mib=0)["home"]
    assert not home.well
    assert "/proc cannot be written" in home.state


@pytest.mark.usefixtures("no_model")
def test_a_reserve_that_the_disk_has_not_is_told(tmp_path: Path) -> None:
    assert "every push would be refused (0xA700)" in check(tmp_path, reserve_mib=1 << 40)["reserve"].state


@pytest.mark.usefixtures("no_model")
def test_a_database_that_is_away_is_told(tmp_path: Path, postgresql: str) -> None:
    away = f"postgresql://node:secret@127.0.0.1:{free_port()}/db"
    ledger = check(tmp_path, ask=True, ledger=away)["ledger"]
    assert not ledger.well
    assert "start the database, or mend `ledger`" in ledger.state
    assert "secret" not in told([table_of(iter([ledger]), None)[0]])
    assert check(tmp_path, ask=True, ledger=postgresql)["ledger"].state == "answers"
    for ask in (True, False):
        rows = [row.what for row in looked_at(Settings(home=tmp_path, ledger=postgresql), ask)]
        assert rows.count("ledger") == 1


@pytest.mark.usefixtures("no_model")
def test_a_variable_that_is_no_setting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_CONFIG", "node.toml")
    monkeypatch.setenv("dicom_node_port", "11112")
    assert "environment" not in check(tmp_path)
    monkeypatch.setenv("DICOM_NODE_RESERVEMIB", "7")
    row = check(tmp_path)["environment"]
    assert row.doubtful
    assert row.state == "DICOM_NODE_RESERVEMIB is no setting, DICOM_NODE_RESERVE_MIB is"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("begin", [0, 100])
def test_a_damaged_ledger_is_told_with_where_its_remedy_stands(tmp_path: Path, begin: int) -> None:
    ledger = Ledger(Settings(home=tmp_path).ledger_url)
    ledger.engine.dispose()
    assert check(tmp_path)["ledger"].state == "exists"
    with (tmp_path / "ledger.sqlite").open("r+b") as file:
        file.seek(begin)
        file.write(b"x" * (3072 - begin))
    row = check(tmp_path)["ledger"]
    assert not row.well
    assert f"{tmp_path / 'ledger.sqlite'} is damaged (" in row.state
    assert "Restore in deploy/README.md" in row.state
    with pytest.raises(ConfigurationError, match="is damaged"):
        must_work(Settings(home=tmp_path))


@pytest.mark.usefixtures("no_model")
def test_a_driver_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    ledger = "postgresql://node@127.0.0.1/db"
    assert 'in the checkout, pip install ".[postgresql]"' in check(tmp_path, ledger=ledger)["ledger"].state
    with pytest.raises(ConfigurationError, match="needs psycopg"):
        open_engine(ledger)


@pytest.mark.usefixtures("no_model")
def test_certificates_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    hospital = Authority.founded(tmp_path / "hospital")
    ours, other = hospital.issue("node"), hospital.issue("other")
    assert check(tmp_path, tls=ours)["tls"].well
    gone = ours.model_copy(update={"key": tmp_path / "gone.key"})
    assert check(tmp_path, tls=gone)["tls"].state == f"[tls] key {tmp_path / 'gone.key'}: No such file or directory"
    swapped = ours.model_copy(update={"key": other.key})
    assert "the key is not this certificate's" in check(tmp_path, tls=swapped)["tls"].state
    with pytest.raises(ConfigurationError, match="the key is not this certificate's"):
        must_work(Settings(home=tmp_path, tls=swapped))


@pytest.mark.usefixtures("no_model")
def test_a_peer_whose_name_nobody_knows_is_doubted_before_it_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.settings._addresses", lambda name: {"127.0.0.1"} if name == "localhost" else set())
    lost = Peer(name="ct1", ae_title="CT1", host="ct1.invalid")
    row = check(tmp_path, ask=True, peers=(lost,))["peer ct1"]
    assert (row.well, row.doubtful) == (True, True)
    assert row.state.startswith("ct1.invalid cannot be looked up, and whoever calls as CT1 is turned away")
    assert check(tmp_path, peers=(lost,))["peer ct1"].state == "not asked"
    for host in ("localhost", "10.1.0.0/16", "any"):
        near = lost.model_copy(update={"host": host})
        assert check(tmp_path, ask=True, peers=(near,))["peer ct1"].state == "no port, not asked"


@contextmanager
def an_archive(*classes: str) -> Iterator[tuple[Peer, ...]]:
    """One that answers echoes and takes these objects, as the peers of a node."""
    entity = AE("PACS")
    for sop_class in (Verification, *classes):
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", port := free_port()), block=False)
    rights = frozenset({"reports"})
    yield (Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, may=rights),)
    server.shutdown()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("classes", "well", "doubtful", "told"),
    [
        ((), False, False, "would refuse our reports: let it accept Comprehensive 3D SR Storage in Implicit VR Little"),
        ((EnhancedSRStorage,), True, True, "would refuse our sheets: let it accept Secondary Capture Image Storage"),
        ((EnhancedSRStorage, SecondaryCaptureImageStorage), True, False, "answers, takes Enhanced SR Storage"),
    ],
)
def test_an_archive_that_would_take_no_report_is_told(
    tmp_path: Path, classes: tuple[str, ...], well: bool, doubtful: bool, told: str
) -> None:
    with an_archive(*classes) as peers:
        row = check(tmp_path, ask=True, peers=peers)["peer pacs"]
        assert (row.well, row.doubtful) == (well, doubtful)
        assert told in row.state
        unasked = check(tmp_path, ask=True, peers=peers, destinations=())["peer pacs"]
        assert unasked.state == "answers"


@pytest.mark.usefixtures("no_model")
def test_a_node_that_nobody_may_push_to_is_told(tmp_path: Path) -> None:
    pacs = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, may=frozenset({"reports"}))
    for peers in ((), (pacs,)):
        row = check(tmp_path, peers=peers)["images come from"]
        assert (row.doubtful, row.state.partition(":")[0]) == (True, "nobody may push")
    scanner = Peer(name="ct1", ae_title="CT1", host="any")
    assert check(tmp_path, peers=(scanner, pacs))["images come from"].state == "ct1"


def test_a_bundle_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    assert "no such folder" in check(tmp_path, bundle=str(tmp_path / "nobody"))["bundle"].state
    assert check(tmp_path, bundle="openai/clip-vit-base-patch32")["bundle"].well
    (tmp_path / MANIFEST).write_text("{}")
    assert "not of format" in check(tmp_path, bundle=str(tmp_path))["bundle"].state


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    bundle = check(tmp_path, device="cuda:77")["bundle"]
    assert not bundle.well
    assert 'device = "cuda:77": PyTorch cannot use it (' in bundle.state
    assert 'set it to "auto" or "cpu"' in bundle.state


def test_what_is_wrong_is_shown_with_its_brackets_and_ends_the_command(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    lost = "".join(f'{name} = "{tmp_path}/gone"\n' for name in ("certificate", "key", "ca"))
    config.write_text(f'home = "{tmp_path}/home"\n[tls]\n{lost}')
    for command in (["config", "check", "--no-echo"], ["up"], ["receive"]):
        node = [sys.executable, "-m", "dicom_node", "--config", str(config), *command]
        answer = subprocess.run(node, env={**os.environ, "COLUMNS": "300"}, capture_output=True, text=True, check=False)
        assert answer.returncode == 1
        assert f"[tls] certificate {tmp_path}/gone: No such file or directory" in answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr


@pytest.mark.usefixtures("no_model")
def test_a_node_whose_reports_go_to_nobody_is_told(tmp_path: Path) -> None:
    nobody = check(tmp_path)["reports go to"]
    assert (nobody.setting, nobody.doubtful) == ("nobody, and images stay for ever", True)
    assert 'may = ["reports"]' in nobody.state
    assert "destinations = []" in nobody.state
    meant = check(tmp_path, destinations=())["reports go to"]
    assert (meant.setting, meant.doubtful) == ("nobody (destinations = [])", False)
