"""Storage commitment both ways, with Orthanc and with an archive that changes its mind; and the question by C-FIND."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from dicom_node.commitment import CLASS_CONFLICT, NO_SUCH_OBJECT, judged
from dicom_node.desk.status import story
from dicom_node.receive import Receiver
from dicom_node.study import Delivery, State
from tests.factories import a_series
from tests.parts import Bench, told
from tests.support import Orthanc, eventually


@contextmanager
def listening(bench: Bench) -> Iterator[Receiver]:
    receiver = Receiver(bench.settings, bench.spool, bench.ledger)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def state_of(bench: Bench, study: str) -> State:
    row = bench.ledger.study(study)
    assert row is not None
    return row.state


def a_labelled_study(bench: Bench, name: str) -> str:
    study = bench.take(a_series("torso", 3, name=name))
    assert bench.label(study) == State.REPORTED
    return study


def test_a_delivery_is_done_when_orthanc_answers_for_it(tmp_path: Path, orthanc: Orthanc) -> None:
    bench = Bench(tmp_path / "home", orthanc.dicom_port, ae_title=orthanc.ae_title, commitment=True, sheet=True)
    with listening(bench) as receiver:
        orthanc.knows("node", "ANATOMY", receiver.port)
        study = a_labelled_study(bench, "committed")
        assert bench.deliver_all() == [Delivery.AWAITED, Delivery.AWAITED]
        eventually(lambda: state_of(bench, study) == State.SENT, 20)
        assert told(story(bench.ledger, study)).count("committed") == 2
    bench.ledger.engine.dispose()


class Doubting:
    """An archive that stores, and answers for what it stored as `answers` say, one after the other."""

    def __init__(self, answers: list[str]) -> None:
        self.answers, self.asked, self.stored, self.node_port = answers, 0, [], 0

    @contextmanager
    def open(self) -> Iterator[int]:
        entity = AE("PACS")
        entity.add_supported_context(Comprehensive3DSRStorage)
        entity.add_supported_context(StorageCommitmentPushModel)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()

    def _store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _action(self, event: evt.Event) -> tuple[int, None]:
        answer, request = self.answers[self.asked], event.action_information
        self.asked += 1
        if answer == "refused":
            return 0x0110, None
        if answer != "silent":
            self._tell(request, answer)
        return 0x0000, None

    def _tell(self, request: Dataset, answer: str) -> None:
        entity = AE("PACS")
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = entity.associate("127.0.0.1", self.node_port, ae_title="ANATOMY", ext_neg=[role])
        report = judged(request, lambda uid: str(Comprehensive3DSRStorage) if answer == "held" else None)
        status, _ = association.send_n_event_report(
            report, 1 if answer == "held" else 2, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        assert status.Status == 0x0000
        association.release()


@contextmanager
def doubting(tmp_path: Path, answers: list[str]) -> Iterator[tuple[Bench, Doubting]]:
    archive = Doubting(answers)
    with archive.open() as port:
        bench = Bench(tmp_path / "home", port, commitment=True)
        with listening(bench) as receiver:
            archive.node_port = receiver.port
            yield bench, archive
        bench.ledger.engine.dispose()


def test_what_is_not_committed_is_sent_again(tmp_path: Path) -> None:
    with doubting(tmp_path, ["lost", "held"]) as (bench, archive):
        study = a_labelled_study(bench, "lost")
        bench.deliver_all()
        assert state_of(bench, study) == State.REPORTED
        assert bench.deliver_all() == []
        bench.clock.now += 3
        assert bench.deliver_all() == [Delivery.AWAITED]
        assert state_of(bench, study) == State.SENT
        assert len(archive.stored) == 2
        assert len(set(archive.stored)) == 1
        assert bench.deliver_all() == []


def test_an_archive_that_says_nothing_is_asked_again_later(tmp_path: Path) -> None:
    with doubting(tmp_path, ["silent", "held"]) as (bench, archive):
        study = a_labelled_study(bench, "silent")
        assert bench.deliver_all() == [Delivery.AWAITED]
        bench.clock.now += 300
        assert bench.deliver_all() == []
        bench.clock.now += 301
        assert bench.deliver_all() == [Delivery.AWAITED]
        assert state_of(bench, study) == State.SENT
        assert archive.asked == 2


def test_an_archive_that_refuses_to_answer_is_named(tmp_path: Path) -> None:
    with doubting(tmp_path, ["refused"]) as (bench, _):
        study = a_labelled_study(bench, "refused")
        assert bench.deliver_all() == [Delivery.FAILED]
        assert state_of(bench, study) == State.QUARANTINED
        assert "commitment = true" in told(story(bench.ledger, study))


# -- as SCP --------------------------------------------------------------------------------------------------------


def test_orthanc_learns_what_we_hold(tmp_path: Path, orthanc: Orthanc) -> None:
    push = frozenset({"push"})
    bench = Bench(tmp_path / "home", orthanc.dicom_port, ae_title=orthanc.ae_title, may=push)
    images = a_series("torso", 3, name="asked")
    bench.take(images)
    held = [(str(image.SOPClassUID), str(image.SOPInstanceUID)) for image in images]
    with listening(bench) as receiver:
        orthanc.knows("node", "ANATOMY", receiver.port)
        whole = orthanc.asks_commitment("node", held)
        partly = orthanc.asks_commitment(
            "node", [*held, (str(CTImageStorage), "1.2.3.4"), (MRImageStorage, held[0][1])]
        )
        assert orthanc.get(whole)["Status"] == "Pending"
        assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
        assert eventually(lambda: orthanc.get(whole)["Status"], 10) == "Success"
        answer = orthanc.get(partly)
    assert answer["Status"] == "Failure"
    assert len(answer["Success"]) == 3
    assert {(f["SOPInstanceUID"], f["FailureReason"]) for f in answer["Failures"]} == {
        ("1.2.3.4", NO_SUCH_OBJECT),
        (held[0][1], CLASS_CONFLICT),
    }
    bench.ledger.engine.dispose()


def test_an_answer_outlives_the_scanner_being_away(tmp_path: Path) -> None:
    """Asked while it listens nowhere: told when it does."""
    archive = Doubting([])
    with archive.open() as port:
        gone = port
    bench = Bench(tmp_path / "home", gone, ae_title="SCANNER", may=frozenset({"push"}))
    images = a_series("leg", 2, name="away")
    bench.take(images)
    heard: list[Dataset] = []
    with listening(bench) as receiver:
        request = Dataset()
        request.TransactionUID, item = "1.2.3.77", Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = images[0].SOPClassUID, images[0].SOPInstanceUID
        request.ReferencedSOPSequence = [item]
        assert _asked(receiver.port, "SCANNER", request) == 0x0000
    assert bench.deliver_all() == [Delivery.WAITING]
    with _hearing(gone, heard):
        bench.clock.now += 10
        assert bench.deliver_all() == [Delivery.SENT]
    assert heard[0].TransactionUID == "1.2.3.77"
    assert [i.ReferencedSOPInstanceUID for i in heard[0].ReferencedSOPSequence] == [images[0].SOPInstanceUID]
    bench.ledger.engine.dispose()


def _asked(port: int, calling: str, request: Dataset) -> int:
    entity = AE(calling)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate("127.0.0.1", port, ae_title="ANATOMY")
    status, _ = association.send_n_action(request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    association.release()
    return int(status.Status)


@contextmanager
def _hearing(port: int, heard: list[Dataset]) -> Iterator[None]:
    def hear(event: evt.Event) -> tuple[int, None]:
        heard.append(event.event_information)
        return 0x0000, None

    entity = AE("SCANNER")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, hear)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield
    finally:
        server.shutdown()


HARMS: dict[str, Callable[[Dataset], None]] = {
    "no transaction": lambda r: delattr(r, "TransactionUID"),
    "a path for a transaction": lambda r: setattr(r, "TransactionUID", "../../etc/passwd"),
    "no objects": lambda r: delattr(r, "ReferencedSOPSequence"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_question_that_cannot_be_answered_is_refused(tmp_path: Path, harm: str) -> None:
    bench = Bench(tmp_path / "home", 9, ae_title="SCANNER", may=frozenset({"push"}))
    request, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, "1.2.3"
    request.TransactionUID, request.ReferencedSOPSequence = "1.2", [item]
    HARMS[harm](request)
    with listening(bench) as receiver:
        assert _asked(receiver.port, "SCANNER", request) == 0x0110
        request.TransactionUID, request.ReferencedSOPSequence = "1.2", [item]
        assert _asked(receiver.port, "REVIEW", request) == 0x0110
    assert bench.ledger.deliveries.due(30.0) == []
    bench.ledger.engine.dispose()


# -- the patient at the archive ------------------------------------------------------------------------------------


def test_a_study_that_the_archive_files_under_somebody_else_is_held(tmp_path: Path, orthanc: Orthanc) -> None:
    bench = Bench(tmp_path / "home", orthanc.dicom_port, ae_title=orthanc.ae_title, check_patient=True)
    ours = a_labelled_study(bench, "merged")
    assert bench.deliver_all() == [Delivery.SENT]  # the archive has no such study yet
    moved = a_series("torso", 1, name="held")[0]
    study = a_labelled_study(bench, "held")
    moved.PatientID, moved.SOPInstanceUID = "MERGED", "1.2.3.4.5"
    orthanc.takes(moved, tmp_path / "moved.dcm")
    assert bench.deliver_all() == [Delivery.FAILED]
    assert state_of(bench, study) == State.QUARANTINED
    assert "another Patient ID" in told(story(bench.ledger, study))
    assert "MERGED" not in told(story(bench.ledger, study))
    orthanc.delete_series(StudyInstanceUID=study)
    bench.ledger.orders.retry_study(study)
    assert bench.deliver_all() == [Delivery.SENT]
    assert state_of(bench, ours) == state_of(bench, study) == State.SENT
    bench.ledger.engine.dispose()


def test_an_archive_without_queries_is_named(tmp_path: Path) -> None:
    with Doubting([]).open() as port:
        bench = Bench(tmp_path / "home", port, check_patient=True, sheet=True)
        study = a_labelled_study(bench, "no queries")
        assert bench.deliver_all() == [Delivery.FAILED, Delivery.FAILED]
        assert "takes no queries" in told(story(bench.ledger, study))
        bench.ledger.engine.dispose()
