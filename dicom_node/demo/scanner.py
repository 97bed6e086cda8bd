"""A scanner: turns volumes into DICOM images and pushes them over an association of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE

from dicom_node.demo.phantoms import Volume, head, leg, paint, torso, with_noise
from dicom_node.errors import Retry
from dicom_node.uids import derived


@dataclass(frozen=True)
class Push:
    """One series as the scanner sends it, and whether a report on it is due."""

    title: str
    images: tuple[Dataset, ...]
    labelled: bool = True

    @property
    def study_uid(self) -> str:
        return str(self.images[0].StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        return str(self.images[0].SeriesInstanceUID)


def image_series(
    title: str, volume: Volume, modality: str, body_part: str, pixel_mm: float, heights: Sequence[float], patient: str
) -> Push:
    """Axial CT or MR images of a volume (n, rows, columns), head first supine."""
    study, series = derived("demo study", title), derived("demo series", title)
    images = []
    for number, (pixels, height) in enumerate(zip(volume, heights, strict=True), start=1):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        image.SOPInstanceUID = derived("demo image", title, str(number))
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID = derived("demo frame", title)
        image.PatientName, image.PatientID = f"Demo^{patient}", f"DEMO-{patient.upper()}"
        image.PatientBirthDate, image.PatientSex = "19600229", "O"
        image.StudyDate, image.StudyTime, image.AccessionNumber = "20260101", "101500", f"A-{patient.upper()}"[:16]
        image.StudyID, image.SeriesNumber, image.InstanceNumber = "1", 2, number
        image.Modality, image.Manufacturer, image.BodyPartExamined = modality, "Geometry", body_part
        image.SeriesDescription = title
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
        image.PatientPosition = "HFS"
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        corner = -pixel_mm * volume.shape[1] / 2
        image.ImagePositionPatient = [corner, corner, float(height)]
        image.PixelSpacing, image.SliceThickness = [pixel_mm, pixel_mm], 5
        _set_pixels(image, pixels, modality)
        images.append(image)
    return Push(title, tuple(images))


def _set_pixels(image: Dataset, pixels: Any, modality: str) -> None:
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    if modality == "CT":
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = -1024, 1, "HU"
        image.KVP = 120
        stored = np.clip(pixels + 1024, 0, 4095)
    else:
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "SE", "NONE", ""
        image.MRAcquisitionType, image.RepetitionTime, image.EchoTime, image.EchoTrainLength = "2D", 500, 15, 1
        stored = pixels
    image.PixelData = np.round(stored).astype("<i2").tobytes()


def drawn() -> Iterator[Push]:
    """Three series from geometry; the torso's header says HEAD, which is wrong on purpose."""
    heights = np.arange(-10.0, 385.0, 12.0)
    volume = with_noise(paint(torso(), 400, 192, heights, "CT"), "CT", 1)
    yield image_series("CT torso, header says HEAD", volume, "CT", "HEAD", 400 / 192, heights.tolist(), "Torso")
    heights = np.arange(5.0, 190.0, 7.0)
    volume = 1200 * with_noise(paint(head(), 250, 160, heights, "MR"), "MR", 2)
    yield image_series("MR head", volume, "MR", "HEAD", 250 / 160, heights.tolist(), "Head")
    heights = np.arange(0.0, 200.0, 12.0)
    volume = with_noise(paint(leg(), 220, 160, heights, "CT"), "CT", 3)
    yield image_series("CT leg", volume, "CT", "LEG", 220 / 160, heights.tolist(), "Leg")


def carried() -> Iterator[Push]:
    """Real images that our own dependencies carry for their tests: a brain volume and single slices of people."""
    brain = _nibabel_brain()
    if brain:
        yield brain
    for title, name, labelled in (
        ("CT head, one slice, JPEG 2000", "693_J2KI.dcm", True),
        ("CT, one slice", "CT_small.dcm", True),
        ("MR abdomen", "examples_overlay.dcm", True),
        ("screen capture in colour", "examples_rgb_color.dcm", False),
    ):
        path = _pydicom_file(name)
        if path:
            yield Push(title, (dcmread(path),), labelled)


def _pydicom_file(name: str) -> Path | None:
    import pydicom

    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    return path if path.is_file() else None


def _nibabel_brain() -> Push | None:
    import nibabel

    path = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    if not path.is_file():
        return None
    image: Any = nibabel.as_closest_canonical(nibabel.load(path).slicer[..., :1])
    volume = np.asarray(image.dataobj, np.float32)[..., 0]
    slices = np.ascontiguousarray(volume[::-1, ::-1].transpose(2, 1, 0))
    spacing = image.header.get_zooms()
    heights = [float(spacing[2]) * index for index in range(len(slices))]
    return image_series("MR brain of a volunteer", slices, "MR", "BRAIN", float(spacing[0]), heights, "Brain")


def push(images: Iterable[Dataset], host: str, port: int, called: str, calling: str, sent: Callable[[], None]) -> None:
    """Send images over one association, each in its own transfer syntax.

    Raises:
        Retry: the node did not take an image; a real scanner would try again.
    """
    images = list(images)
    entity = AE(calling)
    kinds = {(str(i.SOPClassUID), str(i.file_meta.TransferSyntaxUID)) for i in images}
    for sop_class, syntax in sorted(kinds):
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate(host, port, ae_title=called)
    if not association.is_established:
        raise Retry(f"{called} at {host}:{port} did not accept the association")
    try:
        for image in images:
            answer = association.send_c_store(image)
            if answer.get("Status") != 0x0000:
                raise Retry(f"{called} answered {answer.get('Status')} to {image.SOPInstanceUID}")
            sent()
    finally:
        association.release()
