"""All processes of one machine under one roof: `dicom-node up` and the demo.

A process that ends, or that has told of its life (`notify`) and fell silent, is started again; when the supervisor
ends, however it ends, its processes end with it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import structlog

from dicom_node.patience import pause

log = structlog.get_logger("up")

#: Seconds beyond `drain_seconds` that processes get to end in.
_GRACE = 10.0
#: Seconds in which a process that is killed ends, unless it waits for a disk that does not answer.
_KILLED = 5.0
#: Longest pause between two starts of a process that fails at once, seconds.
_LONGEST_PAUSE = 10.0
#: Seconds within which it must have been started for that.
_YOUNG = 20.0
#: Failures in a row of which one is told that it is no accident.
_TELL_AT = 3
_PR_SET_PDEATHSIG = 1
#: Begins the name of the folder of our processes' sockets.
_SOCKETS = "dicom-node-up-"
#: Bytes of a folder's name that leave room for that name, our process id and a program's name.
_LONGEST_PLACE = 50


_Processes = Mapping[str, subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Program:
    """One process: its name in logs and its command line."""

    name: str
    command: tuple[str, ...]


class Ear:
    """Hears the signs of life of one process, as systemd would."""

    def __init__(self, folder: Path, name: str) -> None:
        self.address = folder / name
        self._wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._wire.bind(str(self.address))
        self._wire.setblocking(False)
        self._heard_at: float | None = None

    def forget(self) -> None:
        """Another process takes its place; it is waited for until it gives its first sign."""
        self._listen()
        self._heard_at = None

    def silence(self) -> float:
        """Seconds since the last sign; 0 before the first."""
        if b"WATCHDOG=1" in self._listen():
            self._heard_at = time.monotonic()
        return 0.0 if self._heard_at is None else time.monotonic() - self._heard_at

    def _listen(self) -> set[bytes]:
        told: set[bytes] = set()
        with suppress(BlockingIOError):
            while True:
                told.update(self._wire.recv(4096).split(b"\n"))
        return told

    def close(self) -> None:
        self._wire.close()


@dataclass
class Supervisor:
    """Runs programs until stopped.

    Attributes:
        stall_seconds: of silence after which a process is ended and started again.
        drain_seconds: that processes have to finish what they do.
    """

    programs: Sequence[Program]
    environment: Mapping[str, str]
    output: IO[bytes] | None = None
    stall_seconds: float = 60.0
    drain_seconds: float = 20.0
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _born: dict[str, float] = field(default_factory=dict)
    _ears: dict[str, Ear] = field(default_factory=dict)
    #: How often in a row a program ended by itself soon after its start.
    _failures: dict[str, int] = field(default_factory=dict)
    #: What was killed and lives on.
    _stuck: set[str] = field(default_factory=set)

    def start(self) -> None:
        place = socket_place()
        clear_after_dead(place)
        self._folder = tempfile.TemporaryDirectory(prefix=f"{_SOCKETS}{os.getpid()}-", dir=place)
        self._ears = {program.name: Ear(Path(self._folder.name), program.name) for program in self.programs}
        for program in self.programs:
            self._start(program)

    def _start(self, program: Program) -> None:
        self._born[program.name] = time.monotonic()
        self._stuck.discard(program.name)
        ear = self._ears[program.name]
        ear.forget()
        self._running[program.name] = subprocess.Popen(
            program.command,
            env={**os.environ, **self.environment, "NOTIFY_SOCKET": str(ear.address)},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),
        )

    def run(self, stop: threading.Event) -> None:
        """Watch over the programs until `stop`; one that ends is started again, ever later while it fails at once."""
        while not stop.wait(0.3):
            self.revive()

    def revive(self) -> None:
        for program in self.programs:
            process, silence = self._running[program.name], self._ears[program.name].silence()
            if silence > self.stall_seconds and process.poll() is None and program.name not in self._stuck:
                log.error("process gives no sign of life; ending it", process=program.name, seconds=round(silence))
                self._stuck.update(_kill({program.name: process}))
            code, age = process.poll(), time.monotonic() - self._born[program.name]
            failures = self._failures.get(program.name, 0)
            if code is not None and age > pause(failures + 1, _LONGEST_PAUSE, lambda: 1.0):
                log.error("process ended; starting it again", process=program.name, exit_code=code)
                self._failures[program.name] = failures + 1 if code > 0 and age < _YOUNG else 0
                if self._failures[program.name] == _TELL_AT:
                    log.error("process fails again and again; its own last words say why", process=program.name)
                self._start(program)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def stop(self) -> list[str]:
        """End all programs in the study's order: SIGTERM, then SIGKILL after a grace; the broker goes last.

        Returns the names of those that cannot be killed.
        """
        workers = {name: process for name, process in self._running.items() if name != "broker"}
        brokers = {name: process for name, process in self._running.items() if name == "broker"}
        grace = self.drain_seconds + _GRACE
        stuck = [*_end(workers, grace), *_end(brokers, grace)]
        for ear in self._ears.values():
            ear.close()
        self._folder.cleanup()
        return stuck


def socket_place() -> Path:
    """The folder for temporary files, or /tmp where its name is too long for a socket's (108 bytes, unix(7))."""
    place = Path(tempfile.gettempdir())
    return place if len(os.fsencode(place)) <= _LONGEST_PLACE else Path("/tmp")


def clear_after_dead(folder: Path) -> None:
    """Remove the sockets' folders of supervisors that were killed; the process id in the name tells whose it was."""
    for left in folder.glob(f"{_SOCKETS}*"):
        pid = left.name.removeprefix(_SOCKETS).split("-")[0]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _end(processes: _Processes, grace: float) -> list[str]:
    """Ask them to end, and kill those that have not after so many seconds; the names of those that live on."""
    for process in processes.values():
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    return _kill(_left(processes, grace))


def _kill(processes: _Processes) -> list[str]:
    for process in processes.values():
        process.kill()
    stuck = _left(processes, _KILLED)
    for name, process in stuck.items():
        remedy = "it waits for a disk or a share that does not answer: bring that back, or restart the machine"
        log.error(
            "process cannot be killed; it is left as it is",
            process=name,
            pid=process.pid,
            killed_seconds_ago=round(_KILLED),
            remedy=remedy,
        )
    return list(stuck)


def _left(processes: _Processes, seconds: float) -> dict[str, subprocess.Popen[bytes]]:
    """Those that still run after so many seconds."""
    deadline = time.monotonic() + seconds
    left = {}
    for name, process in processes.items():
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            left[name] = process
    return left


def die_with(parent: int) -> None:
    """Run in a child before its program: it is killed when the thread that started it ends, or has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
