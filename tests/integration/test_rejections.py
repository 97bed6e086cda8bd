"""Notes that reject superseded reports (IHE IOCM): valid, after the successor, only to who wants them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage
from sqlalchemy import select, update

from dicom_node import corrections
from dicom_node.corrections import amend
from dicom_node.demo.archive import Archive
from dicom_node.desk.status import story
from dicom_node.errors import Superseded
from dicom_node.ledger.schema import delivery, report
from dicom_node.reports.amend import Amendment, Change
from dicom_node.reports.gate import evidence_of
from dicom_node.reports.word import Verifier
from dicom_node.settings import Peer
from dicom_node.study import Delivery, Dismissal, Redirection, State, WrittenReport
from dicom_node.uids import rejection_uid, sheet_uid
from tests.factories import a_series
from tests.parts import Bench, told
from tests.support import errors_of_dciodvfy, errors_of_dsrdump, errors_of_pixelmed

A_BRAIN = Amendment(
    [Change("brain", True)],
    Verifier("Doe^Jane", "General Hospital"),
    datetime(2026, 5, 4, 10, 30, tzinfo=UTC),
)


@pytest.fixture
def bench(tmp_path: Path, archive: Archive) -> Bench:
    return Bench(tmp_path / "home", archive.port, reject_superseded=True)


def a_grown_study(bench: Bench, *, delivered: bool = True) -> str:
    """A study whose report has been superseded by late images, after it was delivered or before."""
    images = a_series("torso", 8, name="rejected")
    study = bench.take(images[:6])
    bench.label(study)
    if delivered:
        bench.deliver_all()
    bench.take(images[6:])
    bench.label(study)
    return study


def files_of_notes(archive: Archive) -> list[Path]:
    files = archive.folder.glob("*.dcm")
    return [file for file in files if dcmread(file).SOPClassUID == KeyObjectSelectionDocumentStorage]


def note_of(bench: Bench, rejected: WrittenReport) -> Path:
    """Where the note on a report lies."""
    wanted = select(report.c.path).where(report.c.sop_instance_uid == rejection_uid(rejected.sop_instance_uid))
    (row,) = bench.ledger.rows(wanted)
    return Path(row.path)


def notes(archive: Archive) -> list[Dataset]:
    return [dcmread(file) for file in files_of_notes(archive)]


def errors_of_notes(archive: Archive) -> list[str]:
    validators = (errors_of_dciodvfy, errors_of_dsrdump, errors_of_pixelmed)
    return [error for file in files_of_notes(archive) for validator in validators for error in validator(file)]


def test_late_images_reject_the_earlier_report_once_the_newer_one_is_stored(bench: Bench, archive: Archive) -> None:
    study = a_grown_study(bench)
    earlier, newer = bench.ledger.issued.of_study(study)
    due = dict.fromkeys(uid for uid, _ in bench.ledger.deliveries.due(30.0))
    (note_uid,) = due.keys() - {newer.sop_instance_uid}
    _, reports, *_ = story(bench.ledger, study)
    assert list(reports.columns[1].cells) == ["superseded", "current"]
    assert bench.deliverer.deliver(note_uid, "pacs") == Delivery.WAITING
    assert bench.ledger.deliveries.destinations.ailing() == []
    assert bench.deliverer.deliver(newer.sop_instance_uid, "pacs") == Delivery.SENT
    bench.clock.now += 60
    assert bench.deliver_all() == [Delivery.SENT]
    (note,) = notes(archive)
    assert evidence_of(note) == {earlier.sop_instance_uid}
    assert note.ConceptNameCodeSequence[0].CodeMeaning == "Rejected for Quality Reasons"
    assert errors_of_notes(archive) == []
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT


def test_of_two_who_amend_at_once_the_note_names_the_one_whose_report_it_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = bench.take(a_series("torso", 6, name="amended twice"))
    bench.label(study)
    (earlier,) = bench.ledger.issued.of_study(study)
    again = replace(A_BRAIN, when=datetime(2026, 5, 4, 10, 31, tzinfo=UTC))
    parts = bench.settings, bench.ledger, bench.spool, earlier.sop_instance_uid
    first = amend(*parts, A_BRAIN)
    monkeypatch.setattr(corrections, "_current", lambda *_: earlier)  # as the second had seen it a moment before
    with pytest.raises(Superseded):
        amend(*parts, again)
    (said,) = (item for item in dcmread(note_of(bench, earlier)).ContentSequence if item.ValueType == "TEXT")
    assert said.TextValue == f"Superseded by the report {first.sop_instance_uid}"


def test_a_corrected_report_is_rejected_too_and_the_same_way_every_time(bench: Bench, archive: Archive) -> None:
    study = bench.take(a_series("torso", 6, name="rejected by a person"))
    bench.label(study)
    bench.deliver_all()
    (report,) = bench.ledger.issued.of_study(study)
    amend(bench.settings, bench.ledger, bench.spool, report.sop_instance_uid, A_BRAIN)
    for _ in range(2):
        bench.deliver_all()
        bench.clock.now += 60
    assert [evidence_of(note) for note in notes(archive)] == [{report.sop_instance_uid}]


def test_the_sheet_to_a_corrected_report_is_rejected_by_a_note_of_its_own(tmp_path: Path, archive: Archive) -> None:
    bench = Bench(tmp_path / "home", archive.port, reject_superseded=True, sheet=True)
    study = bench.take(a_series("torso", 6, name="sheet rejected"))
    bench.label(study)
    bench.deliver_all()
    (report,) = bench.ledger.issued.of_study(study)
    amend(bench.settings, bench.ledger, bench.spool, report.sop_instance_uid, A_BRAIN)
    for _ in range(2):
        bench.deliver_all()
        bench.clock.now += 60
    found = notes(archive)
    assert sorted(map(sorted, map(evidence_of, found))) == sorted(
        [[report.sop_instance_uid], [sheet_uid(report.sop_instance_uid)]]
    )
    assert len({note.SeriesInstanceUID for note in found}) == len({note.SeriesNumber for note in found}) == 2
    assert errors_of_notes(archive) == []
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT


def test_a_note_waits_until_what_it_rejects_has_arrived_too(bench: Bench, archive: Archive) -> None:
    study = a_grown_study(bench, delivered=False)
    earlier, newer = bench.ledger.issued.of_study(study)
    assert bench.deliverer.deliver(newer.sop_instance_uid, "pacs") == Delivery.SENT
    assert bench.deliverer.deliver(rejection_uid(earlier.sop_instance_uid), "pacs") == Delivery.WAITING
    bench.clock.now += 60
    assert bench.deliverer.deliver(earlier.sop_instance_uid, "pacs") == Delivery.SENT
    assert bench.deliver_all() == [Delivery.SENT]
    assert [evidence_of(note) for note in notes(archive)] == [{earlier.sop_instance_uid}]


def test_a_note_waits_for_what_was_given_up_and_may_be_tried_again(bench: Bench, archive: Archive) -> None:
    study = a_grown_study(bench)
    earlier, newer = bench.ledger.issued.of_study(study)
    with bench.ledger.engine.begin() as connection:
        key = delivery.c.report_uid == earlier.sop_instance_uid
        connection.execute(update(delivery).where(key).values(state=Delivery.FAILED))
    assert bench.deliverer.deliver(newer.sop_instance_uid, "pacs") == Delivery.SENT
    assert bench.deliverer.deliver(rejection_uid(earlier.sop_instance_uid), "pacs") == Delivery.WAITING
    bench.ledger.orders.retry_study(study)
    assert bench.deliverer.deliver(earlier.sop_instance_uid, "pacs") == Delivery.SENT
    bench.clock.now += 60
    assert bench.deliver_all() == [Delivery.SENT]
    assert [evidence_of(note) for note in notes(archive)] == [{earlier.sop_instance_uid}]


def dismissed(bench: Bench, report_uid: str) -> None:
    """The archive refused a report, and a person left it at that."""
    with bench.ledger.engine.begin() as connection:
        key = delivery.c.report_uid == report_uid
        connection.execute(update(delivery).where(key).values(state=Delivery.FAILED))
    assert bench.ledger.deliveries.dismiss(Dismissal("anna", "film only"), report_uid=report_uid) == 1


def test_nothing_is_rejected_in_favour_of_a_report_that_a_person_dismissed(bench: Bench, archive: Archive) -> None:
    study = a_grown_study(bench)
    _, newer = bench.ledger.issued.of_study(study)
    dismissed(bench, newer.sop_instance_uid)
    assert bench.deliver_all() == [Delivery.LEFT_OUT]
    assert notes(archive) == []
    assert "in its place was dismissed or redirected" in told(story(bench.ledger, study))
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT


def test_a_note_goes_past_a_dismissed_report_to_the_next(bench: Bench, archive: Archive) -> None:
    study = a_grown_study(bench)
    earlier, newer = bench.ledger.issued.of_study(study)
    dismissed(bench, newer.sop_instance_uid)
    bench.take(a_series("torso", 9, name="rejected")[8:])
    bench.label(study)
    newest = bench.ledger.issued.of_study(study)[-1]
    assert bench.deliverer.deliver(newest.sop_instance_uid, "pacs") == Delivery.SENT
    assert bench.deliverer.deliver(rejection_uid(earlier.sop_instance_uid), "pacs") == Delivery.SENT
    assert [evidence_of(note) for note in notes(archive)] == [{earlier.sop_instance_uid}]
    assert bench.deliver_all() == [Delivery.LEFT_OUT], "the dismissed one is not there"


def test_a_lost_note_is_left_out_and_the_study_goes_on(bench: Bench, archive: Archive) -> None:
    study = a_grown_study(bench)
    earlier, _ = bench.ledger.issued.of_study(study)
    note_of(bench, earlier).unlink()
    assert set(bench.deliver_all()) == {Delivery.SENT, Delivery.LEFT_OUT}
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT


def test_a_persons_report_from_elsewhere_gets_no_note(bench: Bench, archive: Archive) -> None:
    images = a_series("torso", 8, name="said elsewhere")
    study = bench.take(images[:6])
    bench.label(study)
    bench.deliver_all()
    (report,) = bench.ledger.issued.of_study(study)
    theirs = dcmread(report.path)
    theirs.SOPInstanceUID = theirs.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.1"
    theirs.VerificationFlag = "VERIFIED"
    theirs.PredecessorDocumentsSequence = [predecessor_of(dcmread(report.path))]
    del theirs.ContributingEquipmentSequence
    bench.take([theirs], peer="review")
    bench.label(study)
    bench.take(images[6:])
    assert bench.label(study) == State.REPORTED
    newest = bench.ledger.issued.of_study(study)[-1]
    assert bench.ledger.issued.successor_of(str(theirs.SOPInstanceUID)) == newest.sop_instance_uid
    assert bench.ledger.deliveries.has(rejection_uid(str(theirs.SOPInstanceUID))) is False


def predecessor_of(report: Dataset) -> Dataset:
    study, series, reference = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = report.SOPClassUID, report.SOPInstanceUID
    series.ReferencedSOPSequence, series.SeriesInstanceUID = [reference], report.SeriesInstanceUID
    study.ReferencedSeriesSequence, study.StudyInstanceUID = [series], report.StudyInstanceUID
    return study


def test_our_own_note_that_comes_back_is_no_dispute(bench: Bench, archive: Archive) -> None:
    study = a_grown_study(bench)
    for _ in range(3):
        bench.deliver_all()
        bench.clock.now += 60
    bench.take(notes(archive), peer="review")
    bench.label(study)
    assert bench.ledger.remarks() == []


def test_who_wants_no_notes_gets_none(tmp_path: Path, archive: Archive) -> None:
    bench = Bench(tmp_path / "plain", archive.port)
    a_grown_study(bench)
    assert bench.deliver_all() == [Delivery.SENT]
    assert notes(archive) == []


@pytest.mark.parametrize("refused_first", [False, True])
def test_to_an_archive_in_its_place_all_goes_in_its_order(
    bench: Bench, archive: Archive, tmp_path: Path, refused_first: bool
) -> None:
    """All waited when the archive was replaced; or the first report was refused there and its successor stored."""
    study = a_grown_study(bench, delivered=False)
    older, newer = bench.ledger.issued.of_study(study)
    if refused_first:
        due = bench.ledger.deliveries.claim("pacs", 60, report_uid=older.sop_instance_uid)
        assert due is not None
        bench.ledger.deliveries.settle(due, Delivery.FAILED, "0xA900")
        bench.clock.now += 1000
        assert bench.deliverer.deliver(newer.sop_instance_uid, "pacs") == Delivery.SENT
    with Archive(tmp_path / "new", "NEW") as new:
        usual = {"ae_title": "NEW", "host": "127.0.0.1", "may": frozenset({"reports"}), "sheet": False}
        peer = Peer(name="archive", port=new.port, reject_superseded=True, **usual)
        bench.deliverer.settings = bench.settings.model_copy(update={"peers": (peer,)})
        assert bench.ledger.orders.redirect(Redirection("anna", "pacs", "archive"), dismissed=True) > 0
        note = rejection_uid(older.sop_instance_uid)
        assert bench.deliverer.deliver(note, "archive") == Delivery.WAITING, "it has nothing to reject yet"
        for _ in range(6):
            bench.clock.now += 1000
            bench.deliverer.deliver(None, "archive")
        stored = {str(dcmread(file).SOPInstanceUID) for file in new.folder.glob("*.dcm")}
    assert stored == {older.sop_instance_uid, newer.sop_instance_uid, note}
    row = bench.ledger.study(study)
    assert row is not None
    assert (row.state, row.reason) == (State.SENT, "")
