"""A file that is called a volume and is none is explained, whatever it holds."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from labeler.errors import InputError
from labeler.nifti import read_nifti

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])
VOXELS = np.random.default_rng(1).integers(0, 100, (40, 40, 6)).astype(np.int16)


def saved(folder: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), folder / "volume.nii.gz")
    return folder / "volume.nii.gz"


@pytest.mark.parametrize("kind", [[("R", "u1"), ("G", "u1"), ("B", "u1")], "complex64"], ids=["colour", "complex"])
def test_a_voxel_is_one_number(tmp_path: Path, kind: object) -> None:
    with pytest.raises(InputError, match=r"volume\.nii\.gz: a voxel is one number"):
        read_nifti(saved(tmp_path, np.zeros((40, 40, 6), np.dtype(kind))), "MR", 160)  # type: ignore[call-overload]


def test_a_volume_lies_somewhere(tmp_path: Path) -> None:
    path = saved(tmp_path, VOXELS)
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[280:328] = np.full(12, np.nan, "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(InputError, match="its affine does not say how the volume lies"):
        read_nifti(path, "MR", 160)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:20] + b"\xff" * 50 + data[70:],
        lambda data: b"no volume" * 100,
        lambda data: gzip.compress(gzip.decompress(data)[:2000]),
        lambda data: gzip.compress(gzip.decompress(data).replace(b"\x28\0\x28\0\6\0", b"\xfb\xff\x28\0\6\0", 1)),
    ],
    ids=["empty", "cut", "damaged", "text", "short", "negative"],
)
def test_a_spoilt_file_is_explained(tmp_path: Path, spoilt) -> None:
    path = saved(tmp_path, VOXELS)
    path.write_bytes(spoilt(path.read_bytes()))
    with pytest.raises(InputError, match=r"volume\.nii\.gz: "):
        read_nifti(path, "MR", 160)


def test_every_volume_of_four_dimensions_is_read(tmp_path: Path) -> None:
    series = read_nifti(saved(tmp_path, np.stack([VOXELS, VOXELS + 1], axis=-1)), "MR", 160)
    assert len(series.planes) == 12
