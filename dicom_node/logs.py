"""One line per event, key=value on a terminal and JSON elsewhere; never a name or id of a patient."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings

import structlog
from structlog.typing import Processor


def configure(level: int = logging.INFO) -> None:
    """Set up logging of this process; pynetdicom and Celery keep to warnings.

    Warnings of the DICOM libraries quote the values that they warn of, patients' names among them: not shown.
    """
    for library in ("pydicom", "highdicom"):
        warnings.filterwarnings("ignore", module=library)
    threading.excepthook = _thread_failed
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*before, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_of_others(before, renderer)])
    logging.captureWarnings(True)
    for noisy in ("pynetdicom", "pydicom", "transformers", "kombu"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for quoting in ("utils", "dul", "fsm", "association", "transport"):  # they quote hostile peers; we name what failed
        logging.getLogger(f"pynetdicom.{quoting}").setLevel(logging.CRITICAL)


def _of_others(before: list[Processor], renderer: Processor) -> logging.Handler:
    """Writes what libraries log or warn of, Celery above all, as our own events are written."""
    forget = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.add_logger_name],
            processors=[forget, structlog.processors.format_exc_info, renderer],
        )
    )
    return handler


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """One line, as of all else; Celery would log a traceback in pieces, down to each single `^`."""
    if failed.exc_value is not None:
        name = failed.thread.name if failed.thread else ""
        structlog.get_logger("thread").error("a thread failed", thread=name, reason=where(failed.exc_value))


class Complaint:
    """What goes wrong again and again is said once, until it is something else or has been over."""

    def __init__(self) -> None:
        self._said = ""

    def is_new(self, reason: str) -> bool:
        """Is this to be said? Empty: it is over."""
        new, self._said = bool(reason) and reason != self._said, reason
        return new


def where(error: BaseException) -> str:
    """An unexpected error as type and place; its message may quote a patient's data and stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(
        f"{frame.name} ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno})" for frame in reversed(frames[-4:])
    )
    return f"{type(error).__name__} in {places}"
