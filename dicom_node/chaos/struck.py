"""One of the node's programs as `python -m dicom_node` runs it, with a hand on its clock and on its delicate moments.

    python -m dicom_node.chaos.struck receive

A moment is named in `plan.MOMENTS`. Where a file of that name lies in the folder's `armed`, the first process that
comes to the moment takes the file away and is killed there, as by kill -9: nothing is flushed, no block is left. The
clock is set by writing seconds into the file `clock`; as when a real clock is set, `time.time` and the stamps of new
files jump and `time.monotonic` does not. The product itself knows nothing of all this.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

#: Names the folder with `armed` and `clock`.
FOLDER_VARIABLE = "CHAOS_FOLDER"
MODULE = "dicom_node.chaos.struck"

_real_time = time.time

#: By program: the function (module, class, name), and the moments before and after it.
_Place = tuple[str, str | None, str]
_MOMENTS: dict[str, dict[_Place, tuple[str | None, str | None]]] = {
    "receive": {
        ("os", None, "pwrite"): ("receive: named, not written", None),
        ("dicom_node.ledger.ledger", "Ledger", "add_instance"): (
            "receive: on the disk, not in the ledger",
            "receive: in the ledger, not answered",
        ),
    },
    "watch": {
        ("dicom_node.ledger.ledger", "Ledger", "complete"): (None, "watch: complete, not rung"),
        ("dicom_node.ledger.ledger", "Ledger", "rung_study"): ("watch: rung, not noted", None),
    },
    "label": {
        ("labeler.score", "Scorer", "logits"): (None, "label: in the model"),
        ("dicom_node.spool.spool", "Spool", "store_report"): ("label: report made, not written", None),
        ("dicom_node.ledger.ledger", "Ledger", "settle"): (
            "label: report written, not settled",
            "label: settled, nobody told",
        ),
    },
    "deliver": {
        ("dicom_node.ledger.deliveries", "Deliveries", "settle"): ("deliver: PACS has answered, not noted", None),
    },
}


class _Clock:
    """The wall clock, as far off as the file says; looked up a few times a second."""

    def __init__(self, file: Path) -> None:
        self._file, self._offset, self._looked = file, 0.0, float("-inf")

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self._looked > 0.1:
            self._looked = now
            with suppress(FileNotFoundError):
                self._offset = float(self._file.read_text())
        return _real_time() + self._offset


def _arm(folder: Path, program: str) -> None:
    """Replace the clock and wrap the program's delicate functions."""
    clock = _Clock(folder / "clock")
    time.time = clock
    real_sync = os.fdatasync

    def stamped_sync(file: Any) -> None:
        os.utime(file if isinstance(file, int) else file.fileno(), (clock(), clock()))
        real_sync(file)

    os.fdatasync = stamped_sync  # type: ignore[assignment]
    for (module, owner, name), (before, after) in _MOMENTS.get(program, {}).items():
        at: Any = importlib.import_module(module)
        at = getattr(at, owner) if owner else at
        setattr(at, name, _watched(getattr(at, name), folder / "armed", before, after))


def _watched(function: Callable[..., Any], armed: Path, before: str | None, after: str | None) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _fall(armed, before)
        answer = function(*args, **kwargs)
        _fall(armed, after)
        return answer

    return call


def _fall(armed: Path, moment: str | None) -> None:
    if moment is None:
        return
    try:
        (armed / moment).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _supervise_struck() -> None:
    """`up` starts its programs in the same way as it was started itself."""
    from dicom_node.processes import node
    from dicom_node.processes.supervise import Supervisor

    real = node.supervised

    def supervised(*args: Any, **kwargs: Any) -> Supervisor:
        made = real(*args, **kwargs)
        made.programs = [replace(program, command=as_struck(program.command)) for program in made.programs]
        return made

    node.supervised = supervised


def as_struck(command: tuple[str, ...]) -> tuple[str, ...]:
    """`python -m dicom_node ...` -> `python -m dicom_node.chaos.struck ...`; other commands stay."""
    return tuple(MODULE if part == "dicom_node" else part for part in command)


def program_of(arguments: list[str]) -> str:
    """Which of the node's programs a command line starts: receive, watch, label, deliver, up ..."""
    if "--queues" in arguments:
        return arguments[arguments.index("--queues") + 1]
    return next((name for name in ("receive", "watch", "up") if name in arguments), "")


if __name__ == "__main__":
    _program = program_of(sys.argv)
    _arm(Path(os.environ[FOLDER_VARIABLE]), _program)
    if _program == "up":
        _supervise_struck()
    runpy.run_module("dicom_node", run_name="__main__", alter_sys=True)
