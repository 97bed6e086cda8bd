"""Series of one person agree however they are written; those of two do not, and nobody is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.identity import disagreements, identity_of
from tests.factories import a_series, saved


def told(tmp_path: Path, keyword: str, first: str, second: str) -> list[str]:
    by_series = {}
    for name, value in (("1.1", first), ("1.2", second)):
        (image,) = a_series("leg", 1, name="id")
        setattr(image, keyword, value)
        folder = saved([image], tmp_path / name)
        by_series[name] = [identity_of(folder / "0001.dcm")]
    return list(disagreements(by_series))


@pytest.mark.parametrize(
    ("keyword", "first", "second"),
    [
        ("PatientName", "DOE^JOHN", "Doe, John"),
        ("PatientName", "DOE^JOHN", ""),
        ("PatientBirthDate", "19600229", ""),
        ("PatientSex", "M", "M"),
    ],
)
def test_one_person_is_one_however_written(tmp_path: Path, keyword: str, first: str, second: str) -> None:
    assert told(tmp_path, keyword, first, second) == []


@pytest.mark.parametrize(
    ("keyword", "first", "second"),
    [
        ("PatientName", "DOE^JOHN", "DOE^JANE"),
        ("PatientBirthDate", "19600229", "19610228"),
        ("PatientSex", "M", "F"),
    ],
)
def test_two_people_are_told_apart_and_not_named(tmp_path: Path, keyword: str, first: str, second: str) -> None:
    (complaint,) = told(tmp_path, keyword, first, second)
    assert complaint == f"{keyword} of series 1.2 differs from that of 1.1"


def test_a_file_beyond_reading_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"no DICOM at all")
    assert identity_of(tmp_path / "x.dcm") == {}
