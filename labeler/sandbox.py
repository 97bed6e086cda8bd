"""Decoding in child processes: what crashes, hangs or fills the memory of a decoder costs one image, not the worker.

Decoders are native code that reads strangers' bytes. A child has bounds on memory, and on time for every frame; it gets
a path, says after every frame that it lives, and answers with the planes (`packed`). The answer holds no code.
"""

from __future__ import annotations

import atexit
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

from labeler.dicom import Read, read_file
from labeler.packed import packed, unpacked
from labeler.slices import Skip, Skipped, Source

#: Address space of a child before it has read anything, MiB.
_OWN_MIB = 1024
#: One thread each; and freed pictures stay with the process: handing them back to the kernel takes half of its time.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
#: Seconds that a child gets to start in; a busy machine is slow to import.
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Bounds:
    """What one image may cost.

    Attributes:
        seconds: for one frame.
        mib: that its frames may unpack to, and that decoding them may take.
        tries: before an image that kills its decoder is left out.
    """

    seconds: float = 60.0
    mib: int = 4096
    tries: int = 3


class _Lost(Exception):
    def __init__(self, reason: Skip, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Child:
    """One process that decodes one file after the other."""

    def __init__(self, max_side: int, bounds: Bounds) -> None:
        self.bounds = bounds
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(max_side), str(bounds.mib), str(bounds.seconds)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
            )
        self.wire = Connection(ours.detach())
        self._receive(_START_SECONDS)

    def read(self, path: Path) -> Read:
        """Raises `_Lost` when the child does not live to answer."""
        try:
            self.wire.send_bytes(os.fsencode(path))
        except OSError:
            self._fail()
        while not (answer := self._receive(self.bounds.seconds)):
            pass
        return unpacked(answer)

    def _receive(self, seconds: float) -> bytes:
        try:
            if not self.wire.poll(seconds):
                self.close()
                raise _Lost(Skip.TOO_SLOW, f"longer than {seconds:g} s for one frame")
            return self.wire.recv_bytes()
        except (EOFError, OSError):
            return self._fail()

    def _fail(self) -> bytes:
        self.close()
        code = self.process.returncode
        raise _Lost(Skip.CRASHED, signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def close(self) -> None:
        self.wire.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)  # it ends by itself where it can, and then says how
        self.process.kill()
        self.process.wait()


@dataclass
class Sandbox:
    """So many children, started when first needed and again when lost; safe to use from several threads."""

    max_side: int
    processes: int = 1
    bounds: Bounds = field(default_factory=Bounds)
    _idle: queue.SimpleQueue[_Child | None] = field(default_factory=queue.SimpleQueue, init=False, repr=False)

    def __post_init__(self) -> None:
        for _ in range(self.processes):
            self._idle.put(None)
        atexit.register(self.close)

    def read(self, path: Path) -> Read:
        """One file; its decoder is tried again, in a new process, where it was lost."""
        for attempt in range(1, self.bounds.tries + 1):
            try:
                return self._once(path)
            except _Lost as lost:
                reason, detail = lost.reason, f"{lost.detail}, {attempt} times"
        return Read(skipped=Skipped(Source(0), reason, detail))

    def _once(self, path: Path) -> Read:
        child = self._idle.get()
        try:
            child = child or _Child(self.max_side, self.bounds)
            return child.read(path)
        except BaseException:
            child = None
            raise
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the children that wait; one that is needed again is started again."""
        for _ in range(self._idle.qsize()):
            if child := self._idle.get():
                child.close()
            self._idle.put(None)


@cache
def shared_sandbox(max_side: int, processes: int, bounds: Bounds) -> Sandbox:
    """One sandbox for everybody in this process who asks for the same."""
    return Sandbox(max_side, processes, bounds)


def _serve(max_side: int, mib: int, seconds: float) -> None:
    """The child: paths in, planes out, until the parent is gone; a signal to the whole group is not for it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _bound(mib)
    wire = Connection(0)
    wire.send_bytes(b"ready")

    def alive() -> None:
        signal.alarm(int(seconds) + 5)  # the parent ends whoever is too slow; this is for orphans
        wire.send_bytes(b"")

    with suppress(EOFError, OSError):
        while True:
            path = Path(os.fsdecode(wire.recv_bytes()))
            alive()
            wire.send_bytes(packed(read_file(path, max_side, mib << 20, alive)))
            signal.alarm(0)


def _bound(mib: int) -> None:
    for what, amount in ((resource.RLIMIT_AS, (mib + _OWN_MIB) << 20), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # not everywhere, and never more than we have ourselves
            resource.setrlimit(what, (amount, amount))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
