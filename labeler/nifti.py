"""A NIfTI volume -> planes: third axis = slices, the affine tells the orientation, CT in HU."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from labeler.errors import InputError
from labeler.prompts import Modality
from labeler.slices import Plane, Series, Skip, Skipped, Source, Stack, make_plane

#: From NIfTI's RAS+ world to DICOM's LPS+.
_LPS = np.array([-1.0, -1.0, 1.0])


def read_nifti(path: Path, modality: Modality, max_side: int) -> Series:
    """Read one volume; slices keep the order of the file.

    Raises:
        InputError: not a NIfTI volume of at least two dimensions, of one number a voxel, that lies somewhere.
    """
    try:
        image = nib.load(path)
        kind = np.dtype(image.get_data_dtype()).kind
        volume = np.asarray(image.dataobj, dtype=np.float32) if kind in "biuf" else None
        affine = np.asarray(image.affine, dtype=float)
    except Exception as error:  # a file may hold anything, and nibabel raises whatever it meets
        raise InputError(f"{path}: not a readable NIfTI volume ({str(error) or type(error).__name__})") from error
    if volume is None:
        raise InputError(f"{path}: a voxel is one number, of which this one has several (colours, or complex numbers)")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path}: its affine does not say how the volume lies; mend qform or sform")
    if volume.ndim < 2:
        raise InputError(f"{path}: a volume has rows and columns, this one has the shape {volume.shape}")
    volume = np.nan_to_num(volume.reshape(*volume.shape[:2], -1))
    return series_of_volume(volume, affine, modality, max_side)


def series_of_volume(
    volume: NDArray[np.float32], affine: NDArray[np.float64], modality: Modality, max_side: int
) -> Series:
    """Planes along the third axis of a volume (i, j, k) with its RAS+ affine (4, 4); blank slices are skipped."""
    steps = np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-9).tolist()
    axes = (affine[:3, :3] * _LPS[:, None]) / steps
    planes: list[Plane] = []
    skipped: list[Skipped] = []
    for index in range(volume.shape[2]):
        pixels = volume[:, :, index].T
        source = Source(index)
        if np.ptp(pixels) == 0:
            skipped.append(Skipped(source, Skip.EMPTY))
            continue
        origin = (affine @ [0, 0, index, 1])[:3] * _LPS
        planes.append(make_plane(pixels, axes[:, 0], axes[:, 1], origin, source, max_side, (steps[1], steps[0])))
    if not planes:
        return Series(modality, (), tuple(skipped), None, len(skipped))
    stack = Stack(planes[0].plane, tuple(planes))
    return Series(modality, (stack,), tuple(skipped), None, volume.shape[2])
