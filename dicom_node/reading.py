"""Images -> planes -> scores: what was prepared ahead from the cache, all else now. The same answers come out.

Decoding is the labeler's children's; nothing of a cached file is believed without its checksum.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dicom_node.errors import OutOfResources
from dicom_node.planes import Planes
from dicom_node.study import Instance
from labeler.dicom import Read
from labeler.packed import packed, unpacked
from labeler.sandbox import Sandbox
from labeler.slices import Skip, Source

if TYPE_CHECKING:
    from labeler.calibration import Logits
    from labeler.label import Labeler, Score
    from labeler.preprocess import Pictures
    from labeler.prompts import Modality, PlaneName

T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """Reads images for one preprocessing, as many at a time as there are children."""

    planes: Planes
    sandbox: Sandbox
    #: Hash of the preprocessing that the planes are for.
    preprocessing: str

    def read(self, instances: Iterable[Instance]) -> Iterator[Read]:
        """Images in their order.

        Raises:
            OutOfResources: the disk does not give one of them to us now.
        """
        return self._in_turn(self._read, instances)

    def prepare(self, instances: Sequence[Instance], seconds: float) -> bool:
        """Decode images ahead for about so many seconds; False when some are left."""
        missing = [instance for instance in instances if not self._place(instance).exists()]
        until = time.monotonic() + seconds
        for done, kept in enumerate(self._in_turn(self._keep, missing), start=1):
            if not kept:
                return True  # the disk takes no more, or gives no more: the others are decoded when they are labelled
            if time.monotonic() > until:
                return done == len(missing)
        return True

    def _place(self, instance: Instance) -> Path:
        return self.planes.place(instance, self.preprocessing)

    def _read(self, instance: Instance) -> Read:
        try:
            return unpacked(self.planes.get(self._place(instance)))
        except (OSError, ValueError):  # not prepared, or damaged
            return self._decoded(instance)

    def _keep(self, instance: Instance) -> bool:
        try:
            return self.planes.put(self._place(instance), packed(self._decoded(instance)))
        except OutOfResources:
            return False

    def _decoded(self, instance: Instance) -> Read:
        """A file whose decoder did not live to tell what it is stays with its series.

        Raises:
            OutOfResources: the disk does not give it to us now.
        """
        read = self.sandbox.read(instance.path)
        if read.skipped is not None and read.skipped.reason == Skip.AWAY:
            raise OutOfResources(f"{instance.path.parent}: {read.skipped.reason}: {read.skipped.detail}")
        if read.skipped is None or read.skipped.reason not in (Skip.CRASHED, Skip.TOO_SLOW, Skip.TOO_LARGE):
            return read
        source = Source(0, instance.sop_instance_uid, instance.sop_class_uid)
        return Read(instance.series_uid, instance.modality, skipped=replace(read.skipped, source=source))

    def _in_turn(self, work: Callable[[Instance], T], instances: Iterable[Instance]) -> Iterator[T]:
        pool = ThreadPoolExecutor(self.sandbox.processes)
        try:
            yield from pool.map(work, instances)
        finally:
            pool.shutdown(cancel_futures=True)


def remembered(labeler: Labeler, planes: Planes, study_uid: str, keep: bool) -> Score:
    """The labeler's scorer, which looks among the study's planes first and may keep there what it had to compute."""

    def scored(pictures: Pictures, modality: Modality, plane: PlaneName, batch_size: int) -> Logits:
        key = hashlib.sha256(f"{labeler.info.fingerprint}|{modality}|{plane}|{pictures.shape}".encode())
        key.update(pictures.tobytes())
        place = planes.place_of(study_uid, f"{key.hexdigest()}.scores")
        try:
            return _checked(planes.get(place), len(pictures))
        except (OSError, ValueError):
            logits = labeler.scorer.logits(pictures, modality, plane, batch_size)
        if keep:
            raw = logits.astype("<f4").tobytes()
            planes.put(place, zlib.crc32(raw).to_bytes(4, "little") + raw)
        return logits

    return scored


def _checked(data: bytes, rows: int) -> Logits:
    """Logits (rows, labels) from a file; ValueError where it is damaged."""
    if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise ValueError("not the scores that were written")
    return np.frombuffer(data, "<f4", offset=4).reshape(rows, -1)
