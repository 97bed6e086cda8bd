"""Images leave the spool when nobody needs them, never before; what comes afterwards still finds its way."""

from __future__ import annotations

import errno
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from celery import Celery
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import select
from structlog.testing import capture_logs

from dicom_node.commitment import Commitments, as_file, judged
from dicom_node.demo.archive import Archive
from dicom_node.desk.status import overview, story
from dicom_node.desk.studies import shown as tabled
from dicom_node.errors import OutOfResources
from dicom_node.intake import SUCCESS, Announced, Intake
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import archive_count, delivery, report
from dicom_node.reconcile import reconcile
from dicom_node.settings import Peer
from dicom_node.spool import Spool
from dicom_node.spool.purge import Purger
from dicom_node.study import (
    FILES_GONE,
    Absent,
    Delivery,
    Dismissal,
    Instance,
    PerformedStep,
    Sender,
    State,
    StepStatus,
    moment,
)
from dicom_node.uids import sheet_uid
from dicom_node.watch import watch
from tests.factories import a_series, changed
from tests.integration.test_completeness import Silent
from tests.parts import Bench, told
from tests.unit.dicom_node.test_spool import bytes_of

_DAY = 86400.0


def purger(bench: Bench, free_mib: int | None = None) -> Purger:
    """`free_mib`: what the disk is said to have left when nothing has been purged; each purge frees 1 MiB."""
    return Purger(bench.settings, bench.ledger, bench.spool if free_mib is None else Small(bench.spool, free_mib))


class Small(Spool):
    """A disk with so much room; a study weighs 1 MiB."""

    def __init__(self, spool: Spool, free_mib: int) -> None:
        super().__init__(spool.images.parent)
        self.left = free_mib

    def free(self) -> int:
        return self.left << 20

    def remove(self, paths: object) -> None:
        super().remove(paths)  # type: ignore[arg-type]
        self.left += 1


@pytest.fixture
def bench(tmp_path: Path, archive: Archive) -> Iterator[Bench]:
    made = Bench(tmp_path / "home", archive.port)
    made.settings = made.settings.model_copy(update={"reserve_mib": 0, "purge_margin_mib": 0})
    yield made
    made.ledger.engine.dispose()


def sent(bench: Bench, images: list[Dataset]) -> str:
    study = bench.take(images)
    assert bench.label(study) == State.REPORTED
    assert bench.deliver(study)[-1] == Delivery.SENT
    return study


def later(bench: Bench, days: float) -> None:
    """Files carry the real time: the bench's clock starts there."""
    bench.clock.now += days * _DAY


def state_of(bench: Bench, study: str) -> State:
    row = bench.ledger.study(study)
    assert row is not None
    return row.state


@pytest.fixture(autouse=True)
def _now(bench: Bench) -> None:
    bench.clock.now = time.time()


def test_images_go_after_retention_and_reports_stay(bench: Bench) -> None:
    study = sent(bench, a_series("leg", 2, name="old"))
    later(bench, 29.9)
    assert purger(bench).purge() == 0
    later(bench, 0.2)
    assert purger(bench).purge() == 1
    assert state_of(bench, study) == State.PURGED
    assert [i.absent for i in bench.ledger.instances(study)] == [Absent.PURGED] * 2
    assert list(bench.spool.files()) == []
    assert all(report.path.exists() for report in bench.ledger.issued.of_study(study))
    assert purger(bench).purge() == 0


def test_what_is_not_finished_never_goes(bench: Bench) -> None:
    coming = bench.take(a_series("leg", 1, name="coming"))
    queued = bench.take(a_series("leg", 1, name="queued"))
    bench.ledger.complete(next(row for row in bench.ledger.receiving() if row.study_uid == queued), "quiet")
    unsent = bench.take(a_series("leg", 1, name="unsent"))
    quarantined = bench.take(mixed("two"))
    for row in bench.ledger.receiving():
        if row.study_uid != coming:
            bench.ledger.complete(row, "quiet")
    bench.pipeline.label_study(unsent)
    bench.pipeline.label_study(quarantined)
    later(bench, 1000)
    assert purger(bench, free_mib=-5).purge() == 0
    states = {uid: state_of(bench, uid) for uid in (coming, queued, unsent, quarantined)}
    assert list(states.values()) == [State.RECEIVING, State.QUEUED, State.REPORTED, State.QUARANTINED]
    assert len(list(bench.spool.files())) == 5


def test_unlabelled_studies_go_for_their_age_only(bench: Bench) -> None:
    study = bench.take(changed(a_series("leg", 1, name="us"), lambda image: setattr(image, "Modality", "US")))
    assert bench.label(study) == State.UNLABELLED
    assert purger(bench, free_mib=-5).purge() == 0
    later(bench, 31)
    assert purger(bench).purge() == 1
    assert state_of(bench, study) == State.PURGED


@pytest.mark.parametrize("free_mib", [None, -1])
def test_a_study_whose_files_cannot_be_removed_holds_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, free_mib: int | None
) -> None:
    first, second = (sent(bench, a_series("leg", 1, name=name)) for name in ("restored", "other"))
    remove = Spool.remove

    def refused(spool: Spool, paths: Sequence[Path]) -> None:
        if first in str(paths[0]):
            raise PermissionError(13, "Permission denied", str(paths[0]))
        remove(spool, paths)

    monkeypatch.setattr(Spool, "remove", refused)
    later(bench, 31 if free_mib is None else 1)
    assert purger(bench, free_mib).purge() == 1
    assert [state_of(bench, study) for study in (first, second)] == [State.SENT, State.PURGED]


def test_a_study_under_whose_uids_nothing_but_anothers_came_is_shown_and_goes_for_its_age(bench: Bench) -> None:
    sent(bench, a_series("leg", 1, name="moved"))
    moved = changed(a_series("leg", 1, name="moved"), lambda image: setattr(image, "StudyInstanceUID", "1.2.3"))
    assert bench.take(moved) == "1.2.3"
    assert state_of(bench, "1.2.3") == State.UNLABELLED
    assert "another object with this UID came first" in told(story(bench.ledger, "1.2.3"))
    assert bench.ledger.orders.retry_study("1.2.3")
    assert bench.pipeline.label_study("1.2.3") == State.UNLABELLED
    later(bench, 31)
    assert purger(bench).purge() == 2
    assert list(bench.spool.files()) == []
    new = changed(a_series("leg", 1, name="new"), lambda image: setattr(image, "StudyInstanceUID", "1.2.3"))
    bench.take(new)
    assert bench.label("1.2.3") == State.REPORTED


@pytest.fixture
def unaddressed(tmp_path: Path, archive: Archive) -> Iterator[tuple[Bench, str]]:
    """A node of whose settings nobody gets reports, and a study that it has labelled."""
    made = Bench(tmp_path / "unaddressed", archive.port, may=frozenset({"push"}))
    made.settings = made.settings.model_copy(update={"purge_margin_mib": 0})
    made.clock.now = time.time()
    study = made.take(a_series("leg", 1, name="unaddressed"))
    assert made.label(study) == State.REPORTED
    yield made, study
    made.ledger.engine.dispose()


def test_a_study_whose_reports_go_to_nobody_stays_and_the_setting_that_mends_it_is_named(
    unaddressed: tuple[Bench, str],
) -> None:
    bench, study = unaddressed
    later(bench, 1000)
    with capture_logs() as logs:
        assert purger(bench, free_mib=-1).purge() == 0
    assert state_of(bench, study) == State.REPORTED
    assert "set destinations = []" in logs[-1]["remedy"]


def test_where_somebody_has_said_that_nobody_gets_reports_a_labelled_study_is_finished(
    unaddressed: tuple[Bench, str],
) -> None:
    bench, study = unaddressed
    bench.settings = bench.settings.model_copy(update={"destinations": ()})
    assert purger(bench).purge() == 0
    assert state_of(bench, study) == State.SENT
    assert "destinations = []" in told(story(bench.ledger, study))
    later(bench, 31)
    assert purger(bench).purge() == 1
    assert bench.ledger.issued.of_study(study)[0].path.exists()


def test_reports_that_nobody_got_are_owed_to_who_gets_reports_later(
    unaddressed: tuple[Bench, str], bench: Bench
) -> None:
    before, study = unaddressed
    before.settings = before.settings.model_copy(update={"destinations": ()})
    purger(before).purge()
    sent(bench, a_series("leg", 1, name="with a destination"))
    assert bench.ledger.orders.take_up_unowed() == 0
    assert before.ledger.orders.take_up_unowed() == 1
    assert state_of(before, study) == State.QUEUED


def mixed(name: str) -> list[Dataset]:
    """Images of two patients in one study, which is laid aside."""
    two = a_series("leg", 2, name=name)
    two[1].PatientID = "SOMEBODY-ELSE"
    return two


def test_a_dismissed_study_goes_after_retention_and_its_reason_stays(bench: Bench) -> None:
    study = bench.take(mixed("dismissed"))
    assert bench.label(study) == State.QUARANTINED
    assert study in told(overview(bench.ledger)).partition("Not labelled")[2]
    assert bench.ledger.orders.dismiss_study(study, Dismissal("anna", "sent by mistake"))
    assert "Not labelled" not in told(overview(bench.ledger))
    later(bench, 29.9)
    assert purger(bench).purge() == 0
    later(bench, 0.2)
    assert purger(bench).purge() == 1
    assert state_of(bench, study) == State.PURGED
    assert list(bench.spool.files()) == []
    assert "dismissed by anna" in told(story(bench.ledger, study))
    assert not bench.ledger.orders.retry_study(study)


def test_a_dismissed_study_makes_room_before_its_time(bench: Bench) -> None:
    study = bench.take(mixed("room"))
    bench.label(study)
    assert purger(bench, free_mib=-1).purge() == 0
    bench.ledger.orders.dismiss_study(study, Dismissal("anna", "the disk is full"))
    assert purger(bench, free_mib=-1).purge() == 1
    row = bench.ledger.study(study)
    assert row is not None
    assert re.fullmatch(
        r"purged for room at \S+ \S+, before retention_days; it was dismissed by anna at .*", row.reason
    )


def test_a_dismissed_study_that_is_pushed_again_is_looked_at_again(bench: Bench) -> None:
    images = mixed("once more")
    study = bench.take(images)
    bench.label(study)
    bench.ledger.orders.dismiss_study(study, Dismissal("anna", "sent by mistake"))
    bench.take(images)
    assert state_of(bench, study) == State.DISMISSED, "all of it is here already"
    later(bench, 31)
    purger(bench).purge()
    bench.take(images)
    assert state_of(bench, study) == State.RECEIVING
    assert bench.label(study) == State.QUARANTINED


def test_below_the_watermark_the_oldest_sent_studies_go_until_there_is_room(bench: Bench) -> None:
    studies = []
    for name in ("first", "second", "third"):
        studies.append(sent(bench, a_series("leg", 1, name=name)))
    assert purger(bench, free_mib=-2).purge() == 2
    assert [state_of(bench, uid) for uid in studies] == [State.PURGED, State.PURGED, State.SENT]
    early, _, kept = (bench.ledger.study(uid) for uid in studies)
    assert early is not None
    assert kept is not None
    assert early.reason == f"purged for room at {moment(bench.clock.now)}, before retention_days"
    assert kept.reason == ""
    assert early.reason in told([tabled("Studies", bench.ledger.studies(), why=True)])
    assert "reason" not in told([tabled("Studies", [kept], why=True)])


def test_a_clock_that_was_set_ahead_purges_nothing_for_a_day(bench: Bench) -> None:
    sent(bench, a_series("leg", 1, name="ahead"))
    later(bench, 365)
    set_at = bench.clock.now
    doubting = Purger(bench.settings, bench.ledger, bench.spool, lambda: set_at)
    assert doubting.purge() == 0
    later(bench, 1.1)
    assert doubting.purge() == 1


def test_a_clock_that_was_set_ahead_ends_no_promise_even_where_room_is_wanted(bench: Bench) -> None:
    images = a_series("leg", 1, name="promised")
    promised, other = sent(bench, images), sent(bench, a_series("leg", 1, name="not promised"))
    bench.ledger.holdings.promise([images[0].SOPInstanceUID])
    later(bench, 365)
    set_at = bench.clock.now
    doubting = Purger(bench.settings, bench.ledger, Small(bench.spool, -5), lambda: set_at)
    assert doubting.purge() == 1
    assert [state_of(bench, study) for study in (promised, other)] == [State.SENT, State.PURGED]
    later(bench, 1.1)
    assert doubting.purge() == 1


def test_a_watcher_lets_nothing_go_for_its_age_before_a_clock_that_was_wrong_at_the_start_is_right(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, stop = sent(bench, a_series("leg", 1, name="boot")), threading.Event()
    later(bench, 3650)
    purge = Purger.purge

    def once(purger: Purger) -> int:
        purged = purge(purger)
        stop.set()
        return purged

    monkeypatch.setattr(Purger, "purge", once)
    watch(bench.settings, bench.ledger, Silent(Celery()), bench.spool, stop)
    assert state_of(bench, study) == State.SENT


def test_a_promise_to_a_scanner_is_kept_for_the_retention_time_and_nothing_purged_is_promised(bench: Bench) -> None:
    images = a_series("leg", 1, name="promise")
    study = sent(bench, images)
    held = Commitments(bench.settings, bench.spool, bench.ledger)._held
    later(bench, 20)
    bench.ledger.holdings.promise([images[0].SOPInstanceUID])
    later(bench, 20)
    assert purger(bench, free_mib=-5).purge() == 0
    later(bench, 11)
    assert purger(bench).purge() == 1
    request, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = images[0].SOPClassUID, images[0].SOPInstanceUID
    request.TransactionUID, request.ReferencedSOPSequence = "1.2", [item]
    assert "ReferencedSOPSequence" not in judged(request, held)
    other = changed(a_series("leg", 1, name="promise"), lambda image: setattr(image, "PatientComments", "other"))
    bench.take(other)
    assert [i.conflict for i in bench.ledger.instances(study)] == [False, True]
    assert "ReferencedSOPSequence" not in judged(request, held)


def an_answer(bench: Bench, uid: str) -> Path:
    """An answer about storage commitment that is owed to the archive."""
    request, item = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2", "1.2.3"
    request.TransactionUID, request.ReferencedSOPSequence = uid, [item]
    path = bench.spool.store_report(uid, as_file(judged(request, lambda _: None), uid))
    bench.ledger.deliveries.owe_commitment(uid, path, "pacs")
    return path


@pytest.mark.parametrize("heard", [True, False])
def test_an_answer_about_storage_commitment_goes_with_its_promise(bench: Bench, heard: bool) -> None:
    path = an_answer(bench, "1.2.3.9")
    due = bench.ledger.deliveries.claim("pacs", 30)
    assert due is not None
    bench.ledger.deliveries.settle(due, Delivery.SENT if heard else Delivery.WAITING, "told")
    later(bench, 29.9)
    purger(bench).purge()
    assert path.exists()
    later(bench, 0.2)
    with capture_logs() as logs:
        purger(bench).purge()
    assert not path.exists()
    assert bench.ledger.rows(select(report.c.path)) == bench.ledger.rows(select(delivery.c.state)) == []
    unheard = [entry["unheard_by"] for entry in logs if entry["event"].startswith("answers about storage commitment")]
    assert unheard == ([] if heard else [{"pacs": 1}])


def test_an_answer_that_is_on_its_way_or_was_asked_for_again_stays(bench: Bench) -> None:
    paths = [an_answer(bench, "1.2.3.8"), an_answer(bench, "1.2.3.9")]
    later(bench, 20)
    again = bench.ledger.deliveries.claim("pacs", 30, report_uid="1.2.3.8")
    assert again is not None
    bench.ledger.deliveries.settle(again, Delivery.SENT, "0x0000")
    later(bench, 11)
    assert bench.ledger.deliveries.claim("pacs", 30, report_uid="1.2.3.9") is not None
    purger(bench).purge()
    assert all(path.exists() for path in paths)
    later(bench, 1)
    doubting = Purger(bench.settings, bench.ledger, bench.spool, lambda: bench.clock.now)
    doubting.purge()
    assert [path.exists() for path in paths] == [True, True], "the clock was set"
    purger(bench).purge()
    assert [path.exists() for path in paths] == [True, False]


@pytest.mark.parametrize("rejected", [False, True])
def test_sheets_that_have_arrived_go_with_their_images_unless_somebody_gets_notes_on_them(
    tmp_path: Path, archive: Archive, rejected: bool
) -> None:
    bench = Bench(tmp_path / "sheets", archive.port, sheet=True, reject_superseded=rejected)
    bench.clock.now = time.time()
    study = bench.take(a_series("leg", 2, name="sheet"))
    bench.label(study)
    assert bench.deliver_all() == [Delivery.SENT, Delivery.SENT]
    later(bench, 31)
    assert purger(bench).purge() == 1
    (kept,) = bench.ledger.issued.of_study(study)
    sheet = bench.ledger.issued.sheet(sheet_uid(kept.sop_instance_uid))
    assert (sheet is not None) == rejected
    assert len(list(bench.spool.reports.glob("*.dcm"))) == 1 + rejected
    assert sheet_uid(kept.sop_instance_uid) in told(story(bench.ledger, study)), "that it was sent is still known"
    bench.take(a_series("leg", 2, name="sheet"))
    assert bench.label(study) == State.SENT
    bench.ledger.engine.dispose()


def test_a_sheet_of_which_a_person_may_think_better_stays(tmp_path: Path, archive: Archive) -> None:
    bench = Bench(tmp_path / "sheets", archive.port, sheet=True)
    bench.clock.now = time.time()
    study = bench.take(a_series("leg", 2, name="sheet"))
    bench.label(study)
    bench.ledger.deliveries.dismiss(Dismissal("anna", "gone"), "pacs", waiting=True)
    later(bench, 31)
    assert purger(bench).purge() == 1
    (kept,) = bench.ledger.issued.of_study(study)
    uid = sheet_uid(kept.sop_instance_uid)
    assert bench.ledger.deliveries.retry_all("pacs", uid) == 1
    assert bench.deliver_all() == [Delivery.SENT]
    bench.ledger.engine.dispose()


def test_what_scanners_and_archives_said_of_a_study_goes_with_its_images(bench: Bench) -> None:
    study = sent(bench, a_series("leg", 1, name="steps"))
    for uid, status in (("1.2.3.1", StepStatus.COMPLETED), ("1.2.3.2", StepStatus.IN_PROGRESS)):
        bench.ledger.performed.create(PerformedStep(uid, study, "ct1", status, frozenset({"1.2"})))
    bench.ledger.performed.counted(study, "pacs", 1)
    later(bench, 31)
    assert purger(bench).purge() == 1
    assert [step.sop_instance_uid for step in bench.ledger.performed.steps(study)] == ["1.2.3.2"]
    assert bench.ledger.rows(select(archive_count)) == []


def test_a_new_series_of_a_purged_study_is_labelled_beside_the_old_report(bench: Bench) -> None:
    first = a_series("leg", 2, name="grows")
    study = sent(bench, first)
    (before,) = bench.ledger.issued.of_study(study)
    later(bench, 31)
    purger(bench).purge()
    second = a_series("leg", 3, name="grows")
    for image in second:
        image.SeriesInstanceUID += ".2"
        image.SOPInstanceUID += ".2"
    bench.take(second)
    assert bench.label(study) == State.REPORTED
    assert bench.deliver_all() == [Delivery.SENT]
    assert state_of(bench, study) == State.SENT
    reports = bench.ledger.issued.of_study(study)
    assert {r.source_series_uid for r in reports} == {first[0].SeriesInstanceUID, second[0].SeriesInstanceUID}
    assert bench.ledger.issued.current(study, first[0].SeriesInstanceUID) == before


def test_late_images_of_a_purged_series_wait_for_the_whole_of_it(bench: Bench) -> None:
    images = a_series("torso", 6, name="late")
    study = sent(bench, images[:4])
    (before,) = bench.ledger.issued.of_study(study)
    later(bench, 31)
    purger(bench).purge()
    bench.take(images[4:])
    assert bench.label(study) == State.UNLABELLED
    assert bench.ledger.issued.current(study, images[0].SeriesInstanceUID) == before
    assert bench.reasons() == {FILES_GONE: 2}
    assert "4 of 6 images are gone; push the whole series again" in told(story(bench.ledger, study))
    assert FILES_GONE in told(overview(bench.ledger))
    bench.take(images)
    assert bench.label(study) == State.REPORTED
    assert bench.reasons() == {}
    (after,) = [r for r in bench.ledger.issued.of_study(study) if r != before]
    report = dcmread(after.path)
    assert (
        len(report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence) == 6
    )
    assert before.sop_instance_uid in str(report.PredecessorDocumentsSequence)


def test_images_that_were_away_while_their_study_was_prepared_are_labelled(bench: Bench) -> None:
    images = a_series("torso", 6, name="ahead")
    study = sent(bench, images[:4])
    later(bench, 31)
    purger(bench).purge()
    bench.take(images[4:])
    while not bench.pipeline.prepare(study):
        pass
    bench.take(images)
    assert bench.label(study) == State.REPORTED
    assert bench.reasons() == {}
    current = bench.ledger.issued.current(study, images[0].SeriesInstanceUID)
    assert current is not None
    assert json.loads(current.summary)["images"] == 6


def test_a_purged_study_that_is_pushed_again_keeps_its_report(bench: Bench) -> None:
    images = a_series("leg", 2, name="again")
    study = sent(bench, images)
    later(bench, 31)
    purger(bench).purge()
    bench.take(images)
    bench.clock.now = time.time()
    assert state_of(bench, study) == State.RECEIVING
    assert bench.label(study) == State.SENT
    assert len(bench.ledger.issued.of_study(study)) == 1
    assert purger(bench).purge() == 0
    later(bench, 31)
    assert purger(bench).purge() == 1


def test_an_image_that_a_purge_takes_while_it_is_sent_again_is_not_acknowledged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = images = a_series("leg", 1, name="meets")
    study = sent(bench, images)
    later(bench, 31)
    enter = bench.ledger.add_instance

    def overtaken(new: Instance, former: Callable[[], str]) -> bool:
        """The receiver has found the file in its place; before it looks into the ledger, the purge has its turn."""
        purger(bench).purge()
        return enter(new, former)

    with monkeypatch.context() as patched:
        patched.setattr(bench.ledger, "add_instance", overtaken)
        assert pushed(bench, image) == OutOfResources.status
    assert state_of(bench, study) == State.PURGED
    assert pushed(bench, image) == SUCCESS
    assert [i.path.exists() for i in bench.ledger.instances(study)] == [True]


@pytest.mark.parametrize("purged", [False, True])
def test_a_disk_that_fails_while_an_image_is_sent_again_is_answered_with_out_of_resources(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, purged: bool
) -> None:
    (image,) = images = a_series("leg", 1, name="stale")
    sent(bench, images)
    if purged:
        later(bench, 31)
        assert purger(bench).purge() == 1

    def stale(_: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", stale)
        assert pushed(bench, image) == OutOfResources.status
    assert pushed(bench, image) == SUCCESS


def pushed(bench: Bench, image: Dataset) -> int:
    """What a scanner is answered."""
    named = Announced(str(image.SOPClassUID), str(image.SOPInstanceUID), str(image.file_meta.TransferSyntaxUID))
    peer = Peer(name="ct1", ae_title="CT1", host="any")
    coming = Intake(bench.settings, bench.spool, bench.ledger).begin(named, Sender("CT1", "h", "ct1"), peer)
    coming.write(bytes_of(image))
    return coming.finish().status


# -- reconciliation ------------------------------------------------------------------------------------------------


def test_rows_whose_files_are_gone_are_marked_and_no_series_is_labelled_by_half(bench: Bench) -> None:
    images = a_series("torso", 4, name="lost")
    study = bench.take(images)
    gone = bench.ledger.instances(study)[1]
    kept = gone.path.read_bytes()
    gone.path.unlink()
    reconcile(bench.settings, bench.spool, bench.ledger)
    assert [i.absent for i in bench.ledger.instances(study)].count(Absent.MISSING) == 1
    assert bench.label(study) == State.UNLABELLED
    assert bench.reasons() == {FILES_GONE: 3}
    gone.path.write_bytes(kept)
    assert reconcile(bench.settings, bench.spool, bench.ledger) == 1
    assert bench.label(study) == State.REPORTED


def test_what_a_purge_takes_meanwhile_keeps_no_receiver_from_starting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = sent(bench, a_series("leg", 2, name="start"))
    later(bench, 31)
    listed = Spool.files

    def overtaken(spool: Spool) -> Iterator[Path]:
        found = list(listed(spool))
        purger(bench).purge()
        return iter(found)

    monkeypatch.setattr(Spool, "files", overtaken)
    assert reconcile(bench.settings, bench.spool, bench.ledger) == 0
    assert state_of(bench, study) == State.PURGED
    assert [i.absent for i in bench.ledger.instances(study)] == [Absent.PURGED] * 2


@pytest.mark.parametrize("revision", [1, 2])
def test_a_report_whose_file_is_lost_is_made_again_the_same(bench: Bench, revision: int) -> None:
    images = a_series("torso", 4, name="report lost")
    study = sent(bench, images[:3])
    if revision == 2:
        bench.take(images[3:])
        bench.label(study)
        assert bench.deliver_all() == [Delivery.SENT]
    current = bench.ledger.issued.current(study, images[0].SeriesInstanceUID)
    assert current is not None
    before = current.path.read_bytes()
    current.path.unlink()
    reconcile(bench.settings, bench.spool, bench.ledger)
    assert state_of(bench, study) == State.QUEUED
    assert bench.pipeline.label_study(study) == State.SENT
    assert current.path.read_bytes() == before
    assert bench.deliver_all() == []


def test_a_delivery_whose_report_is_lost_goes_when_it_is_made_again(bench: Bench) -> None:
    study = bench.take(a_series("leg", 2, name="unsent lost"))
    bench.label(study)
    (report,) = bench.ledger.issued.of_study(study)
    report.path.unlink()
    assert bench.deliver_all() == [Delivery.WAITING]
    assert bench.pipeline.label_study(study) == State.REPORTED
    later(bench, 1)
    assert bench.deliver_all() == [Delivery.SENT]
    assert state_of(bench, study) == State.SENT


def beside(images: Sequence[Dataset]) -> list[Dataset]:
    """Another series of the same study."""
    uid = f"{images[0].SeriesInstanceUID}.2"[-64:].lstrip(".0")

    def other(image: Dataset) -> None:
        image.SeriesInstanceUID = uid
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{uid[:50]}.{image.InstanceNumber}"

    return changed(a_series("torso", 3, name="lost meanwhile"), other)


def test_one_that_is_lost_while_images_come_goes_when_their_study_is_labelled(bench: Bench) -> None:
    images = a_series("torso", 3, name="lost meanwhile")
    study = bench.take(images)
    bench.label(study)
    (report,) = bench.ledger.issued.of_study(study)
    bench.take(beside(images))
    report.path.unlink()
    reconcile(bench.settings, bench.spool, bench.ledger)
    assert bench.deliver_all() == [Delivery.WAITING]
    assert bench.label(study) == State.REPORTED
    later(bench, 1)
    assert bench.deliver_all() == [Delivery.SENT] * 2
    assert state_of(bench, study) == State.SENT


def test_one_that_is_lost_and_superseded_meanwhile_holds_nothing_up(bench: Bench) -> None:
    images = a_series("torso", 4, name="lost and superseded")
    study = bench.take(images[:3])
    bench.label(study)
    (report,) = bench.ledger.issued.of_study(study)
    report.path.unlink()
    bench.take(images[3:])
    assert bench.deliver_all() == [Delivery.WAITING]
    assert bench.label(study) == State.REPORTED
    later(bench, 1)
    assert sorted(bench.deliver_all()) == [Delivery.LEFT_OUT, Delivery.SENT]  # type: ignore[type-var]
    assert state_of(bench, study) == State.SENT


def test_one_that_is_lost_is_made_again_though_another_could_not_be_delivered(bench: Bench) -> None:
    images = a_series("torso", 3, name="lost meanwhile")
    study = bench.take([*images, *beside(images)])
    bench.label(study)
    refused, lost = bench.ledger.issued.of_study(study)
    refused.path.write_bytes(b"rotten")
    assert bench.deliverer.deliver(refused.sop_instance_uid, "pacs") == Delivery.FAILED
    assert state_of(bench, study) == State.QUARANTINED
    lost.path.unlink()
    assert bench.deliver_all() == [Delivery.WAITING]
    assert bench.label(study) == State.QUARANTINED
    later(bench, 1)
    assert bench.deliver_all() == [Delivery.SENT]


def test_a_lost_report_that_cannot_be_made_again_is_said_to_be_so(bench: Bench) -> None:
    study = bench.take(a_series("leg", 2, name="all lost"))
    bench.label(study)
    (report,) = bench.ledger.issued.of_study(study)
    bench.ledger.instances(study)[0].path.unlink()
    report.path.unlink()
    reconcile(bench.settings, bench.spool, bench.ledger)
    assert bench.deliver_all() == [Delivery.FAILED]
    assert "cannot be made again" in told(story(bench.ledger, study))
    assert f"then `dicom-node retry {study}`" in told(story(bench.ledger, study))


def test_stray_reports_and_empty_folders_and_a_moved_home(bench: Bench, tmp_path: Path) -> None:
    study = bench.take(a_series("leg", 2, name="moved"))
    bench.spool.store_report("1.2.3", b"stray")
    (bench.spool.images / "1.2.3").mkdir()
    home = tmp_path / "elsewhere"
    bench.spool.images.parent.rename(home)
    settings = bench.settings.model_copy(update={"home": home})
    moved, ledger = Spool(home), Ledger(settings.ledger_url)
    assert reconcile(settings, moved, ledger) == 0
    assert {i.path.parent.parent for i in ledger.instances(study)} == {moved.images}
    assert [i.absent for i in ledger.instances(study)] == [Absent.HERE] * 2
    assert (moved.reports / "1.2.3.dcm").exists()
    assert not (moved.images / "1.2.3").exists()
