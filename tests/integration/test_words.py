"""A person's word holds, whatever comes in which order, and one report stands on a series."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import BasicTextSRStorage

from dicom_node.corrections import amend, export
from dicom_node.demo.archive import Archive
from dicom_node.reports.amend import Amendment, Change
from dicom_node.reports.rendition import rendition
from dicom_node.reports.report import encode
from dicom_node.reports.word import Verifier
from dicom_node.spool.purge import Purger
from dicom_node.study import State
from tests.factories import a_dispute, a_series
from tests.parts import Bench
from tests.remarks import (
    ALL,
    IMAGES,
    WHEN,
    WHO,
    a_label_of,
    corrected,
    grown,
    heard,
    labels_of,
    made_elsewhere,
    named_by,
    the_report,
)
from tests.support import errors_of_dciodvfy, errors_of_dsrdump, errors_of_pixelmed

Growing = tuple[str, list[Dataset]]
ROE = Verifier("Roe^Richard", "General Hospital")


class AnotherModel:
    """The same labels by a bundle with another fingerprint."""

    def __init__(self, labeler: Any) -> None:
        self.labeler, self.info = labeler, replace(labeler.info, fingerprint="f" * 64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.labeler, name)

    def label(self, *arguments: Any, **named: Any) -> Any:
        return replace(self.labeler.label(*arguments, **named), bundle=self.info)


def a_text_copy(bench: Bench, of: Dataset, corrects: str) -> Dataset:
    text = rendition(of, BasicTextSRStorage)
    series = text.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = corrects
    return dcmread(bench.spool.store_report("1.2.9", encode(text)))


def test_a_person_s_word_holds_when_more_images_come(bench: Bench, archive: Archive, growing: Growing) -> None:
    study, late = growing
    label = a_label_of(bench, study)
    verified = corrected(bench, study, Change(label, False), Change("urinary_bladder", True, 1, 2))
    newest = grown(bench, late)
    assert named_by(newest) == [verified.sop_instance_uid]
    assert labels_of(newest)[:IMAGES] == labels_of(verified)
    assert any(labels_of(newest)[IMAGES:]), "the late images have the model's labels"
    report = dcmread(newest.path)
    assert report.VerificationFlag == "UNVERIFIED"
    text = "\n".join(str(e.value) for e in report.iterall() if e.keyword == "TextValue")
    assert f"{IMAGES} images keep their labels as verified by {WHO.name}" in text
    assert any(re.match("Urinary bladder: .*said by a person", line) for line in text.splitlines())
    assert errors_of_dciodvfy(newest.path) + errors_of_dsrdump(newest.path) + errors_of_pixelmed(newest.path) == []
    bench.deliver_all()
    assert archive.reports_per_series() == {newest.source_series_uid: 1}


def test_the_same_images_again_bring_the_same_report(bench: Bench, growing: Growing) -> None:
    study, late = growing
    corrected(bench, study, Change(a_label_of(bench, study), False))
    newest = grown(bench, late)
    before, count = newest.path.read_bytes(), len(bench.ledger.issued.of_study(study))
    newest.path.unlink()
    assert bench.ledger.holdings.make_again(study)
    bench.label(study)
    assert newest.path.read_bytes() == before
    assert len(bench.ledger.issued.of_study(study)) == count


def test_a_correction_heard_after_late_images_is_upheld_and_leaves_one_report(
    bench: Bench, growing: Growing, tmp_path: Path
) -> None:
    study, late = growing
    first, label = the_report(bench, study), a_label_of(bench, study)
    second = grown(bench, late)
    theirs = made_elsewhere(study, tmp_path, Change(label, False))
    theirs.SeriesInstanceUID = "1.2.3.4"
    third = grown(bench, [theirs], "review")
    assert second.sop_instance_uid in named_by(third)
    assert str(theirs.SOPInstanceUID) in named_by(third)
    assert first.sop_instance_uid not in named_by(third), "both of these name it"
    assert all(label not in labels for labels in labels_of(third)[:IMAGES])
    series = dcmread(third.path).PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert "1.2.3.4" in {str(one.SeriesInstanceUID) for one in series}
    assert errors_of_dciodvfy(third.path) + errors_of_dsrdump(third.path) == []


def test_what_stands_on_a_person_s_word_can_be_corrected_and_is_exported(
    bench: Bench, growing: Growing, tmp_path: Path
) -> None:
    study, late = growing
    corrected(bench, study, Change(a_label_of(bench, study), False))
    newest = grown(bench, late)
    assert export(bench.ledger, tmp_path / "one") == 1, "the word holds for its images"
    said = Amendment([Change("urinary_bladder", True, 8, 8)], Verifier("Roe^Richard", "General Hospital"), WHEN)
    last = amend(bench.settings, bench.ledger, bench.spool, newest.sop_instance_uid, said)
    assert "urinary_bladder" in labels_of(last)[7]
    assert dcmread(last.path).VerificationFlag == "VERIFIED"
    assert errors_of_dciodvfy(last.path) + errors_of_dsrdump(last.path) + errors_of_pixelmed(last.path) == []
    assert export(bench.ledger, tmp_path / "two") == 1
    assert [path.name for path in (tmp_path / "two").rglob(f"{last.sop_instance_uid}.dcm")]


def test_another_model_does_not_supersede_a_person(bench: Bench, growing: Growing) -> None:
    study, _ = growing
    verified = corrected(bench, study, Change(a_label_of(bench, study), False))
    bench.pipeline.model.loaded = AnotherModel(bench.labeler)
    heard(bench, study, a_dispute(dcmread(verified.path), "again", codes.DCM.QualityIssue))
    current = bench.ledger.issued.current(verified.study_uid, verified.source_series_uid)
    assert current is not None
    assert current.sop_instance_uid == verified.sop_instance_uid


def test_a_correction_is_not_superseded_by_what_hears_it(bench: Bench, growing: Growing, tmp_path: Path) -> None:
    study, _ = growing
    theirs = made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))
    bench.pipeline.model.loaded = AnotherModel(bench.labeler)
    assert grown(bench, [theirs], "review").sop_instance_uid == str(theirs.SOPInstanceUID)


def test_the_last_word_on_each_image_counts(bench: Bench, growing: Growing, tmp_path: Path) -> None:
    study, late = growing
    label, second = a_label_of(bench, study), grown(bench, late)
    said = Amendment([Change("urinary_bladder", True, 7, 8)], ROE, WHEN)
    amend(bench.settings, bench.ledger, bench.spool, second.sop_instance_uid, said)
    newest = grown(bench, [made_elsewhere(study, tmp_path, Change(label, False))], "review")
    assert all("urinary_bladder" in labels for labels in labels_of(newest)[IMAGES:])
    assert all(label not in labels for labels in labels_of(newest)[:IMAGES])
    told = [str(e.value) for e in dcmread(newest.path).iterall() if "as verified by" in str(e.value)]
    assert [line.split(" in report")[0] for line in told] == [
        f"2 images keep their labels as verified by {ROE.name}",
        f"6 images keep their labels as verified by {WHO.name}",
    ]


def test_the_note_on_what_a_late_correction_passed_goes(tmp_path: Path, archive: Archive) -> None:
    bench = Bench(tmp_path / "home", archive.port, reject_superseded=True)
    images = a_series("torso", ALL, name="remarks")
    study = bench.take(images[:IMAGES])
    bench.label(study)
    bench.deliver_all()
    grown(bench, images[IMAGES:])
    bench.deliver_all()
    grown(bench, [made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))], "review")
    for _ in range(4):
        bench.clock.now += 4000
        bench.deliver_all()
    row = bench.ledger.study(study)
    assert row is not None
    assert row.state == State.SENT


def test_corrections_in_the_wrong_order_do_not_keep_a_study_from_its_labels(
    bench: Bench, growing: Growing, tmp_path: Path
) -> None:
    study, late = growing
    first = made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))
    second = deepcopy(first)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = "1.2.3.77"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = first.SOPClassUID, first.SOPInstanceUID
    second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence.insert(0, reference)
    heard(bench, study, second)
    heard(bench, study, first)
    assert len(labels_of(grown(bench, late))) == ALL


def test_a_text_copy_that_comes_late_is_a_remark_and_no_report(bench: Bench, growing: Growing, tmp_path: Path) -> None:
    study, late = growing
    theirs = made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))
    text = a_text_copy(bench, theirs, the_report(bench, study).sop_instance_uid)
    second = grown(bench, late)
    assert grown(bench, [text], "review") == second
    assert len(bench.ledger.remarks(study)) == 1


def test_training_is_not_taught_by_text_copies(bench: Bench, growing: Growing, tmp_path: Path) -> None:
    study, _ = growing
    verified = corrected(bench, study, Change(a_label_of(bench, study), False))
    heard(bench, study, a_text_copy(bench, dcmread(verified.path), verified.sop_instance_uid))
    assert export(bench.ledger, tmp_path / "training") == 1
    assert list((tmp_path / "training").rglob(f"{verified.sop_instance_uid}.dcm"))


def test_a_correction_of_a_purged_study_is_a_remark(bench: Bench, growing: Growing, tmp_path: Path) -> None:
    study, late = growing
    second = grown(bench, late)
    bench.deliver_all()
    theirs = made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))
    bench.clock.now += 400 * 86400
    Purger(bench.settings, bench.ledger, bench.spool).purge()
    assert grown(bench, [theirs], "review") == second


def test_certainty_is_of_images_that_nobody_has_judged(bench: Bench, growing: Growing) -> None:
    study, late = growing
    label = "lung"
    corrected(bench, study, Change(label, label not in labels_of(the_report(bench, study))[0], 1, 1))
    newest = grown(bench, late)
    assert label in labels_of(newest)[-1], "the model sees it on the late images, too"
    told = [str(e.value) for e in dcmread(newest.path).iterall() if "said by a person" in str(e.value)]
    assert told == []


@pytest.mark.parametrize("name", ["Ωμέγα^Янь", "Yamada^Tarou=山田^太郎", "A" * 100 + "^B", "Doe\\Jane"])
def test_people_are_named_as_they_are(bench: Bench, tmp_path: Path, name: str) -> None:
    images = a_series("torso", ALL, name="remarks")
    for image in images:
        image.SpecificCharacterSet = "ISO_IR 100"
    study = bench.take(images[:IMAGES])
    bench.label(study)
    theirs = made_elsewhere(study, tmp_path, Change(a_label_of(bench, study), False))
    theirs.SpecificCharacterSet = "ISO_IR 192"
    theirs.VerifyingObserverSequence[0].VerifyingObserverName = name
    series = theirs.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = the_report(bench, study).sop_instance_uid
    heard(bench, study, theirs)
    newest = grown(bench, images[IMAGES:])
    assert errors_of_dciodvfy(newest.path) + errors_of_dsrdump(newest.path) == []
    (person,) = [str(e.value) for e in dcmread(newest.path).iterall() if e.keyword == "PersonName"]
    assert "?" not in person
    assert person[:3] == name[:3]
