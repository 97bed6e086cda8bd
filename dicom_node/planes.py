"""Planes that wait for their study: decoded while images still come in. Only a cache; what is missing is decoded again.

    HOME/planes/STUDY/SOP-KEY.planes     KEY: of the image's bytes and of the preprocessing
    HOME/planes/STUDY/KEY.scores         KEY: of the pictures and of the bundle
    HOME/planes/STUDY/REPORT.scored      all scores for this report are there; empty

Bounded in bytes and age, gone when its study has its reports. A file appears under its name all at once, is never
trusted (`labeler.packed` carries a checksum) and never synced: a power cut costs a decoding.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from dicom_node import __version__
from dicom_node.study import Instance


@dataclass(frozen=True)
class Planes:
    """The cache under one folder, at most so many bytes; 0 keeps nothing. The reserve of the disk is not touched."""

    home: Path
    most_bytes: int
    reserve_bytes: int = 0

    def place(self, instance: Instance, preprocessing: str) -> Path:
        """Where the planes of an image lie.

        Args:
            preprocessing: hash of every number that shapes them.
        """
        key = hashlib.sha256(f"{instance.digest}|{preprocessing}|{__version__}".encode()).hexdigest()[:16]
        return self.place_of(instance.study_uid, f"{instance.sop_instance_uid}-{key}.planes")

    def place_of(self, study_uid: str, name: str) -> Path:
        return self.home / "planes" / study_uid / name

    def get(self, place: Path) -> bytes:
        """Raises OSError where nothing waits there."""
        return place.read_bytes()

    def put(self, place: Path, planes: bytes) -> bool:
        """False where the disk would not take them."""
        part = place.with_name(f"{uuid4().hex}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(part, "xb", opener=_private) as file:
                file.write(planes)
            part.rename(place)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            return False
        return True

    def drop(self, study_uid: str) -> None:
        """Forget the planes of a study."""
        shutil.rmtree(self.place_of(study_uid, ""), ignore_errors=True)

    def has_room(self) -> bool:
        """Is there less than may be? Counted on the disk, since several workers fill it."""
        free = shutil.disk_usage(self.home).free > self.reserve_bytes
        return self.most_bytes > 0 and free and sum(_size(file) for file in self._files()) < self.most_bytes

    def drop_older_than(self, moment: float) -> int:
        """Forget studies to which nothing was added since `moment`, seconds since the epoch; how many these were."""
        with suppress(OSError):
            old = [study for study in (self.home / "planes").iterdir() if study.stat().st_mtime < moment]
            for study in old:
                shutil.rmtree(study, ignore_errors=True)
            return len(old)
        return 0

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Files as they are listed; another worker may remove them, and their folder, at any time."""
        with suppress(OSError):
            for study in os.scandir(self.home / "planes"):
                with suppress(OSError):
                    yield from os.scandir(study)


def _size(file: os.DirEntry[str]) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
