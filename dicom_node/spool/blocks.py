"""A new file that is written in whole blocks, past the page cache where the file system can (O_DIRECT).

An object that is received is synchronised at once and read once, later. Through the page cache that costs two to four
times the processor's time, and half as much again in all (docs/decisions/0017).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from blake3 import blake3

#: A file that is open for reading.
Readable = BufferedReader | BufferedRandom

#: What direct writes are aligned to, in memory and in the file; bytes.
_BLOCK = 4096
#: Bytes of one write, but a file's last.
_AT_ONCE = 1 << 20
#: Buffers that no file uses; there are never more than files were open at a time.
_idle: deque[mmap.mmap] = deque()


class BlockFile:
    """A new file, locked while it is open, so that a process that ends, however it ends, unlocks it.

    What is short comes into being when it gets its name, all at once. What is long, or has to be read before, is begun
    as *.part in a folder. (It has a name from then on: on a file system without a journal, what had none when it was
    synchronised, O_TMPFILE, may have none after a power cut.)
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is created yet; where it has to be begun, it is in this folder."""
        self._hash = blake3()
        self._memory = _memory()
        self._buffer, self._filled, self._written = memoryview(self._memory), 0, 0
        self._folder = folder
        self._names: list[Path] = []
        self._closed = self._direct = False
        self.descriptor = -1

    def write_head(self, data: bytes) -> None:
        """Append what the digest leaves out."""
        self._append(memoryview(data))

    def stamp(self, data: bytes) -> None:
        """Write over the beginning, when all else has been written; the digest does not count it.

        Raises:
            OSError: it could not be written.
        """
        if self.descriptor < 0:
            self._buffer[: len(data)] = data
            return
        self._put_rest()
        self._past_cache(False)
        os.pwrite(self.descriptor, data, 0)

    def write(self, data: bytes | memoryview) -> None:
        """Append; all of it is in the file after `finish`.

        Raises:
            OSError: this, or what was appended before, could not be written.
        """
        data = memoryview(data)
        self._hash.update(data)
        self._append(data)

    def _append(self, rest: memoryview) -> None:
        while rest:
            piece = rest[: _AT_ONCE - self._filled]
            end = self._filled + len(piece)
            self._buffer[self._filled : end], self._filled = piece, end
            rest = rest[len(piece) :]
            if end == _AT_ONCE:
                self._begin()
                self._put(self._buffer)
                self._filled, self._written = 0, self._written + _AT_ONCE

    def finish(self, *, durably: bool = False) -> None:
        """Nothing more will be written: what is left goes to the file. May be called again, as for the disk's sake.

        Args:
            durably: wait until the disk has all of it (fdatasync).
        Raises:
            OSError: some of it could not be written.
        """
        self._begin()
        self._put_rest()
        if durably:
            os.fdatasync(self.descriptor)

    @property
    def digest(self) -> str:
        """BLAKE3 of all but the head, as far as it was written."""
        return self._hash.hexdigest()

    def _put_rest(self) -> None:
        """The end, which need not be a block's, goes through the page cache."""
        whole = self._filled - self._filled % _BLOCK if self._direct else self._filled
        self._put(self._buffer[:whole])
        if whole < self._filled:
            self._past_cache(False)
            self._put(self._buffer[whole : self._filled], whole)
        self._written, self._filled = self._written + self._filled, 0

    def name(self, target: Path) -> None:
        """Give it a name; it goes when the file is closed, unless it is kept.

        Raises:
            OSError: see open(2), link(2); FileExistsError where another file has that name.
        """
        if self.descriptor < 0:
            self._create(target)
        else:
            os.link(self._names[0], target)
            self._names.append(target)

    def keep(self, target: Path) -> None:
        """It has this name for good."""
        self._names.remove(target)

    def replace(self, target: Path) -> None:
        """Give it a name for good, which another file may have that goes then.

        Raises:
            OSError: see rename(2).
        """
        os.rename(self._names.pop(), target)

    @property
    def was_swept(self) -> bool:
        """Has somebody taken what was begun away?"""
        return self.descriptor >= 0 and not self._names[0].exists()

    def reopened(self) -> BinaryIO:
        """For reading what was written, after `finish`."""
        return self._names[0].open("rb")

    def close(self) -> None:
        """Let go of file and buffer; may be called again."""
        if self._closed:
            return
        self._closed = True
        self._buffer.release()
        _idle.append(self._memory)
        for name in self._names:
            discard(name)
        if self.descriptor >= 0:
            with suppress(OSError):  # what has to be on the disk was synchronised, and the descriptor is gone anyway
                os.close(self.descriptor)

    def _begin(self) -> None:
        if self.descriptor < 0:
            self._create(self._folder / f"{uuid4().hex}.part")

    def _create(self, path: Path) -> None:
        self.descriptor = _claimed(path)
        self._names.append(path)
        self._past_cache(True)

    def _put(self, data: memoryview, ahead: int = 0) -> None:
        """Write behind what is written, so many bytes ahead of its end."""
        place = self._written + ahead
        while data:
            try:
                count = os.pwrite(self.descriptor, data, place)
                data, place = data[count:], place + count
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._past_cache(False)  # the file system promised more than it keeps

    def _past_cache(self, wanted: bool) -> None:
        self._direct = False
        with suppress(OSError):  # not on this file system
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, os.O_DIRECT if wanted else 0)
            self._direct = wanted


def _memory() -> mmap.mmap:
    try:
        return _idle.pop()
    except IndexError:
        return mmap.mmap(-1, _AT_ONCE)


def _claimed(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except OSError:
            os.close(descriptor)
            discard(path)
            raise
        os.close(descriptor)  # swept away by a process that started between the two


def discard(path: Path) -> None:
    """Remove a file that nobody needs; where the disk does not let us, the next start does."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[Readable]:
    """A file that nobody writes, for reading; nobody else begins to write it meanwhile.

    Raises:
        BlockingIOError: somebody writes it, for as many seconds.
        FileNotFoundError: it is gone.
    """
    deadline = time.monotonic() + patience
    with path.open("r+b") as file:  # over NFS only who may write may lock (flock(2))
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.005)
        if not os.fstat(file.fileno()).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "taken away by who wrote it", str(path))
        yield file


def sweep(path: Path) -> bool:
    """Remove a file whose process has ended; was it one?"""
    try:
        with locked(path):
            path.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names a folder has.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
