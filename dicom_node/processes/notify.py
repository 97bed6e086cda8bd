"""Readiness and signs of life: to whoever supervises this process, by sd_notify(3), and to the ledger for `status`.

A supervisor (systemd, or `dicom-node up`) names a datagram socket in NOTIFY_SOCKET; without one, nothing is said. A
process that has once told that it lives, and then is silent for the watchdog's time, is ended and started again.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.ledger import Ledger
from dicom_node.logs import Complaint
from dicom_node.study import Pulse

log = structlog.get_logger("notify")

#: Seconds for the last sign; a ledger that is away keeps nobody.
_GOODBYE = 3.0


def ready() -> None:
    """What this process is for works now."""
    _tell("READY=1")


def stopping() -> None:
    """No new work is taken; what runs is finished."""
    _tell("STOPPING=1")


def receiver_name(number: int) -> str:
    """What the first, second ... receiver of a machine is called."""
    return "receive" if number == 1 else f"receive-{number}"


class Signs:
    """The signs of one process, one in so many seconds. The ledger is told from a thread: it may be away or slow."""

    def __init__(self, ledger: Ledger, process: str, every: float) -> None:
        self.ledger, self.every = ledger, every
        self.process = process if "@" in process else f"{process}@{socket.gethostname()}"
        self._told_at = float("-inf")
        self._doing: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="signs", daemon=True)
        self._writer.start()

    def give(self, doing: str) -> None:
        """This process lives."""
        if time.monotonic() - self._told_at >= self.every:
            self._told_at = time.monotonic()
            _tell("WATCHDOG=1")
            if self._doing.empty():
                self._doing.put(doing)

    def until(self, stop: threading.Event, doing: str) -> None:
        """Ready; then give signs until told to stop."""
        ready()
        while not stop.wait(self.every):
            self.give(doing)
        stopping()

    def leave(self) -> None:
        """This process ends as it was told to; the last sign."""
        self._doing.put(None)
        self._writer.join(_GOODBYE)

    def _write(self) -> None:
        doing: str | None = ""
        complaint = Complaint()
        while doing is not None:
            doing = self._doing.get()
            try:
                if doing is None:
                    self.ledger.pulses.leave(self.process)
                else:
                    self.ledger.pulses.enter(Pulse(self.process, doing, self.ledger.clock()))
                complaint.is_new("")
            except SQLAlchemyError as error:
                if complaint.is_new(reason := str(error.args[0])):
                    log.error("the ledger is away", process=self.process, reason=reason)


def _tell(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.setblocking(False)
            wire.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
