"""A lease is renewed from a thread while the work that it is for runs; a process that ends lets it run out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

log = structlog.get_logger("leases")


@contextmanager
def renewed(renew: Callable[[], bool], lease_seconds: float, **about: str) -> Iterator[threading.Event]:
    """Call `renew` three times a lease; the event tells that the lease is lost.

    Args:
        renew: False when somebody else has it.
        about: what the work is about, for the log.
    """
    done, lost = threading.Event(), threading.Event()

    def keep() -> None:
        while not done.wait(lease_seconds / 3):
            try:
                kept = renew()
            except SQLAlchemyError as error:  # the ledger is away for a moment, or so long that the lease ends
                log.warning("lease not renewed", **about, reason=str(error.args[0]))
                continue
            if not kept:
                lost.set()
                return

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()
