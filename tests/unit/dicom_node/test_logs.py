"""A line of the log is an event, whoever wrote it."""

from __future__ import annotations

import json
import subprocess
import sys

_WRITES = """
import logging, warnings
import structlog
from dicom_node.logs import configure
configure()
warnings.warn("deprecated\\n\\nin two releases")
logging.getLogger("celery.worker").warning("lost %s\\n", "the broker")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("celery").exception("a task failed")
structlog.get_logger("worker").info("ours", study_uid="1.2")
"""


def test_what_libraries_say_is_an_event_a_line_too() -> None:
    done = subprocess.run([sys.executable, "-c", _WRITES], capture_output=True, text=True, check=True)
    warned, lost, failed, ours = map(json.loads, done.stderr.splitlines())
    assert (warned["logger"], warned["level"]) == ("py.warnings", "warning")
    assert "deprecated\n\nin two releases" in warned["event"]
    assert (lost["event"], lost["logger"]) == ("lost the broker\n", "celery.worker")
    assert "ZeroDivisionError" in failed["exception"]
    assert (ours["event"], ours["study_uid"]) == ("ours", "1.2")
    assert {"timestamp", "level"} <= warned.keys() & ours.keys()
