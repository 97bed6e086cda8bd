"""What a process and its children cost (processor seconds, memory) and who listens, as Linux tells; and tables."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(found for child in children for found in tree(child))]


def listeners(port: int) -> int:
    """How many sockets listen on a port (proc(5), net/tcp: state 0A)."""
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return sum(line[3] == "0A" and line[1].endswith(f":{port:04X}") for line in lines)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree, children that have ended included."""
    return sum(_cpu(each) for each in tree(pid))


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


class Peak:
    """The most memory that a process tree holds at a time, MiB; what processes share counts once (PSS)."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        self.pid, self.every, self.mib = pid, every, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            self.mib = max(self.mib, sum(_pss(pid) for pid in tree(self.pid)))
            self._done.wait(self.every)


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def written(page: Path, chapter: str, text: str) -> None:
    """Put a text between the marks of its chapter on a page; the chapter is added where there is none."""
    begin, end = f"<!-- {chapter} -->", f"<!-- /{chapter} -->"
    old = page.read_text() if page.exists() else "# Benchmarks\n"
    head, _, rest = old.partition(begin) if begin in old else (old.rstrip() + "\n\n", "", "")
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.partition(end)[2] or chr(10)}")
