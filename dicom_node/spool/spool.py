"""The disk. Alone in touching the files of studies and reports.

    HOME/spool/STUDY/SOP.dcm        images, as received; their preamble tells the digest of their data set (`seal`)
    HOME/spool/incoming/*.part      half-written; removed at start
    HOME/reports/REPORT.dcm         reports, written once

An image is acknowledged when all of it is on the disk: written under its name, fdatasync, folder fsynced, in this
order, which costs a file system with a journal one commit. A file that is not what its seal says was never
acknowledged, and gives way. A file's modification time is when its image was received, so that the ledger can be
rebuilt from the spool alone. A name is given once: of two writers of one UID, in whatever processes, the second finds
the first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from blake3 import blake3

from dicom_node.errors import ConfigurationError, OutOfResources
from dicom_node.settings import Durability
from dicom_node.spool.backlog import Backlog
from dicom_node.spool.blocks import BlockFile, Readable, locked, sweep, sync_folder
from dicom_node.spool.dataset import data_set_offset
from dicom_node.spool.seal import PREAMBLE, UNFINISHED, promised, seal_of
from dicom_node.uids import is_uid

log = structlog.get_logger("spool")

#: Bytes of a data set that are kept at hand while it comes; few have more before their identity is known.
_HEAD = 1 << 14
#: Bytes of an object after which the room on the disk is looked at again.
_LOOK_AGAIN = 16 << 20
#: Seconds for which room that was there is believed to be there still, for objects that begin.
_SHORT_WHILE = 0.02
#: Seconds for which an object waits for another association that writes the same one.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Stored:
    """A file that survives: its place, the digest of its data set, and when it was received."""

    path: Path
    digest: str
    size: int
    received_at: float
    #: Another object with this UID but other bytes lies here already.
    conflict: bool = False

    def former_digest(self) -> str:
        """SHA-256 of the data set, by which versions before docs/decisions/0021 entered it in the ledger.

        Raises:
            OutOfResources: the file has gone, or the disk failed.
        """
        try:
            with self.path.open("rb") as file:
                return _hashed(file, hashlib.sha256)
        except OSError as error:
            raise OutOfResources(f"{self.path}: {error.strerror or error}") from error


class Spool:
    """Durable files under one folder."""

    def __init__(self, home: Path, reserve_bytes: int = 0, durability: Durability = "each") -> None:
        self.images = home / "spool"
        self.incoming = self.images / "incoming"
        self.reports = home / "reports"
        self.reserve_bytes = reserve_bytes
        self._room_until = 0.0
        self._backlog = Backlog() if durability == "group" else None
        try:
            for folder in (home, self.images, self.incoming, self.reports):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"home {home}: {error.strerror} ({error.filename}); give it to the node's user, or set another `home`"
            ) from error

    def begin(self, header: bytes) -> Part:
        """Open a file for an object that is about to come.

        Args:
            header: preamble and File Meta Information.
        Raises:
            OutOfResources: no room, or the disk failed.
        """
        if self._backlog is not None and self._backlog.failure is not None:
            raise OutOfResources(
                f"{self.images}: {self._backlog.failure}; see to the disk and start the receiver again"
            )
        if (now := time.monotonic()) >= self._room_until:
            self.make_room(0)
            self._room_until = now + _SHORT_WHILE
        return Part(self, header)

    def store(self, study_uid: str, sop_instance_uid: str, header: bytes, data_set: bytes | memoryview) -> Stored:
        """Write one object durably; the same bytes under the same UID are written once.

        Args:
            header: preamble and File Meta Information.
            data_set: as received.
        Raises:
            OutOfResources: no room, or the disk failed; nothing is left behind.
        """
        with self.begin(header) as part:
            part.write(data_set)
            return part.commit(study_uid, sop_instance_uid)

    def close(self) -> None:
        """Bring to the disk what is not yet there."""
        if self._backlog is not None:
            self._backlog.drain()

    def store_report(self, sop_instance_uid: str, content: bytes) -> Path:
        """Write a report durably and return its place."""
        target = self.reports / f"{sop_instance_uid}.dcm"
        try:
            with closing(BlockFile(self.incoming)) as file:
                file.write(content)
                file.finish(durably=True)
                file.replace(target)
            sync_folder(target.parent)
        except OSError as error:
            raise OutOfResources(f"{target.parent}: {error.strerror or error}") from error
        return target

    def place(self, study_uid: str, sop_instance_uid: str) -> Path:
        if not (is_uid(study_uid) and is_uid(sop_instance_uid)):
            raise ValueError("only UIDs become file names")
        return self.images / study_uid / f"{sop_instance_uid}.dcm"

    def make_room(self, wanted: int) -> None:
        """Raise OutOfResources where so many bytes more would touch the reserve, or the disk does not tell."""
        try:
            free = self.free()
        except OSError as error:
            raise OutOfResources(f"{self.images}: {error.strerror or error}") from error
        if free - wanted < self.reserve_bytes:
            raise OutOfResources(
                f"{free >> 20} MiB free at {self.images}, the reserve is {self.reserve_bytes >> 20} MiB: "
                "make room, as `dicom-node health` says, or lower reserve_mib"
            )

    def keep(self, file: BlockFile, place: Path, digest: str) -> bool:
        """A file, or its like that lies there already, has this name for good; False where other bytes have it.

        Durability `each` returns when bytes and name would survive a power cut, `group` when they will soon.

        Raises:
            OSError: the disk failed.
        """
        while True:
            try:
                self._name(file, place)
            except FileExistsError:
                if (found := self._met(place, digest)) is not None:
                    return found
                continue
            if self._backlog is None:
                file.finish(durably=True)
                sync_folder(place.parent)
            else:
                file.finish()
                self._backlog.add(os.dup(file.descriptor), place)
            file.keep(place)
            return True

    def _name(self, file: BlockFile, place: Path) -> None:
        try:
            file.name(place)
        except FileNotFoundError:
            if file.was_swept:
                raise
            place.parent.mkdir(mode=0o700, exist_ok=True)  # a study's first image, or one of several
            sync_folder(self.images)
            self._name(file, place)

    @staticmethod
    def _met(place: Path, digest: str) -> bool | None:
        """Has a file that stands there these bytes, on the disk? None where it has gone, since it was never whole."""
        try:
            with locked(place, _PATIENCE) as file:
                if _hashed(file, blake3) == digest:
                    os.fdatasync(file.fileno())
                    sync_folder(place.parent)
                    return True
                if promised(_head(file)) not in (digest, ""):
                    return False
                place.unlink()
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            raise OutOfResources(f"{place}: another association is writing it; it may be sent again") from error
        return None

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
        """Remove what killed processes left half-written, and the folders of purged studies.

        What a living process writes is locked and stays.
        """
        for study in self.images.iterdir():
            if study != self.incoming:
                with suppress(OSError):  # it holds images
                    study.rmdir()
        return sum(sweep(part) for part in self.incoming.glob("*.part"))

    @staticmethod
    def digest_of(path: Path) -> str:
        """BLAKE3 of the data set in a spooled file (docs/decisions/0021)."""
        with path.open("rb") as file:
            return _hashed(file, blake3)

    def judge(self, path: Path) -> Stored | None:
        """A file that nobody has entered; None where a living receiver writes it, or it has gone.

        What a killed receiver, or a power cut, left in part was never acknowledged and gives its name up. Bytes that it
        has stay beside (*.torn): on a disk that rots they may have been an image.
        """
        torn = path.with_suffix(".torn")
        try:
            with locked(path) as file:
                digest, status = _hashed(file, blake3), os.fstat(file.fileno())
                if promised(_head(file)) in (None, digest):
                    return Stored(path, digest, status.st_size, status.st_mtime, conflict="~" in path.name)
                if status.st_size:
                    path.rename(torn)
                else:
                    path.unlink()
        except (BlockingIOError, FileNotFoundError):
            return None
        remedy = (
            f"its sender, which had no answer, sends it again; if not, push its study again, and remove {torn.name}"
        )
        log.warning("an image that is not whole", path=str(path), study_uid=path.parent.name, remedy=remedy)
        return None


class Part:
    """An object on its way to the disk: hashed as it is written, under no name before `commit`.

    Leaving the block without `commit` removes it.
    """

    def __init__(self, spool: Spool, header: bytes) -> None:
        self._spool, self._offset = spool, len(header)
        self._size, self._look_again = 0, _LOOK_AGAIN
        self._head = bytearray()
        self._file = BlockFile(spool.incoming)
        self._file.write_head(UNFINISHED + header[PREAMBLE:])

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def write(self, data: bytes | memoryview) -> None:
        """Append to the data set.

        Raises:
            OutOfResources: no room, or the disk failed.
        """
        self._size += len(data)
        if self._size >= self._look_again:
            self._spool.make_room(len(data))
            self._look_again = self._size + _LOOK_AGAIN
        if len(self._head) < _HEAD:
            self._head += data[: _HEAD - len(self._head)]
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    @property
    def head(self) -> bytes:
        """The data set's first bytes."""
        return bytes(self._head)

    @contextmanager
    def data_set(self) -> Iterator[BinaryIO]:
        """The data set, for reading, when all of it has come.

        Raises:
            OutOfResources: the disk failed.
        """
        try:
            self._file.finish()
            with self._file.reopened() as file:
                file.seek(self._offset)
                yield file
        except OSError as error:
            raise self._failed(error) from error

    def commit(self, study_uid: str, sop_instance_uid: str) -> Stored:
        """Give the object its place; the same bytes under the same UID are there once, other bytes stand beside them.

        Raises:
            OutOfResources: the disk failed; nothing is left behind.
        """
        target = self._spool.place(study_uid, sop_instance_uid)
        try:
            digest = self._file.digest
            self._file.stamp(seal_of(digest))
            beside = target.with_name(f"{sop_instance_uid}~{digest[:16]}.dcm")
            for place in (target, beside):
                if self._spool.keep(self._file, place, digest):
                    status = place.stat()
                    return Stored(place, digest, status.st_size, status.st_mtime, conflict=place is beside)
            raise OutOfResources(f"{beside}: other bytes stand under the name that is their digest")
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Remove what was written; nothing happens to what has been committed."""
        self._file.close()

    def _failed(self, error: OSError) -> OutOfResources:
        return OutOfResources(f"{self._spool.images}: {error.strerror or error}")


def _hashed(file: Readable, algorithm: Callable[[], Any]) -> str:
    file.seek(0)
    file.seek(data_set_offset(file.read(144)))
    return str(hashlib.file_digest(file, algorithm).hexdigest())


def _head(file: Readable) -> bytes:
    file.seek(0)
    return file.read(PREAMBLE + 4)
