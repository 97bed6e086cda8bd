"""Real layouts, each proven on a small collection that is written here."""

from datetime import datetime
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from highdicom.seg import SegmentationTypeValues, SegmentDescription
from pydicom.sr.codedict import codes

from dicom_node.reports.report import Context, build
from labeler.preprocess import PreprocessSpec
from labeler.vocabulary import vocabulary
from tests.factories import a_series, an_answer, saved
from training.config import parse_config
from training.corpus import ABSENT, PRESENT, UNKNOWN
from training.hospital import read_hospital
from training.sources import read_stacks
from training.totalsegmentator import class_table, read_totalsegmentator, split_of

WORDS = vocabulary()
SPEC = PreprocessSpec()


def column(states: np.ndarray, name: str) -> list[int]:
    return states[:, WORDS.index(name)].tolist()


# -- TotalSegmentator ----------------------------------------------------------------------------------------------


def test_all_117_ct_and_50_mr_classes_have_a_place_in_the_vocabulary_or_none():
    table = class_table()
    assert (len(table["CT"]), len(table["MR"])) == (117, 50)
    used = {label for classes in table.values() for label in classes.values() if label}
    assert used <= set(WORDS.organs)
    assert {"liver", "lung", "cervical_spine", "rib", "gluteus_muscle", "psoas_muscle", "hip_bone"} <= used


@pytest.fixture
def totalsegmentator(tmp_path: Path) -> Path:
    """One subject, 40 x 40 x 20 of 10 mm: hip bones 0-5, liver 8-13, lungs 12-18; RAS with the second axis turned."""
    folder = tmp_path / "s0001"
    (folder / "segmentations").mkdir(parents=True)
    affine = np.diag([10.0, -10.0, 10.0, 1.0])
    image = np.full((40, 40, 20), -1000, np.int16)
    image[8:32, 8:32] = 40
    nib.save(nib.Nifti1Image(image, affine), folder / "ct.nii.gz")
    where = {
        "hip_left": (0, 6),
        "hip_right": (0, 6),
        "liver": (8, 14),
        "lung_upper_lobe_left": (12, 19),
        "heart": (0, 0),
    }
    for name, (low, high) in where.items():
        mask = np.zeros(image.shape, np.uint8)
        mask[12:20, 12:20, low:high] = 1
        nib.save(nib.Nifti1Image(mask, affine), folder / "segmentations" / f"{name}.nii.gz")
    (tmp_path / "meta.csv").write_text("image_id;split\ns0001;test\n")
    return tmp_path


def test_totalsegmentator_is_read_in_three_planes(totalsegmentator: Path):
    stacks = list(read_totalsegmentator(totalsegmentator, SPEC))
    assert sorted(stack.plane for stack in stacks) == ["axial", "coronal", "sagittal"]
    assert {(stack.subject, stack.split, stack.modality) for stack in stacks} == {("s0001", "val", "CT")}
    assert all(stack.mm and 1 < stack.mm < 10 for stack in stacks)


def test_masks_become_labels_and_what_has_no_mask_is_unknown(totalsegmentator: Path):
    axial = next(s for s in read_totalsegmentator(totalsegmentator, SPEC) if s.plane == "axial")
    assert column(axial.states, "liver") == [ABSENT] * 8 + [PRESENT] * 6 + [ABSENT] * 6
    assert column(axial.states, "hip_bone")[:7] == [PRESENT] * 6 + [ABSENT]
    assert set(column(axial.states, "heart")) == {ABSENT}
    assert set(column(axial.states, "spleen")) == {UNKNOWN}
    assert set(column(axial.states, "tongue")) == {UNKNOWN}


def test_stations_follow_from_the_structures_that_bound_them(totalsegmentator: Path):
    axial = next(s for s in read_totalsegmentator(totalsegmentator, SPEC) if s.plane == "axial")
    assert [i for i, v in enumerate(column(axial.states, "chest")) if v == PRESENT] == list(range(12, 19))
    assert [i for i, v in enumerate(column(axial.states, "pelvis")) if v == PRESENT] == list(range(6))
    assert [i for i, v in enumerate(column(axial.states, "abdomen")) if v == PRESENT] == list(range(5, 14))
    assert set(column(axial.states, "head")) == {ABSENT}
    coronal = next(s for s in read_totalsegmentator(totalsegmentator, SPEC) if s.plane == "coronal")
    through_liver = coronal.states[coronal.states[:, WORDS.index("liver")] == PRESENT]
    assert set(column(through_liver, "chest")) == {PRESENT}
    assert set(column(through_liver, "abdomen")) == {PRESENT}


def test_a_mask_of_another_shape_is_named(totalsegmentator: Path):
    wrong = totalsegmentator / "s0001" / "segmentations" / "spleen.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), wrong)
    with pytest.raises(ValueError, match="spleen"):
        list(read_totalsegmentator(totalsegmentator, SPEC))


def test_a_person_s_split_is_always_the_same():
    people = [f"p{n}" for n in range(2000)]
    assert [split_of(p) for p in people] == [split_of(p) for p in people]
    assert 0.1 < sum(split_of(p) == "val" for p in people) / 2000 < 0.2


# -- the hospital's own --------------------------------------------------------------------------------------------


def test_dicom_seg_labels_the_images_in_which_it_has_pixels(tmp_path: Path):
    images = a_series("torso", 6, name="seg")
    saved(images, tmp_path / "images")
    pixels = np.zeros((6, 96, 96, 2), np.uint8)
    pixels[1:4, 20:40, 20:40, 0] = 1
    pixels[3:5, 60:70, 60:70, 1] = 1
    segments = [
        SegmentDescription(1, "Liver", codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL),
        SegmentDescription(2, "Spleen", codes.SCT.Organ, codes.SCT.Spleen, hd.seg.SegmentAlgorithmTypeValues.MANUAL),
    ]
    segmentation = hd.seg.Segmentation(
        images, pixels, SegmentationTypeValues.BINARY, segments, "1.2.3", 9, "1.2.3.4", 1, "M", "M", "1", "1"
    )
    segmentation.save_as(tmp_path / "seg.dcm")
    (stack,) = read_hospital(tmp_path, SPEC)
    assert column(stack.states, "liver") == [ABSENT, PRESENT, PRESENT, PRESENT, ABSENT, ABSENT]
    assert column(stack.states, "spleen") == [ABSENT, ABSENT, ABSENT, PRESENT, PRESENT, ABSENT]
    assert set(column(stack.states, "kidney")) == {UNKNOWN}
    assert set(column(stack.states, "chest")) == {UNKNOWN}


def corrected_report(images: list, folder: Path, verified: bool) -> None:
    answer = an_answer(images, lambda i: ("chest", "lung") if i < 2 else ("abdomen", "liver", "kidney"))
    from dicom_node.reports.report import Predecessor

    predecessor = Predecessor("1.2.840.10008.5.1.4.1.1.88.34", "1.2.3")
    report = build(answer, Context(images[0], "c", datetime(2026, 1, 1), 2, (predecessor,)))
    report.VerificationFlag = "VERIFIED" if verified else "UNVERIFIED"
    report.save_as(folder / "report.dcm", enforce_file_format=True)


def test_a_corrected_report_labels_its_images_completely(tmp_path: Path):
    images = a_series("torso", 5, name="corrected")
    saved(images, tmp_path / "images")
    corrected_report(images[:4], tmp_path, verified=True)
    (stack,) = read_hospital(tmp_path, SPEC)
    assert column(stack.states, "lung") == [PRESENT, PRESENT, ABSENT, ABSENT, UNKNOWN]
    assert column(stack.states, "kidney") == [ABSENT, ABSENT, PRESENT, PRESENT, UNKNOWN]
    assert column(stack.states, "foot") == [ABSENT] * 4 + [UNKNOWN]


def test_what_only_a_model_said_is_no_training_material(tmp_path: Path):
    images = a_series("torso", 4, name="unverified")
    saved(images, tmp_path / "images")
    corrected_report(images, tmp_path, verified=False)
    assert list(read_hospital(tmp_path, SPEC)) == []


def test_a_config_without_material_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match="names no collection"):
        read_stacks(parse_config({}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no subject folders"):
        read_stacks(parse_config({"data": {"totalsegmentator": str(tmp_path / "empty")}}))
