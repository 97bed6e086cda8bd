"""People's answers to reports: disputed, corrected here or in PACS, sent on, and read by training."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from highdicom.sr import CodedConcept
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import BasicTextSRStorage

from dicom_node import corrections
from dicom_node.corrections import _revised, amend, export
from dicom_node.demo.archive import Archive
from dicom_node.desk.corrections import shown
from dicom_node.desk.status import story
from dicom_node.errors import ConfigurationError, Quarantine, Superseded
from dicom_node.reports.amend import Amendment, Change
from dicom_node.reports.rendition import rendition
from dicom_node.reports.report import encode
from dicom_node.study import Delivery, Kind, RemarkKind, State
from labeler.preprocess import PreprocessSpec
from labeler.vocabulary import vocabulary
from tests.factories import a_dispute, a_series, as_enhanced
from tests.parts import Bench, told
from tests.remarks import IMAGES, WHEN, WHO, a_label_of, corrected, heard, labels_of, the_report
from tests.support import errors_of_dciodvfy, errors_of_dsrdump
from training.hospital import read_hospital


def test_a_correction_supersedes_is_valid_and_goes_out(bench: Bench, archive: Archive, study: str) -> None:
    label, before = a_label_of(bench, study), the_report(bench, study)
    written = corrected(bench, study, Change(label, False))
    assert bench.ledger.issued.successor_of(before.sop_instance_uid)
    assert bench.deliver(study) == [None, Delivery.SENT]
    assert errors_of_dciodvfy(written.path) + errors_of_dsrdump(written.path) == []
    newest = next(r for r in archive.reports() if str(r.SOPInstanceUID) == written.sop_instance_uid)
    assert (newest.VerificationFlag, newest.VerifyingObserverSequence[0].VerifyingObserverName) == (
        "VERIFIED",
        WHO.name,
    )
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT
    assert f"removed {label}" in told([shown(bench.ledger.remarks())])
    assert f"current, verified by {WHO.name}" in told(story(bench.ledger, study))
    assert label not in json.loads(bench.ledger.issued.of_study(study)[-1].summary)["organs"]


def test_a_disk_that_is_away_loses_no_correction(bench: Bench, study: str) -> None:
    """It cannot be made again: it waits for the disk."""
    written = corrected(bench, study, Change(a_label_of(bench, study), False))
    elsewhere = bench.spool.reports.rename(bench.spool.reports.with_name("elsewhere"))
    assert bench.deliver(study) == [None, Delivery.WAITING]
    elsewhere.rename(bench.spool.reports)
    bench.clock.now += 600
    assert bench.deliverer.deliver(written.sop_instance_uid, "pacs") == Delivery.SENT


def test_a_remark_that_the_disk_does_not_give_is_heard_later(
    bench: Bench, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispute = a_dispute(dcmread(the_report(bench, study).path), "no", codes.DCM.QualityIssue)

    def away(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(corrections, "hear", away)
        assert heard(bench, study, dispute) == State.QUEUED
    bench.clock.now += 600
    bench.label(study)
    assert [said.kind for said, _ in bench.ledger.remarks(study)] == [RemarkKind.DISPUTE]
    assert bench.reasons() == {}


def test_only_the_newest_report_can_be_amended(bench: Bench, study: str) -> None:
    label = a_label_of(bench, study)
    corrected(bench, study, Change(label, False))
    with pytest.raises(Quarantine, match="superseded"):
        corrected(bench, study, Change("brain", True))
    said = Amendment([Change("brain", True)], WHO, WHEN)
    with pytest.raises(Quarantine, match="no report of this node"):
        amend(bench.settings, bench.ledger, bench.spool, "1.2.3", said)


def test_a_correction_without_effect_writes_nothing(bench: Bench, study: str) -> None:
    with pytest.raises(ConfigurationError, match="nothing would change"):
        corrected(bench, study, Change("brain", False))
    assert len(bench.ledger.issued.of_study(study)) == 1


def test_the_same_images_again_do_not_bring_the_machines_report_back(bench: Bench, study: str) -> None:
    written = corrected(bench, study, Change(a_label_of(bench, study), False))
    heard(bench, study, a_dispute(dcmread(written.path), "again", codes.DCM.QualityIssue))
    current = bench.ledger.issued.current(written.study_uid, written.source_series_uid)
    assert current is not None
    assert current.sop_instance_uid == written.sop_instance_uid


def test_two_corrections_of_one_report_make_no_rivals(bench: Bench, study: str, tmp_path: Path) -> None:
    first = corrected(bench, study, Change(a_label_of(bench, study), False))
    remark, _ = bench.ledger.remarks()[0]
    rival = replace(first, sop_instance_uid="1.2.3", predecessor=remark.report_uid)
    beside = [(replace(rival, sop_instance_uid="1.2.4", predecessor=None, kind=Kind.SHEET), ["pacs"])]
    again = replace(remark, sop_instance_uid="1.2.3")
    with pytest.raises(Superseded, match=f"amend {first.sop_instance_uid}"):
        bench.ledger.enter_remark(again, tmp_path, rival, ["pacs"], beside, alone=True)
    assert bench.ledger.issued.report("1.2.3") is bench.ledger.issued.sheet("1.2.4") is None
    assert len(bench.ledger.remarks()) == 1


def test_the_header_is_that_of_an_image_that_the_report_judges(bench: Bench) -> None:
    images = a_series("torso", IMAGES, name="a localizer first")
    localizer, *_ = a_series("torso", 1, name="a localizer first", body_part="HAND")
    localizer.SOPInstanceUID = localizer.file_meta.MediaStorageSOPInstanceUID = f"{images[0].SOPInstanceUID}.9"[-60:]
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    study = bench.take([localizer, *images])
    bench.label(study)
    before = json.loads(the_report(bench, study).summary)["header"]
    written = corrected(bench, study, Change("brain", True))
    after = json.loads(written.summary)["header"]
    assert (after["claimed"], before["claimed"]) == ("CHEST", "CHEST")
    lines = [item for item in dcmread(written.path).ContentSequence[-1].ContentSequence if "TextValue" in item]
    assert "Header Body Part Examined: CHEST" in str(lines[0].TextValue)
    assert "HAND" not in str(lines[0].TextValue)


def test_the_ledger_follows_what_a_correction_makes_of_the_header(bench: Bench, study: str) -> None:
    shown = json.loads(the_report(bench, study).summary)["stations"]
    written = corrected(bench, study, *(Change(name, False) for name in shown), Change("foot", True))
    summary = json.loads(written.summary)
    assert (summary["stations"], summary["header"]["agreement"]) == (["foot"], "DIFFER")
    assert "findings" not in summary


def test_a_verified_copy_without_groups_leaves_what_the_ledger_knows(bench: Bench, study: str) -> None:
    before = the_report(bench, study)
    theirs = rendition(dcmread(corrected(bench, study, Change("brain", True)).path), BasicTextSRStorage)
    path = bench.spool.store_report("1.2.9", encode(theirs))
    assert _revised(before.summary, dcmread(path), bench.ledger.instances(study)) == before.summary


def test_an_image_beyond_reading_does_not_silence_a_correction(bench: Bench, study: str) -> None:
    written = corrected(bench, study, Change("brain", True))
    for image in bench.ledger.instances(study):
        image.path.write_bytes(b"junk")
    summary = json.loads(_revised(written.summary, dcmread(written.path), bench.ledger.instances(study)))
    assert "brain" in summary["organs"]
    assert summary["header"]["claimed"] == "CHEST"


@pytest.mark.parametrize(
    "title", [codes.DCM.QualityIssue, codes.DCM.RejectedForQualityReasons], ids=lambda c: c.meaning
)
def test_a_dispute_is_heard_and_the_report_stays(bench: Bench, study: str, title: CodedConcept) -> None:
    report = the_report(bench, study)
    assert heard(bench, study, a_dispute(dcmread(report.path), "no gallbladder", title)) == State.SENT
    (remark, _), *others = bench.ledger.remarks()
    assert others == []
    assert (remark.kind, remark.report_uid) == (RemarkKind.DISPUTE, report.sop_instance_uid)
    assert "no gallbladder" in remark.note
    assert not bench.ledger.issued.successor_of(report.sop_instance_uid)
    assert len(bench.ledger.issued.of_study(study)) == 1


def test_a_bracket_in_a_remark_is_shown_as_it_is(bench: Bench, study: str) -> None:
    report = dcmread(the_report(bench, study).path)
    heard(bench, study, a_dispute(report, "see [/x] and [bold]", codes.DCM.QualityIssue))
    assert "see [/x] and [bold]" in told([shown(bench.ledger.remarks())])


def test_a_document_beyond_reading_does_not_keep_its_study_from_being_labelled(bench: Bench) -> None:
    images = a_series("torso", IMAGES, name="poison")
    broken = a_dispute(images[0], "broken", codes.DCM.QualityIssue)
    for item in broken.ContentSequence:
        if "ReferencedSOPSequence" in item:
            del item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    bench.take([broken], peer="review")
    assert bench.label(bench.take(images)) == State.REPORTED
    assert bench.reasons() == {"document cannot be read": 1}


def test_a_selection_for_teaching_is_no_dispute(bench: Bench, study: str) -> None:
    heard(bench, study, a_dispute(dcmread(the_report(bench, study).path), "nice", codes.DCM.ForTeaching))
    assert bench.ledger.remarks() == []
    assert "no image, and no remark on a report of ours" in bench.reasons()


def test_a_correction_made_elsewhere_supersedes_and_its_changes_are_counted(
    bench: Bench, study: str, tmp_path: Path
) -> None:
    label, report = a_label_of(bench, study), the_report(bench, study)
    elsewhere = Bench(tmp_path / "elsewhere", 1)
    again = elsewhere.take(a_series("torso", IMAGES, name="remarks"))
    elsewhere.label(again)
    theirs = dcmread(corrected(elsewhere, again, Change(label, False)).path)
    elsewhere.ledger.engine.dispose()
    assert heard(bench, study, theirs) == State.SENT
    (remark, _), *_ = bench.ledger.remarks()
    assert (remark.kind, remark.said_by) == (RemarkKind.CORRECTION, WHO.name)
    assert list(json.loads(remark.changes)["removed"]) == [label]
    current = bench.ledger.issued.current(report.study_uid, report.source_series_uid)
    assert current is not None
    assert current.sop_instance_uid == str(theirs.SOPInstanceUID)
    assert label not in json.loads(current.summary)["organs"]
    assert bench.deliver(study) == [None, None], "PACS sent it; it is not sent back"


def test_whoever_may_not_audit_is_named_and_changes_nothing(bench: Bench, study: str) -> None:
    report = the_report(bench, study)
    heard(bench, study, a_dispute(dcmread(report.path), "from a scanner", codes.DCM.QualityIssue), peer="ct1")
    assert bench.ledger.remarks() == []
    assert "dispute not allowed" in bench.reasons()


def test_training_reads_what_is_exported(bench: Bench, study: str, tmp_path: Path) -> None:
    label = a_label_of(bench, study)
    corrected(bench, study, Change(label, False), Change("urinary_bladder", True, 1, 2))
    assert export(bench.ledger, tmp_path / "corrected") == 1
    (stack,) = read_hospital(tmp_path / "corrected", PreprocessSpec())
    words = vocabulary()
    assert len(stack.states) == IMAGES
    assert (stack.states[:, words.index(label)] == 0).all()
    assert (stack.states[:, words.index("urinary_bladder")] == 1).sum() == 2


def test_images_that_have_left_are_passed_over(bench: Bench, study: str, tmp_path: Path) -> None:
    corrected(bench, study, Change(a_label_of(bench, study), False))
    for instance in bench.ledger.instances(study):
        instance.path.unlink()
    assert export(bench.ledger, tmp_path / "corrected") == 0


def test_a_file_of_one_frame_keeps_its_labels(bench: Bench) -> None:
    study = bench.take([as_enhanced(a_series("torso", IMAGES, name="one frame")[2:3])])
    bench.label(study)
    (before,) = labels_of(the_report(bench, study))
    assert before
    written = corrected(bench, study, Change("urinary_bladder", True))
    assert labels_of(written) == [before | {"urinary_bladder"}]
