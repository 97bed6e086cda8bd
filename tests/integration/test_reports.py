"""Every kind of report through the validators, each of which must also catch what it is there to catch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from dicom_node.reports.amend import Amendment, Change, amended
from dicom_node.reports.gate import complaints
from dicom_node.reports.rendition import rendition
from dicom_node.reports.report import Context, Predecessor, build, encode
from dicom_node.reports.word import Verifier
from dicom_node.study import REPORT_CLASSES
from labeler.slices import Source
from labeler.sr import concept_of, read_report
from labeler.vocabulary import vocabulary
from tests.factories import a_series, an_answer, as_enhanced, changed
from tests.support import errors_of_dciodvfy, errors_of_dsrdump, errors_of_pixelmed, needs


def shown(position: int) -> tuple[str, ...]:
    return ("chest", "lung", "heart") if position % 7 < 4 else ("abdomen", "liver", "kidney")


def written(images: list[Dataset], folder: Path, **context: object) -> Path:
    answer = an_answer(images, shown)
    made = build(answer, Context(images[0], "content", datetime(2026, 1, 2, 3, 4, 5), **context))  # type: ignore[arg-type]
    path = folder / "report.dcm"
    path.write_bytes(encode(made))
    return path


def name(charset: object, value: str) -> Callable[[Dataset], None]:
    def change(image: Dataset) -> None:
        image.SpecificCharacterSet, image.PatientName = charset, value

    return change


def odd(image: Dataset) -> None:
    """What hospitals write and validators refuse."""
    code = Dataset()
    with config.disable_value_validation():
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "MRT_KOPF_NATIV_KM", "99OWN", "M" * 80
        image.ProcedureCodeSequence = [code]
        image.StudyDescription, image.PatientAge, image.StudyDate = "x" * 80, "45", "2026.01.02"


def without(*keywords: str) -> Callable[[Dataset], None]:
    def change(image: Dataset) -> None:
        for keyword in keywords:
            delattr(image, keyword)

    return change


KINDS: dict[str, Callable[[Dataset], None]] = {
    "plain": lambda _: None,
    "Japanese": name(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    "Latin-1": name("ISO_IR 100", "Müller^Jürgen"),
    "Cyrillic": name("ISO_IR 144", "Иванов^Иван"),
    "one code extension": name("ISO 2022 IR 100", "Müller^Jürgen"),
    "odd": odd,
    "UTF-8": name("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    "no Type 2": without("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
    "no names": without("PatientName", "PatientID"),
    "no series": without("SeriesNumber", "SeriesDescription", "Manufacturer"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", ["torso", "head"])
def test_validators_find_no_error(tmp_path: Path, kind: str, body: str) -> None:
    needs("dciodvfy", "dsrdump")
    images = changed(a_series(body, 12, name=f"valid {kind}"), KINDS[kind])
    path = written(images, tmp_path)
    assert errors_of_dciodvfy(path) == []
    assert errors_of_dsrdump(path) == []
    assert str(dcmread(path).PatientName) == str(images[0].get("PatientName", ""))


def test_a_successor_and_an_empty_answer_are_valid(tmp_path: Path) -> None:
    needs("dciodvfy", "dsrdump")
    images = a_series("torso", 5, name="successor")
    predecessor = Predecessor("1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.4")
    path = written(images, tmp_path, predecessors=(predecessor,), revision=2)
    assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) == []
    nothing = build(an_answer(images, lambda _: ()), Context(images[0], "c", datetime(2026, 1, 1)))
    path.write_bytes(encode(nothing))
    assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) == []


def test_two_thousand_images_are_valid_and_small(tmp_path: Path) -> None:
    needs("dciodvfy", "dsrdump")
    path = written(a_series("torso", 2000, name="large"), tmp_path)
    assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) == []
    assert path.stat().st_size <= 2_000_000


# -- templates -----------------------------------------------------------------------------------------------------


def amended_of(path: Path) -> Dataset:
    report, words = dcmread(path), vocabulary()
    said = read_report(report, words)
    assert said is not None
    sources = [Source(i, uid, cls, None, i + 1) for i, (cls, uid) in enumerate(said.images)]
    changes = [Change("heart", False), Change("pancreas", True, 2, 3)]
    header = a_series("torso", 1, name="t")[0]
    amendment = Amendment(changes, Verifier("Doe^Jane", "Hospital"), datetime(2026, 1, 3))
    return amended(report, said, sources, header, amendment, words)


def frames_of(images: list[Dataset]) -> Dataset:
    enhanced = as_enhanced(images)
    answer = an_answer([enhanced], shown, frames=True)
    return build(answer, Context(enhanced, "content", datetime(2026, 1, 2, 3, 4, 5)))


TEMPLATED: dict[str, Callable[[Path], Dataset]] = {
    "CT": lambda folder: dcmread(written(a_series("torso", 5, name="t"), folder)),
    "MR": lambda folder: dcmread(written(a_series("head", 5, name="t"), folder)),
    "multi-frame": lambda _: frames_of(a_series("torso", 5, name="t")),
    "amended": lambda folder: amended_of(written(a_series("torso", 5, name="t"), folder)),
    **{
        sop_class.name: lambda folder, sop_class=sop_class: rendition(  # type: ignore[misc]
            dcmread(written(a_series("torso", 5, name="t"), folder)), sop_class
        )
        for sop_class in REPORT_CLASSES[1:]
    },
    **{
        kind: lambda folder, kind=kind: dcmread(  # type: ignore[misc]
            written(changed(a_series("torso", 5, name=kind), KINDS[kind]), folder)
        )
        for kind in ("Japanese", "no Type 2")  # all of them above; a template is the same in other letters
    },
}


@pytest.mark.parametrize("kind", TEMPLATED)
def test_every_kind_keeps_to_its_template(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kind.dcm"
    path.write_bytes(encode(TEMPLATED[kind](tmp_path)))
    assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) + errors_of_pixelmed(path) == []


# -- negative controls: what each validator is there to catch, and the gate all of it -------------------------------


def drop_flag(report: Dataset) -> None:
    del report.CompletionFlag


def drop_evidence(report: Dataset) -> None:
    del report.CurrentRequestedProcedureEvidenceSequence


def wrong_relationship(report: Dataset) -> None:
    report.ContentSequence[-1].RelationshipType = "INFERRED FROM"


def finding_site_contained(report: Dataset) -> None:
    site = next(
        i for i in report.ContentSequence[-2].ContentSequence[-1].ContentSequence if concept_of(i) == "363698007"
    )
    site.RelationshipType = "CONTAINS"


def no_device(report: Dataset) -> None:
    report.ContentSequence = [i for i in report.ContentSequence if concept_of(i) != "121012"]


@pytest.mark.parametrize(
    ("harm", "finds"),
    [
        (drop_flag, errors_of_dciodvfy),
        (drop_evidence, errors_of_dciodvfy),
        (wrong_relationship, errors_of_dsrdump),
        (finding_site_contained, errors_of_pixelmed),
        (no_device, errors_of_pixelmed),
    ],
)
def test_the_validators_catch_what_is_wrong_and_so_does_the_gate(
    tmp_path: Path, harm: Callable[[Dataset], None], finds: Callable[[Path], list[str]]
) -> None:
    images = a_series("torso", 5, name="harmed")
    path = written(images, tmp_path)
    report = dcmread(path)
    harm(report)
    report.save_as(path)
    assert finds(path)
    assert list(complaints(dcmread(path), images[0], {str(i.SOPInstanceUID) for i in images}, vocabulary()))
