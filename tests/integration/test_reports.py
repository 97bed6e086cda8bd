"""Every kind of report through the validators, each of which must also catch what it is there to catch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.report import Context, Predecessor, build, encode
from tests.factories import a_series, an_answer, changed
from tests.support import errors_of_dciodvfy, errors_of_dsrdump, needs


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
    path = written(images, tmp_path, predecessor=predecessor, revision=2)
    assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) == []
    nothing = build(an_answer(images, lambda _: ()), Context(images[0], "c", datetime(2026, 1, 1)))
    path.write_bytes(encode(nothing))
    assert errors_of_dciodvfy(path) + errors_of_dsrdump(path) == []


def drop_flag(report: Dataset) -> None:
    del report.CompletionFlag


def drop_evidence(report: Dataset) -> None:
    del report.CurrentRequestedProcedureEvidenceSequence


def wrong_relationship(report: Dataset) -> None:
    report.ContentSequence[-1].RelationshipType = "INFERRED FROM"


@pytest.mark.parametrize(
    ("harm", "finds"),
    [(drop_flag, errors_of_dciodvfy), (drop_evidence, errors_of_dciodvfy), (wrong_relationship, errors_of_dsrdump)],
)
def test_the_validators_catch_what_is_wrong(tmp_path: Path, harm: Callable, finds: Callable) -> None:
    needs("dciodvfy", "dsrdump")
    path = written(a_series("torso", 5, name="harmed"), tmp_path)
    report = dcmread(path)
    harm(report)
    report.save_as(path)
    assert finds(path)
