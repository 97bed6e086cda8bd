"""Every answer of an archive, archives that are dead, slow or come back, and associations that are kept or lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from dicom_node.association.call import Caller
from dicom_node.cli import app
from dicom_node.deliver import Deliverer
from dicom_node.desk.status import overview, owed
from dicom_node.ledger import Ledger
from dicom_node.patience import rest
from dicom_node.send import store
from dicom_node.settings import Peer, Settings
from dicom_node.study import Delivery, WrittenReport, moment
from tests.factories import a_series
from tests.parts import Bench, Clock, told
from tests.support import eventually, free_port


class Pacs:
    """An archive that answers as told, and counts what came over how many associations."""

    def __init__(self, answer: Callable[[evt.Event], int | Dataset] = lambda _: 0x0000) -> None:
        self.answer, self.opened, self.stored = answer, 0, [""][:0]
        self.entity = AE("PACS")
        self.entity.add_supported_context(Comprehensive3DSRStorage)
        self.entity.add_supported_context(SecondaryCaptureImageStorage)

    def _on_store(self, event: evt.Event) -> int | Dataset:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return self.answer(event)

    def _on_accepted(self, _: evt.Event) -> None:
        self.opened += 1

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_store), (evt.EVT_ACCEPTED, self._on_accepted)]
        server = self.entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> WrittenReport:
    """One real report, as the labelling half writes it."""
    bench = Bench(tmp_path_factory.mktemp("labelled"), 1)
    uid = bench.take(a_series("leg", 2, name="delivered"))
    bench.label(uid)
    (written,) = bench.ledger.issued.of_study(uid)
    bench.ledger.engine.dispose()
    return written


class Owing:
    """A node that owes one report under many UIDs, as its ledger has it."""

    def __init__(self, home: Path, report: WrittenReport, **ports: int) -> None:
        self.clock = Clock()
        peers = [
            Peer(name=name, ae_title=name.upper(), host="127.0.0.1", port=port, may=frozenset({"reports"}))
            for name, port in ports.items()
        ]
        self.settings = Settings(home=home, peers=tuple(peers))
        self.ledger = Ledger(self.settings.ledger_url, self.clock)
        self.report = report

    def owes(self, count: int, *destinations: str) -> None:
        data_set = dcmread(self.report.path)
        with self.ledger.engine.begin() as connection:
            for number in range(count):
                uid = f"{self.report.sop_instance_uid[:-3]}{number:03d}"
                data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = uid
                path = self.settings.home / f"{uid}.dcm"
                data_set.save_as(path, enforce_file_format=True)
                written = WrittenReport(uid, self.report.sop_class_uid, "1.2", "1.2.0", "c", path, None)
                self.ledger.issued.enter(connection, written, destinations)

    @contextmanager
    def deliverer(self) -> Iterator[Deliverer]:
        made = Deliverer(self.settings, self.ledger, self.clock)
        try:
            yield made
        finally:
            made.caller.close()

    def states(self, destination: str) -> list[str]:
        return sorted(row.state for row in self.ledger.deliveries.listed(to=destination))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def refused(status: int) -> Callable[[evt.Event], Dataset]:
    def answer(_: evt.Event) -> Dataset:
        data_set = Dataset()
        data_set.Status, data_set.ErrorComment, data_set.OffendingElement = status, "no bed for DOE^JOHN", 0x00100020
        return data_set

    return answer


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, Delivery.SENT),
        (0xB000, Delivery.SENT),
        (0xB006, Delivery.SENT),
        (0xB007, Delivery.SENT),
        (0x0111, Delivery.SENT),
        (0xA700, Delivery.WAITING),
        (0xA7FF, Delivery.WAITING),
        (0x0110, Delivery.WAITING),
        (0x0210, Delivery.WAITING),
        (0x0213, Delivery.WAITING),
        (0xA900, Delivery.FAILED),
        (0xC000, Delivery.FAILED),
        (0xC123, Delivery.FAILED),
        (0x0117, Delivery.FAILED),
        (0x0122, Delivery.FAILED),
        (0x0124, Delivery.FAILED),
        (0x0211, Delivery.FAILED),
        (0x0212, Delivery.FAILED),
    ],
)
def test_every_status_has_its_consequence_and_the_words_are_kept(
    home: Path, report: WrittenReport, status: int, outcome: Delivery, capsys: pytest.CaptureFixture[str]
) -> None:
    with Pacs(refused(status)).listening() as port:
        node = Owing(home, report, pacs=port)
        node.owes(1, "pacs")
        with node.deliverer() as deliverer:
            assert deliverer.deliver(None, "pacs") == outcome
        shown = told(owed(node.ledger))
        if outcome != Delivery.SENT:
            assert f"0x{status:04X}" in shown
            assert "no bed for DOE^JOHN (PatientID)" in shown
        assert "DOE" not in capsys.readouterr().out, "a peer's words may name a patient; logs may not"
        node.ledger.engine.dispose()


def test_a_processing_failure_is_forgiven_ten_times(home: Path, report: WrittenReport) -> None:
    with Pacs(lambda _: 0x0110).listening() as port:
        node = Owing(home, report, pacs=port)
        node.owes(1, "pacs")
        outcomes = []
        with node.deliverer() as deliverer:
            for _ in range(10):
                outcomes.append(deliverer.deliver(None, "pacs"))
                node.clock.now += 400
        assert outcomes == [Delivery.WAITING] * 9 + [Delivery.FAILED]
        node.ledger.engine.dispose()


def test_a_night_without_an_archive_leaves_it_ten_failures_on_an_object(home: Path, report: WrittenReport) -> None:
    port = free_port()
    node = Owing(home, report, pacs=port)
    node.owes(1, "pacs")
    with node.deliverer() as deliverer:
        for _ in range(12):
            assert deliverer.deliver(None, "pacs") == Delivery.WAITING
            node.clock.now += 400
        with Pacs(lambda _: 0x0110).listening(port):
            outcomes = []
            for _ in range(10):
                outcomes.append(deliverer.deliver(None, "pacs"))
                node.clock.now += 400
            assert outcomes == [Delivery.WAITING] * 9 + [Delivery.FAILED]
            assert node.ledger.deliveries.retry_all() == 1
            assert deliverer.deliver(None, "pacs") == Delivery.WAITING
    node.ledger.engine.dispose()


def rotten(path: Path) -> None:
    path.write_bytes(b"rotten")


def cut_off(path: Path) -> None:
    """Within a sequence of undefined length, for which pydicom raises OSError."""
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"SQ", 144) + 4] + b"\xff" * 4 + b"\xfe\xff")


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "outcome"),
    [(rotten, Delivery.FAILED), (cut_off, Delivery.FAILED), (unreadable, Delivery.WAITING)],
)
def test_files_that_cannot_be_read_hold_up_no_others_and_say_why(
    home: Path, report: WrittenReport, harm: Callable[[Path], None], outcome: Delivery
) -> None:
    with Pacs().listening() as port:
        node = Owing(home, report, pacs=port)
        node.owes(3, "pacs")
        first, second = sorted(home.glob("*.dcm"))[:2]
        harm(first)
        harm(second)
        with node.deliverer() as deliverer:
            assert [deliverer.deliver(None, "pacs") for _ in range(3)] == [outcome, outcome, Delivery.SENT]
        assert node.states("pacs") == [outcome] * 2
        assert [str(row.detail).count(first.name) for row in node.ledger.deliveries.listed()].count(0) == 1
        assert node.ledger.deliveries.destinations.ailing() == []
        node.ledger.engine.dispose()


def test_a_dead_archive_rests_is_probed_and_blocks_no_other(home: Path, report: WrittenReport) -> None:
    alive, port = Pacs(), free_port()
    with alive.listening() as living:
        node = Owing(home, report, dead=port, alive=living)
        node.owes(8, "dead", "alive")
        with node.deliverer() as deliverer:
            outcomes = [deliverer.deliver(None, "dead") for _ in range(5)]
            assert outcomes == [Delivery.WAITING] * 3 + [None] * 2, "after three failures in a row it rests"
            due = node.ledger.deliveries.due(30.0)
            assert {destination for _, destination in due} == {"alive"}
            deliverer.work_off("alive", due[0][0])
            assert node.states("alive") == []
            shown = told(overview(node.ledger))
            assert "rests until" in shown
            assert "cannot be reached" in shown
            (health,) = node.ledger.deliveries.destinations.ailing()
            (_, waiting) = owed(node.ledger, to="dead")
            assert set(waiting.columns[5].cells) == {moment(health.rests_until)}, "none is tried before"
            node.clock.now += 10
            assert [deliverer.deliver(None, "dead") for _ in range(3)] == [Delivery.WAITING, None, None], "one probe"
            node.clock.now += 300
            with (revived := Pacs()).listening(port):
                first = node.ledger.deliveries.due(30.0)[0]
                deliverer.work_off("dead", first[0])
                assert node.states("dead") == [], "what waited because of the failures is due at once"
                assert revived.opened == 1
                assert sorted(revived.stored) == sorted(alive.stored)
        assert "Destinations in trouble" not in told(overview(node.ledger))
        node.ledger.engine.dispose()


def test_while_a_destination_is_probed_no_other_process_goes_there(home: Path, report: WrittenReport) -> None:
    node = Owing(home, report, pacs=1)
    node.owes(4, "pacs")
    ledger = node.ledger
    for _ in range(3):
        due = ledger.deliveries.claim("pacs", 60)
        assert due is not None
        ledger.deliveries.settle(due, Delivery.WAITING, "dead", 0.0, rest=lambda n: rest(n, 3, 300, lambda: 1.0))
    assert ledger.deliveries.claim("pacs", 60, parallel=4) is None
    node.clock.now += 4.1
    probe = ledger.deliveries.claim("pacs", 60, parallel=4)
    assert probe is not None
    assert Ledger(node.settings.ledger_url, node.clock).deliveries.claim("pacs", 60, parallel=4) is None
    ledger.deliveries.settle(probe, Delivery.SENT, "0x0000")
    assert [ledger.deliveries.claim("pacs", 60, parallel=4) is not None for _ in range(4)] == [True] * 3 + [False]
    ledger.engine.dispose()


def test_never_more_than_the_peer_allows_at_a_time(home: Path, report: WrittenReport) -> None:
    now, most, lock = [0], [0], threading.Lock()

    def slow(_: evt.Event) -> int:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return 0x0000

    with Pacs(slow).listening() as port:
        node = Owing(home, report, pacs=port)
        node.clock = time.time  # type: ignore[assignment]
        node.ledger = Ledger(node.settings.ledger_url)
        node.owes(8, "pacs")
        with node.deliverer() as deliverer:
            bells = [
                threading.Thread(target=deliverer.work_off, args=("pacs", uid))
                for uid, _ in node.ledger.deliveries.due(30.0)
            ]
            for bell in bells:
                bell.start()
            for bell in bells:
                bell.join()
        assert node.states("pacs") == [], "bells that found it busy lost nothing"
        assert most[0] == 2
        node.ledger.engine.dispose()


def test_a_queue_leaves_over_one_association(home: Path, report: WrittenReport) -> None:
    with (pacs := Pacs()).listening() as port:
        node = Owing(home, report, pacs=port)
        node.owes(6, "pacs")
        with node.deliverer() as deliverer:
            deliverer.work_off("pacs", node.ledger.deliveries.due(30.0)[0][0])
        assert (pacs.opened, len(set(pacs.stored)), len(pacs.stored)) == (1, 6, 6)
        node.ledger.engine.dispose()


@pytest.mark.parametrize("how", ["release", "abort", "close"])
def test_a_kept_association_that_the_peer_ends_costs_nothing(home: Path, report: WrittenReport, how: str) -> None:
    def ending(event: evt.Event) -> int:
        end = {"release": event.assoc.release, "abort": event.assoc.abort, "close": event.assoc.dul.socket.close}[how]
        threading.Timer(0.2, end).start()
        return 0x0000

    with (pacs := Pacs(ending)).listening() as port:
        node = Owing(home, report, pacs=port)
        node.owes(3, "pacs")
        with node.deliverer() as deliverer:
            for _ in range(3):
                assert deliverer.deliver(None, "pacs") == Delivery.SENT
                time.sleep(0.5)
        assert (pacs.opened, len(set(pacs.stored))) == (3, 3)
        node.ledger.engine.dispose()


def test_a_kept_association_that_died_in_silence_is_found_out(home: Path, report: WrittenReport) -> None:
    """The peer takes the object on the kept association and hangs up without an answer: it is sent again at once."""
    seen: list[str] = []

    def once_silent(event: evt.Event) -> int:
        seen.append(str(event.request.AffectedSOPInstanceUID))
        if len(seen) == 2:
            event.assoc.abort()
        return 0x0000

    with (pacs := Pacs(once_silent)).listening() as port:
        node = Owing(home, report, pacs=port)
        node.owes(2, "pacs")
        with node.deliverer() as deliverer:
            assert [deliverer.deliver(None, "pacs") for _ in range(2)] == [Delivery.SENT] * 2
        assert pacs.opened == 2
        assert seen[1] == seen[2], "the same object under the same UID"
        node.ledger.engine.dispose()


def test_an_association_is_released_when_its_time_is_over(report: WrittenReport) -> None:
    released = threading.Event()
    pacs = Pacs()
    with pacs.listening() as port, Caller(Settings()) as caller:
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, idle_seconds=0.3)
        pacs.entity._servers[0].bind(evt.EVT_RELEASED, lambda _: released.set())
        store(report.path, peer, caller)
        assert not released.is_set()
        assert released.wait(5)


def test_the_commands_list_and_retry(
    home: Path, report: WrittenReport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    monkeypatch.setenv("COLUMNS", "300")
    answers = [0xC001]
    with Pacs(lambda _: answers[0]).listening() as port:
        node = Owing(home, report, pacs=port)
        node.owes(2, "pacs")
        config = tmp_path / "dicom-node.toml"
        config.write_text(f'home = "{home}"\n')

        def command(*arguments: str) -> str:
            done = CliRunner().invoke(app, ["--config", str(config), "deliveries", *arguments])
            return done.output + str(done.exit_code)

        assert "waiting" in command()
        assert "waiting" not in command("--failed")
        with node.deliverer() as deliverer:
            assert deliverer.deliver(None, "pacs") == Delivery.FAILED
            assert "0xC001" in " ".join(command("--failed", "--to", "pacs").split())
            assert "0xC001" not in command("--failed", "--to", "elsewhere")
            assert command("retry", "--to", "elsewhere").endswith("1")
            answers[0] = 0x0000
            assert command("retry").endswith("0")
            assert [deliverer.deliver(None, "pacs") for _ in range(3)] == [Delivery.SENT] * 2 + [None]
        node.ledger.engine.dispose()


def test_a_kill_between_answer_and_record_sends_the_same_object_again(home: Path, report: WrittenReport) -> None:
    """The worker is stopped before the answer leaves and killed after: as if it had died with the answer in hand."""
    worker: list[subprocess.Popen[bytes]] = []

    def stop(event: evt.Event) -> int:
        if len(pacs.stored) == 1:
            worker[0].send_signal(signal.SIGSTOP)
        return 0x0000

    with (pacs := Pacs(stop)).listening() as port:
        node = Owing(home, report, pacs=port)
        node.clock.now = time.time()
        node.owes(1, "pacs")
        config = home / "dicom-node.toml"
        config.write_text(
            f'home = "{home}"\n[[peers]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {port}\n'
            'may = ["reports"]\n'
        )
        worker.append(subprocess.Popen([sys.executable, "-c", _DELIVER, str(config)]))
        eventually(lambda: pacs.stored)
        time.sleep(0.5)
        worker[0].kill()
        worker[0].wait()
        assert node.states("pacs") == [Delivery.WAITING], "it was not written down"
        with node.deliverer() as deliverer:
            assert deliverer.deliver(None, "pacs") is None, "its lease holds yet"
            node.clock.now += 120
            assert deliverer.deliver(None, "pacs") == Delivery.SENT
        assert len(pacs.stored) == 2
        assert len(set(pacs.stored)) == 1
        node.ledger.engine.dispose()


def test_an_archive_that_takes_longer_than_a_lease_keeps_its_delivery(home: Path, report: WrittenReport) -> None:
    others: list[object] = []

    def slow(_: evt.Event) -> int:
        for _ in range(6):
            node.clock.now += 1.5
            time.sleep(1.5)
            others.append(node.ledger.deliveries.claim("pacs", 1.0, parallel=2))
        return 0x0000

    with (pacs := Pacs(slow)).listening() as port:
        node = Owing(home, report, pacs=port)
        node.settings = node.settings.model_copy(update={"lease_seconds": 4.0})
        node.owes(1, "pacs")
        with node.deliverer() as deliverer:
            assert deliverer.deliver(None, "pacs") == Delivery.SENT
        assert others == [None] * 6
        assert len(pacs.stored) == 1
        node.ledger.engine.dispose()


_DELIVER = """
import sys
from pathlib import Path
from dicom_node.deliver import open_deliverer
from dicom_node.settings import load_settings
open_deliverer(load_settings(Path(sys.argv[1]))).deliver(None, "pacs")
"""
