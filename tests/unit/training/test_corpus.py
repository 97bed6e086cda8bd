"""Splits by person, and unknown is never absent."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from labeler.preprocess import PreprocessSpec, prepare
from labeler.vocabulary import vocabulary
from tests.support import SHARED
from training.corpus import ABSENT, PRESENT, UNKNOWN, LabelledStack, check_split, read_anatomy, states_from_ranges
from training.evaluate import stack_pictures

WORDS = vocabulary()


def rows(*entries: tuple[str, str, int, int]) -> list[dict[str, str]]:
    return [{"kind": k, "label": n, "first": str(a), "last": str(b)} for k, n, a, b in entries]


def test_ranges_are_inclusive_and_unsure_is_unknown():
    states = states_from_ranges(
        6, rows(("organ", "liver", 1, 3), ("unsure", "colon", 0, 5), ("station", "abdomen", 0, 5)), WORDS
    )
    assert states[:, WORDS.index("liver")].tolist() == [ABSENT, PRESENT, PRESENT, PRESENT, ABSENT, ABSENT]
    assert set(states[:, WORDS.index("colon")]) == {UNKNOWN}
    assert set(states[:, WORDS.index("heart")]) == {ABSENT}


def test_a_label_seen_and_unsure_elsewhere_is_unknown_elsewhere():
    states = states_from_ranges(3, rows(("organ", "liver", 0, 0), ("unsure", "liver", 0, 2)), WORDS)
    assert states[:, WORDS.index("liver")].tolist() == [PRESENT, UNKNOWN, UNKNOWN]


def stack(name: str, subject: str, split: str) -> LabelledStack:
    values = np.zeros((1, 8, 8), np.float16)
    return LabelledStack(name, subject, split, "CT", "axial", values, np.zeros((1, 63), np.int8), (0.0,))  # type: ignore[arg-type]


def test_a_person_in_two_splits_is_an_error():
    check_split([stack("a", "p1", "train"), stack("b", "p1", "train"), stack("c", "p2", "val")])
    with pytest.raises(ValueError, match="p1"):
        check_split([stack("a", "p1", "train"), stack("b", "p1", "val")])


def test_planes_and_labels_are_of_one_number():
    with pytest.raises(ValueError, match="2 planes but labels for 1"):
        LabelledStack(
            "x", "p", "train", "CT", "axial", np.zeros((2, 8, 8), np.float16), np.zeros((1, 63), np.int8), (0.0, 1.0)
        )


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A small collection in the slice-range layout: two people, one slice blank."""
    (tmp_path / "volumes").mkdir()
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        data = random.integers(-200, 200, (40, 50, 5)).astype(np.int16)
        data[:, :, 4] = -1024
        affine = np.diag([-2.0, -2.0, 5.0, 1.0])
        nib.save(nib.Nifti1Image(data, affine), tmp_path / "volumes" / f"{name}.nii.gz")
    columns = ["volume", "subject", "split", "modality", "slices", "licence"]
    with (tmp_path / "volumes.csv").open("w") as file:
        csv.writer(file).writerows(
            [columns, ["one", "p1", "train", "CT", 5, "own"], ["two", "p2", "val", "CT", 5, "own"]]
        )
    with (tmp_path / "labels.csv").open("w") as file:
        csv.writer(file).writerows(
            [
                ["volume", "kind", "label", "first", "last"],
                ["one", "organ", "liver", 0, 4],
                ["two", "unsure", "liver", 0, 4],
            ]
        )
    return tmp_path


def test_a_collection_is_read_with_its_blank_slices_left_out(collection: Path):
    spec = PreprocessSpec()
    one, two = read_anatomy(collection, spec, collection / "cache")
    assert one.values.shape == (4, spec.canvas, spec.canvas)
    assert (one.states[:, WORDS.index("liver")] == PRESENT).all()
    assert (two.states[:, WORDS.index("liver")] == UNKNOWN).all()
    assert one.positions == (0.0, 5.0, 10.0, 15.0)
    again, _ = read_anatomy(collection, spec, collection / "cache")
    assert np.array_equal(again.values, one.values)


def test_training_pictures_are_serving_pictures(collection: Path):
    """Train and serve cannot drift: the trainer's evaluation sees what `prepare` makes of the file (to float16)."""
    from labeler.nifti import read_nifti

    spec = PreprocessSpec()
    one, _ = read_anatomy(collection, spec)
    (served,) = read_nifti(collection / "volumes" / "one.nii.gz", "CT", spec.canvas).stacks
    expected = prepare([plane.pixels for plane in served.planes], served.mm, "CT", spec)
    assert np.abs(stack_pictures(one, spec).astype(int) - expected).max() <= 1


@pytest.mark.shared
def test_no_person_of_the_collection_is_in_two_splits():
    with (SHARED / "anatomy" / "volumes.csv").open(newline="") as file:
        splits: dict[str, set[str]] = {}
        for row in csv.DictReader(file):
            splits.setdefault(row["subject"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
