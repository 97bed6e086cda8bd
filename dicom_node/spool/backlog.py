"""With durability = "group": images that are acknowledged before the disk has them."""

from __future__ import annotations

import os
from pathlib import Path
from queue import Queue
from threading import Lock, Thread

import structlog

from dicom_node.spool.blocks import sync_folder

log = structlog.get_logger("spool")

#: Files that may be acknowledged and not yet on the disk.
GROUP = 64


class Backlog:
    """Files that have been acknowledged and are not yet on the disk: never more than `GROUP`."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self._waiting: Queue[tuple[int, Path]] = Queue(GROUP)
        self._worker: Thread | None = None
        self._lock = Lock()

    def add(self, descriptor: int, target: Path) -> None:
        """Take over an open file; waits while too many wait already."""
        with self._lock:
            if self._worker is None:
                self._worker = Thread(target=self._work, name="spool backlog", daemon=True)
                self._worker.start()
        self._waiting.put((descriptor, target))

    def drain(self) -> None:
        self._waiting.join()

    def _work(self) -> None:
        while True:
            descriptor, target = self._waiting.get()
            try:
                os.fdatasync(descriptor)
                sync_folder(target.parent)
            except OSError as error:
                self.failure = f"{target.name} was acknowledged and may be lost ({error.strerror})"
                log.critical("the disk failed", path=str(target), reason=error.strerror)
            finally:
                os.close(descriptor)
                self._waiting.task_done()
