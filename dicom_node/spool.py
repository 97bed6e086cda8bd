"""The disk. Alone in touching the files of studies and reports.

    HOME/spool/STUDY/SOP.dcm        images, as received
    HOME/spool/incoming/*.part      half-written; removed at start
    HOME/reports/REPORT.dcm         reports, written once

A file appears under its name only when all of it is on the disk: written, fdatasync, renamed, folder fsynced. A file's
modification time is when its image was received, so that the ledger can be rebuilt from the spool alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from dicom_node.errors import OutOfResources
from dicom_node.uids import is_uid


@dataclass(frozen=True)
class Stored:
    """A file that survives: its place, the digest of its data set, and when it was received."""

    path: Path
    digest: str
    size: int
    received_at: float
    #: Another object with this UID but other bytes lies here already.
    conflict: bool = False


class Spool:
    """Durable files under one folder."""

    def __init__(self, home: Path, reserve_bytes: int = 0) -> None:
        self.images = home / "spool"
        self.incoming = self.images / "incoming"
        self.reports = home / "reports"
        self.reserve_bytes = reserve_bytes
        for folder in (home, self.images, self.incoming, self.reports):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def store(self, study_uid: str, sop_instance_uid: str, header: bytes, data_set: bytes | memoryview) -> Stored:
        """Write one object durably; the same bytes under the same UID are written once.

        Args:
            header: preamble and File Meta Information.
            data_set: as received.
        Raises:
            OutOfResources: no room, or the disk failed; nothing is left behind.
        """
        digest = hashlib.sha256(data_set).hexdigest()
        target = self._place(study_uid, sop_instance_uid)
        conflict = False
        if target.exists():
            if self.digest_of(target) == digest:
                return _stored(target, digest)
            target, conflict = target.with_name(f"{sop_instance_uid}~{digest[:16]}.dcm"), True
            if target.exists():
                return _stored(target, digest, conflict=True)
        self._make_room(len(data_set))
        self._write(target, header, data_set)
        return _stored(target, digest, conflict=conflict)

    def store_report(self, sop_instance_uid: str, content: bytes) -> Path:
        """Write a report durably and return its place."""
        target = self.reports / f"{sop_instance_uid}.dcm"
        self._write(target, b"", content)
        return target

    def _place(self, study_uid: str, sop_instance_uid: str) -> Path:
        if not (is_uid(study_uid) and is_uid(sop_instance_uid)):
            raise ValueError("only UIDs become file names")
        return self.images / study_uid / f"{sop_instance_uid}.dcm"

    def _make_room(self, wanted: int) -> None:
        free = self.free()
        if free - wanted < self.reserve_bytes:
            raise OutOfResources(
                f"{free >> 20} MiB free at {self.images}, the reserve is {self.reserve_bytes >> 20} MiB: "
                "make room or lower reserve_mib"
            )

    def _write(self, target: Path, header: bytes, body: bytes | memoryview) -> None:
        part = self.incoming / f"{uuid4().hex}.part"
        try:
            with open(part, "xb", opener=_private) as file:
                file.write(header)
                file.write(body)
                file.flush()
                os.fdatasync(file.fileno())
            if not target.parent.exists():
                target.parent.mkdir(mode=0o700, exist_ok=True)
                _sync_folder(target.parent.parent)
            os.rename(part, target)
            _sync_folder(target.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutOfResources(f"{target.parent}: {error.strerror or error}") from error

    def files(self) -> Iterator[Path]:
        """Every image in the spool."""
        for study in self.images.iterdir():
            if study.is_dir() and study != self.incoming:
                yield from (path for path in study.iterdir() if path.suffix == ".dcm")

    def free(self) -> int:
        """Bytes free on the images' disk."""
        return shutil.disk_usage(self.images).free

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove images; those that are gone already are passed over."""
        for path in paths:
            path.unlink(missing_ok=True)

    def clear_incoming(self) -> int:
        """Remove what a killed receiver left half-written, and the folders of purged studies.

        Only for the receiver that owns this spool, at its start.
        """
        for study in self.images.iterdir():
            if study != self.incoming:
                with suppress(OSError):  # it holds images
                    study.rmdir()
        parts = list(self.incoming.glob("*.part"))
        for part in parts:
            part.unlink(missing_ok=True)
        return len(parts)

    @staticmethod
    def digest_of(path: Path) -> str:
        """SHA-256 of the data set in a spooled file."""
        with path.open("rb") as file:
            file.seek(_data_set_offset(file.read(144)))
            return hashlib.file_digest(file, "sha256").hexdigest()


def _data_set_offset(head: bytes) -> int:
    """Where the data set begins: after the preamble, `DICM` and the group that (0002,0000) measures (PS3.10 7.1)."""
    return 144 + int.from_bytes(head[140:144], "little")


def _stored(path: Path, digest: str, *, conflict: bool = False) -> Stored:
    status = path.stat()
    return Stored(path, digest, status.st_size, status.st_mtime, conflict)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
