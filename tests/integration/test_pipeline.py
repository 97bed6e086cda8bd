"""A study's work without a queue: spool and ledger in, reports and reasons out; deliveries to a real archive."""

from __future__ import annotations

import threading
from csv import DictReader
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, BasicTextSRStorage, Comprehensive3DSRStorage, CTImageStorage
from pynetdicom import AE, evt
from sqlalchemy.exc import OperationalError

from dicom_node.demo.archive import Archive
from dicom_node.desk.discrepancies import compared, counted, listed, write_csv
from dicom_node.desk.status import overview, story
from dicom_node.model import Model
from dicom_node.reports.amend import Change
from dicom_node.study import FILES_GONE, REPORT_CLASSES, Absent, Delivery, State
from dicom_node.uids import report_series_uid
from dicom_node.watch import watch
from labeler.errors import BundleMissing
from labeler.label import Labeler
from labeler.slices import Skip
from tests.factories import a_series, changed
from tests.integration.test_completeness import Silent
from tests.parts import LABELER, Bench, told
from tests.remarks import IMAGES, a_label_of, corrected
from tests.support import errors_of_dciodvfy, errors_of_dsrdump, free_port
from tests.unit.dicom_node.test_spool import bytes_of

#: Request Attributes Sequence (0040,0275), which stands behind all that the receiver reads.
OPEN_SEQUENCE = bytes.fromhex("40007502")


def with_an_open_sequence(image: Dataset) -> None:
    """A sequence whose end is told by its delimiter."""
    item = Dataset()
    item.ScheduledProcedureStepID, item.is_undefined_length_sequence_item = "1", True
    image.RequestAttributesSequence = [item]
    image["RequestAttributesSequence"].is_undefined_length = True


def test_from_images_to_the_archive(bench: Bench, archive: Archive) -> None:
    uid = bench.take(a_series("torso", 8, name="way"))
    assert bench.label(uid) == State.REPORTED
    assert bench.deliver(uid) == [Delivery.SENT]
    row = bench.ledger.study(uid)
    assert row is not None
    assert row.state == State.SENT
    (report,) = archive.reports()
    assert report.StudyInstanceUID == uid
    assert report == dcmread(bench.ledger.issued.of_study(uid)[0].path)


@pytest.mark.parametrize(("offset", "hours"), [("+0900", 9), ("-0500", -5), ("", 0)])
def test_a_report_tells_its_time_in_the_zone_that_it_names(bench: Bench, offset: str, hours: int) -> None:
    images = changed(a_series("leg", 3, name=f"zone {offset}"), lambda i: setattr(i, "TimezoneOffsetFromUTC", offset))
    uid = bench.take(images)
    assert bench.label(uid) == State.REPORTED
    report = dcmread(bench.ledger.issued.of_study(uid)[0].path)
    received = max(instance.received_at for instance in bench.ledger.instances(uid))
    expected = datetime.fromtimestamp(received, timezone(timedelta(hours=hours)))
    assert report.ContentDate + report.ContentTime[:6] == f"{expected:%Y%m%d%H%M%S}"


def test_a_second_run_finds_nothing_to_do(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 3, name="second"))
    assert bench.label(uid) == State.REPORTED
    assert bench.pipeline.label_study(uid) is None
    assert bench.deliver(uid) == [Delivery.SENT]
    assert bench.deliver(uid) == [None]


def test_a_disk_that_fails_lays_no_study_aside(bench: Bench) -> None:
    """More often than a study may fail, and it is labelled when there is room again."""
    uid = bench.take(a_series("leg", 3, name="no room"))
    bench.spool.reports.rmdir()
    bench.spool.reports.touch()
    for _ in range(bench.settings.attempts + 2):
        assert bench.label(uid) == State.QUEUED
        bench.clock.now += bench.settings.lease_seconds + 1
    bench.spool.reports.unlink()
    bench.spool.reports.mkdir()
    assert bench.label(uid) == State.REPORTED


def test_a_disk_that_gives_no_image_now_costs_none_its_labels(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 3, name="stale"))
    place = bench.ledger.instances(uid)[1].path
    kept = place.read_bytes()
    place.unlink()
    place.mkdir()
    assert bench.pipeline.prepare(uid)
    assert bench.label(uid) == State.QUEUED
    row = bench.ledger.study(uid)
    assert row is not None
    assert row.attempts == 0
    assert "cannot be read from the disk" in row.reason
    place.rmdir()
    place.write_bytes(kept)
    bench.clock.now += 60
    assert bench.pipeline.label_study(uid) == State.REPORTED
    assert bench.reasons() == {}


def test_an_image_that_ends_within_a_sequence_costs_itself_alone(bench: Bench) -> None:
    """For bytes that end too early pydicom raises the error that the system raises for a disk that is away."""
    images = changed(a_series("leg", 4, name="ends early"), with_an_open_sequence)
    uid = bench.take(images[1:])
    bench.take(images[:1], cut=bytes_of(images[0]).find(OPEN_SEQUENCE) + 14)
    assert bench.label(uid) == State.REPORTED
    assert bench.reasons() == {Skip.NOT_DICOM: 1}


def test_files_that_others_took_are_missed_at_once_and_no_series_is_labelled_by_half(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 3, name="taken"))
    bench.ledger.instances(uid)[1].path.unlink()
    assert bench.label(uid) == State.UNLABELLED
    assert bench.reasons() == {FILES_GONE: 2}
    assert [i.absent for i in bench.ledger.instances(uid)].count(Absent.MISSING) == 1


def waited_for(bench: Bench, uid: str) -> None:
    """A study is queued while the spool is away, and labelled when it is back."""
    elsewhere = bench.spool.images.with_name("elsewhere")
    bench.spool.images.rename(elsewhere)
    assert bench.label(uid) == State.QUEUED
    elsewhere.rename(bench.spool.images)
    bench.clock.now += 60
    assert bench.pipeline.label_study(uid) == State.REPORTED


def test_a_spool_that_is_away_is_waited_for(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 2, name="unmounted"))
    waited_for(bench, uid)


def watched(bench: Bench, monkeypatch: pytest.MonkeyPatch, away: int = 0) -> None:
    """A watcher starts, whose ledger is away so many times, and ends after its first look at all."""
    orders, ended, tries = bench.ledger.orders, threading.Event(), iter(range(away))
    take_up = orders.take_up_unowed

    def taken_up() -> int:
        if next(tries, None) is not None:
            raise OperationalError("", None, Exception("the database is locked"))
        ended.set()
        return take_up()

    with monkeypatch.context() as patch:
        patch.setattr(orders, "take_up_unowed", taken_up)
        hurried = bench.settings.model_copy(update={"sweep_seconds": 0.01})
        watch(hurried, bench.ledger, Silent(Celery()), bench.spool, ended)


def test_reports_of_a_time_without_a_destination_go_when_there_is_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.pipeline.settings = bench.settings.model_copy(update={"destinations": ()})
    uid = bench.take(a_series("leg", 3, name="nobody"))
    assert bench.label(uid) == State.REPORTED
    bench.pipeline.settings = bench.settings
    watched(bench, monkeypatch, away=2)
    assert bench.pipeline.label_study(uid) == State.REPORTED
    assert bench.deliver_all() == [Delivery.SENT]
    row = bench.ledger.study(uid)
    assert row is not None
    assert (row.state, len(bench.ledger.issued.of_study(uid))) == (State.SENT, 1)
    watched(bench, monkeypatch)
    assert bench.pipeline.label_study(uid) is None


def test_a_correction_of_a_time_without_a_destination_goes_with_the_report_that_it_corrects(
    bench: Bench, archive: Archive
) -> None:
    usual = bench.settings
    bench.settings = bench.pipeline.settings = usual.model_copy(update={"destinations": ()})
    uid = bench.take(a_series("torso", IMAGES, name="nobody yet"))
    assert bench.label(uid) == State.REPORTED
    bench.clock.now += 1
    written = corrected(bench, uid, Change(a_label_of(bench, uid), False))
    assert bench.deliver_all() == []
    bench.settings = bench.pipeline.settings = usual
    assert bench.ledger.orders.take_up_unowed() == 1
    assert bench.pipeline.label_study(uid) == State.REPORTED
    assert bench.deliver_all() == [Delivery.SENT] * 2
    assert written.sop_instance_uid in {str(report.SOPInstanceUID) for report in archive.reports()}
    current = bench.ledger.issued.current(uid, written.source_series_uid)
    assert current is not None
    assert current.sop_instance_uid == written.sop_instance_uid


@pytest.mark.parametrize("trouble", [BundleMissing("nobody: no such folder"), RuntimeError("CUDA out of memory")])
def test_a_model_that_cannot_be_loaded_lays_no_study_aside(bench: Bench, trouble: Exception) -> None:
    """It is the node's trouble: no attempt is counted, the reason is told, and all is labelled when it is mended."""

    def load() -> Labeler:
        raise trouble

    uid, bench.pipeline.model = bench.take(a_series("leg", 3, name="no model")), Model(load)
    for _ in range(bench.settings.attempts + 2):
        assert bench.label(uid) == State.QUEUED
        bench.clock.now += bench.settings.lease_seconds + 1
    row = bench.ledger.study(uid)
    assert row is not None
    assert row.attempts == 0
    assert str(trouble) in row.reason
    assert str(trouble) in bench.pipeline.model.trouble
    assert bench.pipeline.prepare(uid)
    bench.pipeline.model.load = lambda: LABELER
    assert bench.label(uid) == State.REPORTED
    assert bench.pipeline.model.trouble == ""


def test_a_rebuilt_ledger_gives_the_same_report(bench: Bench, tmp_path: Path) -> None:
    images = a_series("torso", 4, name="rebuilt")
    uid = bench.take(images)
    bench.label(uid)
    first = bench.ledger.issued.of_study(uid)[0]
    before = first.path.read_bytes()
    again = Bench(tmp_path / "home2", 1)
    for instance in bench.ledger.instances(uid):
        again.ledger.add_instance(instance)
    again.label(uid)
    second = again.ledger.issued.of_study(uid)[0]
    assert second.sop_instance_uid == first.sop_instance_uid
    assert second.path.read_bytes() == before
    again.ledger.engine.dispose()


def test_bad_images_cost_only_themselves_and_status_says_why(bench: Bench) -> None:
    images = a_series("torso", 8, name="mixed")
    images[1].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    images[2].PixelData = images[2].PixelData[:50]
    del images[3].ImageOrientationPatient
    del images[4].PixelData
    uid = bench.take(images)
    assert bench.label(uid) == State.REPORTED
    assert sum(bench.reasons().values()) == 4
    shown = told(overview(bench.ledger))
    for reason in ("CT localizer", "no image orientation", "no pixel data", "cannot be decoded"):
        assert reason in shown
        assert reason in told(story(bench.ledger, uid))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: setattr(image, "Modality", "US"),
        lambda image: delattr(image, "PixelData"),
        lambda image: delattr(image, "ImageOrientationPatient"),
    ],
)
def test_a_study_without_a_usable_image_is_unlabelled_with_its_reason(
    bench: Bench, archive: Archive, change: Any
) -> None:
    uid = bench.take(changed(a_series("torso", 3, name="useless"), change))
    assert bench.label(uid) == State.UNLABELLED
    row = bench.ledger.study(uid)
    assert row is not None
    assert row.reason in told(overview(bench.ledger))
    assert archive.reports() == []


def test_an_object_cut_short_is_never_labelled(bench: Bench) -> None:
    uid = bench.take(a_series("torso", 2, name="cut"), cut=4000)
    assert bench.label(uid) == State.UNLABELLED


def test_one_stray_slice_is_left_out(bench: Bench) -> None:
    images = a_series("torso", 10, name="stray")
    images[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    uid = bench.take(images)
    assert bench.label(uid) == State.REPORTED
    assert bench.reasons() == {"orientation differs from the rest of the series": 1}


def tracked(report: Dataset) -> set[str]:
    """Tracking Unique Identifiers."""
    items = [item for element in report.iterall() if element.VR == "SQ" for item in element.value]
    return {item.UID for item in items if "UID" in item and item.ConceptNameCodeSequence[0].CodeValue == "112040"}


def test_two_studies_of_one_series_uid_have_series_of_reports_of_their_own(bench: Bench) -> None:
    """A broken scanner numbers its series anew with every patient. Which study came first stays so."""
    first, second = a_series("leg", 3, name="numbered"), a_series("torso", 2, name="anew")
    shared = first[0].SeriesInstanceUID
    changed(second, lambda image: setattr(image, "SeriesInstanceUID", shared))
    made = []
    for images in (first[:2], second, first):
        study = bench.take(images)
        bench.label(study)
        current = bench.ledger.issued.current(study, shared)
        assert current is not None
        made.append(dcmread(current.path))
    assert made[0].SeriesInstanceUID == made[2].SeriesInstanceUID == report_series_uid(shared)
    assert made[1].SeriesInstanceUID == report_series_uid(shared, made[1].StudyInstanceUID) != report_series_uid(shared)
    assert tracked(made[0])
    assert not tracked(made[0]) & tracked(made[1])
    (lost,) = bench.ledger.issued.of_study(second[0].StudyInstanceUID)
    before = lost.path.read_bytes()
    lost.path.unlink()
    assert bench.ledger.holdings.make_again(lost.study_uid)
    bench.label(lost.study_uid)
    assert lost.path.read_bytes() == before


def test_two_patients_in_one_study_are_never_labelled(bench: Bench) -> None:
    images = a_series("torso", 4, name="two")
    images[3].PatientID = "SOMEBODY-ELSE"
    uid = bench.take(images)
    assert bench.label(uid) == State.QUARANTINED
    assert "different patients" in told(overview(bench.ledger))
    assert bench.ledger.issued.of_study(uid) == []


@pytest.mark.parametrize(
    ("issuers", "state"),
    [(("", "HOSPITAL"), State.REPORTED), (("HOSPITAL", ""), State.REPORTED), (("A", "B"), State.QUARANTINED)],
)
def test_an_issuer_that_is_left_out_is_no_second_patient(bench: Bench, issuers: tuple[str, str], state: State) -> None:
    images = a_series("leg", 4, name=f"issuers {issuers}")
    for image, issuer in zip(images, issuers * 2, strict=True):
        image.IssuerOfPatientID = issuer
    assert bench.label(bench.take(images)) == state


def test_a_spool_that_is_away_names_no_second_patient(bench: Bench) -> None:
    uid = bench.take(of_issuers("", "HOSPITAL"))
    waited_for(bench, uid)


@pytest.mark.parametrize(("issuer", "state"), [("", State.REPORTED), ("B", State.QUARANTINED)])
def test_where_a_patients_images_are_purged_the_reports_on_them_name_the_patient(
    bench: Bench, issuer: str, state: State
) -> None:
    uid = bench.take(of_issuers("A"))
    bench.label(uid)
    assert bench.deliver_all() == [Delivery.SENT]
    bench.clock.now += 1
    assert bench.ledger.holdings.purge(uid, bench.clock.now, False, bench.spool.remove)
    late = of_issuers(issuer, name="late")
    bench.take(changed(late, lambda image: setattr(image, "StudyInstanceUID", uid)))
    bench.clock.now += 60
    assert bench.label(uid) == state


def of_issuers(*issuers: str, name: str = "issued") -> list[Dataset]:
    """Images of one patient, by whom these have issued a Patient ID in turn."""
    images = a_series("leg", 4, name=name)
    for image, issuer in zip(images, issuers * 4, strict=False):
        image.IssuerOfPatientID, image.PatientID, image.PatientName = issuer, "1", "Doe^Jane"
    return images


def test_a_labeler_that_fails_is_tried_again_and_then_laid_aside(bench: Bench) -> None:
    class Broken:
        spec, info = LABELER.spec, LABELER.info

        def label(self, *_: object, **__: object) -> object:
            raise RuntimeError("CUDA out of memory for DOE^JOHN")

    bench.pipeline.model.loaded = Broken()  # type: ignore[assignment]
    uid = bench.take(a_series("leg", 2, name="broken"))
    assert bench.label(uid) == State.QUEUED
    for _ in range(5):
        bench.clock.now += 600
        bench.pipeline.label_study(uid)
    row = bench.ledger.study(uid)
    assert row is not None
    assert (row.state, row.attempts) == (State.QUARANTINED, 3)
    assert "RuntimeError" in row.reason
    assert "DOE" not in row.reason
    bench.pipeline.model.loaded = None
    assert bench.ledger.orders.retry_study(uid)
    assert bench.pipeline.label_study(uid) == State.REPORTED


def test_a_study_that_kills_its_workers_is_laid_aside(bench: Bench) -> None:
    uid = bench.take(a_series("leg", 2, name="poison"))
    bench.ledger.complete(bench.ledger.receiving()[0], "quiet")
    for _ in range(3):
        assert bench.ledger.claim(uid, 30) is not None
        bench.clock.now += 31
        assert bench.ledger.release_expired() == [uid]
    assert bench.pipeline.label_study(uid) == State.QUARANTINED


def test_an_archive_that_is_away_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    port = free_port()
    away = Bench(tmp_path / "away", port)
    uid = away.take(a_series("leg", 2, name="away"))
    away.label(uid)
    assert away.deliver(uid) == [Delivery.WAITING]
    assert away.deliver(uid) == [None]
    assert "cannot be reached" in told(story(away.ledger, uid))
    away.ledger.engine.dispose()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(0xB000, Delivery.SENT), (0xB007, Delivery.SENT), (0xA700, Delivery.WAITING), (0xC001, Delivery.FAILED)],
)
def test_what_the_archive_answers_decides(tmp_path: Path, status: int, outcome: Delivery) -> None:
    entity = AE("PACS")
    entity.add_supported_context(Comprehensive3DSRStorage)
    handlers = [(evt.EVT_C_STORE, lambda _: status)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        bench = Bench(tmp_path / "home", server.server_address[1])
        uid = bench.take(a_series("leg", 2, name="status"))
        bench.label(uid)
        assert bench.deliver(uid) == [outcome]
        row = bench.ledger.study(uid)
        assert row is not None
        if outcome == Delivery.FAILED:
            assert row.state == State.QUARANTINED
            assert "0xC001" in row.reason
        bench.ledger.engine.dispose()
    finally:
        server.shutdown()


@pytest.mark.parametrize("takes", REPORT_CLASSES, ids=lambda uid: uid.name)
def test_an_archive_gets_the_best_class_that_it_takes(tmp_path: Path, takes: UID) -> None:
    with Archive(tmp_path / "archive", "PACS", [takes, BasicTextSRStorage]) as archive:
        bench = Bench(tmp_path / "home", archive.port)
        uid = bench.take(a_series("torso", 3, name="class"))
        bench.label(uid)
        assert bench.deliver(uid) == [Delivery.SENT]
        (path,) = archive.folder.glob("*.dcm")
        assert dcmread(path).SOPClassUID == takes
        assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) == []
        assert f"as {takes.name}" in told(story(bench.ledger, uid))
        bench.ledger.engine.dispose()


def test_an_archive_that_takes_no_such_class_is_named(tmp_path: Path) -> None:
    with Archive(tmp_path / "archive", "PACS", [CTImageStorage]) as archive:
        bench = Bench(tmp_path / "home", archive.port)
        uid = bench.take(a_series("leg", 2, name="class"))
        bench.label(uid)
        assert bench.deliver(uid) == [Delivery.FAILED]
        assert "takes no objects of the SOP class" in told(story(bench.ledger, uid))
        bench.ledger.engine.dispose()


def test_a_header_that_differs_is_listed_and_counted_per_scanner(bench: Bench) -> None:
    wrong = a_series("torso", 4, name="wrong", body_part="HAND")
    for image in wrong:
        image.ProtocolName = "Hand left"
    bench.label(bench.take(wrong))
    right = a_series("torso", 4, name="right", body_part="CHEST")
    bench.label(bench.take(right, peer="ct2"))
    found = list(compared(bench.ledger))
    (differs,) = [item for item in found if item.differs]
    assert (differs.peer, differs.body_part_examined) == ("ct1", "HAND")
    assert "ProtocolName" in differs.others
    assert differs.series_uid in told([listed(found)])
    assert "ct2" in told([counted(found)])
    written = StringIO()
    write_csv(found, written)
    assert [row["body_part_examined"] for row in DictReader(StringIO(written.getvalue()))] == ["HAND"]
    report = dcmread(bench.ledger.issued.of_study(str(wrong[0].StudyInstanceUID))[0].path)
    summary = next(item.TextValue for item in report.ContentSequence[-1].ContentSequence if "TextValue" in item)
    assert "Header Protocol Name: hand -> DIFFER" in summary


def test_a_series_uid_that_two_studies_share_makes_no_report_the_others_successor(bench: Bench) -> None:
    one, other = (a_series("leg", 2, name=name) for name in ("one", "other"))
    changed(other, lambda image: setattr(image, "SeriesInstanceUID", one[0].SeriesInstanceUID))
    for images in (one, other):
        uid = bench.take(images)
        assert bench.label(uid) == State.REPORTED
    for images in (one, other):
        (report,) = bench.ledger.issued.of_study(str(images[0].StudyInstanceUID))
        assert bench.ledger.issued.successor_of(report.sop_instance_uid) == ""
        assert "PredecessorDocumentsSequence" not in dcmread(report.path)
        assert bench.ledger.issued.current(report.study_uid, report.source_series_uid) == report


def test_series_of_two_people_in_one_study_are_never_labelled(bench: Bench) -> None:
    first, second = a_series("torso", 3, name="one"), a_series("leg", 3, name="other")
    for image in second:
        image.StudyInstanceUID, image.PatientID = first[0].StudyInstanceUID, first[0].PatientID
        image.PatientBirthDate = "19991231"
    uid = bench.take(first + second)
    assert bench.label(uid) == State.QUARANTINED
    shown = told(story(bench.ledger, uid))
    assert "PatientBirthDate" in shown
    assert "19991231" not in shown
