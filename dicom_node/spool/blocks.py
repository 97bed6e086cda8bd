"""A new file that is written in whole blocks, past the page cache where the file system can (O_DIRECT).

An object that is received is synchronised at once and read once, later. Through the page cache that costs two to four
times the processor's time, and half as much again in all (docs/decisions/0017). Large ones are hashed while the disk
works.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

#: What direct writes are aligned to, in memory and in the file; bytes.
_BLOCK = 4096
#: Bytes of one write, but a file's last.
_AT_ONCE = 1 << 20
#: Bytes whose digest takes longer (0.15 ms) than to hand it to another thread and back (0.1 ms).
_WORTH_A_THREAD = 1 << 18
#: Threads that hash, at most.
HASHERS = os.cpu_count() or 1
#: Buffers that no file uses; there are never more than files were open at a time.
_idle: deque[mmap.mmap] = deque()
_hashers = ThreadPoolExecutor(HASHERS, thread_name_prefix="hash")


class BlockFile:
    """A file under a new name; locked while it is open, so that a process that ends, however it ends, unlocks it."""

    def __init__(self, path: Path) -> None:
        """Create it.

        Raises:
            OSError: see open(2).
        """
        #: Where in the buffer begins what the digest has not seen.
        self._sha, self._unseen = hashlib.sha256(), 0
        self._memory = _memory()
        self._buffer, self._filled, self._written = memoryview(self._memory), 0, 0
        self.path, self.descriptor = path, _claimed(path)
        self._direct = False
        self._past_cache(True)

    @property
    def closed(self) -> bool:
        return self.descriptor < 0

    def write_head(self, data: bytes) -> None:
        """Append what the digest leaves out; before all else."""
        self.write(data)
        self._unseen = self._filled

    def write(self, data: bytes | memoryview) -> None:
        """Append; all of it is in the file after `finish`.

        Raises:
            OSError: this, or what was appended before, could not be written.
        """
        rest = memoryview(data)
        while rest:
            piece = rest[: _AT_ONCE - self._filled]
            end = self._filled + len(piece)
            self._buffer[self._filled : end], self._filled = piece, end
            rest = rest[len(piece) :]
            if end == _AT_ONCE:
                with self._hashing():
                    self._put(self._buffer)
                self._filled, self._written = 0, self._written + _AT_ONCE

    def finish(self, *, durably: bool = False) -> None:
        """Nothing more will be written: what is left goes to the file. May be called again, as for the disk's sake.

        Args:
            durably: wait until the disk has all of it (fdatasync).
        Raises:
            OSError: some of it could not be written.
        """
        with self._hashing():
            self._put_rest()
            if durably:
                os.fdatasync(self.descriptor)

    @property
    def digest(self) -> str:
        """SHA-256 of all but the head, when it is finished."""
        return self._sha.hexdigest()

    def _put_rest(self) -> None:
        """The end, which need not be a block's, goes first, through the page cache, and is sent on to the disk at once
        (what is not needed is written out): it is on its way while the blocks before it are written."""
        whole = self._filled - self._filled % _BLOCK if self._direct else self._filled
        if whole < self._filled:
            self._past_cache(False)
            self._put(self._buffer[whole : self._filled], whole)
            with suppress(OSError):  # an advice
                os.posix_fadvise(self.descriptor, self._written + whole, _BLOCK, os.POSIX_FADV_DONTNEED)
            self._past_cache(True)
        self._put(self._buffer[:whole])
        self._written, self._filled = self._written + self._filled, 0

    def close(self) -> None:
        """Let go of file and buffer; may be called again."""
        if self.closed:
            return
        descriptor, self.descriptor = self.descriptor, -1
        self._buffer.release()
        _idle.append(self._memory)
        with suppress(OSError):  # what has to be on the disk was synchronised, and the descriptor is gone all the same
            os.close(descriptor)

    @contextmanager
    def _hashing(self) -> Iterator[None]:
        """Hash what the buffer holds while it is brought to the disk.

        Raises:
            OSError: no thread can be had.
        """
        data = self._buffer[self._unseen : self._filled]
        self._unseen = 0
        if len(data) < _WORTH_A_THREAD:
            self._sha.update(data)
            yield
            return
        try:
            hashed = _hashers.submit(self._sha.update, data)
        except RuntimeError as error:  # too many threads, or this process ends
            raise OSError(errno.EAGAIN, str(error)) from error
        try:
            yield
        finally:
            hashed.result()

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


def sweep(path: Path) -> bool:
    """Remove a file whose process has ended; was it one?"""
    try:
        with path.open("r+b") as file:  # over NFS only who may write may lock (flock(2))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
