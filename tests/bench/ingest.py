"""How fast images are taken in, by us and by others, in turns on this machine. No threshold: it prints a table.

    python -m tests.bench.ingest --quick                            # two minutes
    python -m tests.bench.ingest --page docs/benchmarks.md          # the long form, written into the page
    python -m tests.bench.ingest --ours --page docs/benchmarks.md   # this node alone, by its settings
    python -m tests.bench.ingest --receivers 8 --associations 1 8 16 --chapter server ...   # on more cores

Every server is started anew for every measurement, its folder is empty, and what it has stored is counted. All answer
only when an image and its name are on the disk (fdatasync, fsync of the folder), but Orthanc, which synchronises the
file alone, and DCMTK's storescp, which never does; where there is a C compiler, it is made to do both. The client
limits nothing (`pusher`): the row "bare socket to file" shows what it and the disk can do. The long form takes some
25 GB meanwhile, since what was stored is removed at the end only.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import track
from rich.table import Table

from dicom_node.processes.node import receivers_of
from dicom_node.settings import Settings
from tests.bench.contenders import OURS, Contender, contenders, issued, variants
from tests.bench.process import Peak, cpu_seconds, listeners, markdown, written
from tests.bench.pusher import INSTANCE_UID, STUDY_UID
from tests.support import eventually, free_port

#: Images of one measurement; of the contenders that wait for the network's timers only so many.
LONG, QUICK, FEW = {"CT": 1000, "MR": 2000}, {"CT": 120, "MR": 240}, 100
#: Images before a measurement, and associations that bring them, so that it finds every module loaded in every process.
WARM, WARMING = 16, 8


@dataclass(frozen=True)
class Load:
    """What is pushed: images of a modality over so many associations."""

    modality: str
    associations: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.modality} x {self.associations}{', TLS' if self.tls else ''}"


@dataclass(frozen=True)
class Measured:
    """One measurement: images per second; processor seconds per 1000 images of server and client; peak memory, MiB."""

    rate: float
    cpu: float
    client_cpu: float
    mib: float


def template(modality: str) -> bytes:
    """SOP class, newline, an encoded image of 512 x 512 (CT) or 256 x 256 (MR), 16 bits."""
    from tests.factories import a_series

    image = a_series("torso" if modality == "CT" else "head", 1, name="bench")[0]
    side = 512 if modality == "CT" else 256
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = STUDY_UID, f"{STUDY_UID}.1", INSTANCE_UID
    image.Rows = image.Columns = side
    image.PixelData = bytes(range(256)) * (side * side * 2 // 256)
    buffer = BytesIO()
    del image.file_meta
    image.save_as(buffer, implicit_vr=False, little_endian=True)
    return str(image.SOPClassUID).encode() + b"\n" + buffer.getvalue()


def measure(contender: Contender, load: Load, count: int, folder: Path) -> Measured:
    """Start the server, push, stop it."""
    _set_aside(folder / "stored")
    os.sync()
    path = folder / f"{load.modality}.template"
    if not path.exists():
        path.write_bytes(template(load.modality))
    port = free_port()
    with _served(contender, port, folder, load.tls) as pid, Peak(pid) as peak:
        _push(contender, replace(load, associations=WARMING), WARM, port, path, folder, first=100)
        before = cpu_seconds(pid)
        seconds, client = _push(contender, load, count, port, path, folder)
        used = cpu_seconds(pid) - before
        stored = contender.stored(folder / "stored")
    if stored != count + WARM:
        there = f"{stored} of {count + WARM} images are there"
        raise SystemExit(f"{contender.name}, {load}: {there}; the server said {_last_words(folder)}")
    return Measured(count / seconds, 1000 * used / count, 1000 * client / count, peak.mib)


def _set_aside(stored: Path) -> None:
    """An empty folder. What lay there is removed at the end: for minutes, creating passes over what was removed."""
    if stored.exists():
        stored.rename(stored.with_name(f"stored-{time.monotonic_ns()}"))
    stored.mkdir()


@contextmanager
def _served(contender: Contender, port: int, folder: Path, tls: bool) -> Iterator[int]:
    command, environment = contender.command(port, folder, tls)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        eventually(lambda: process.poll() is None and listeners(port) >= contender.processes, 60, 0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _push(
    contender: Contender, load: Load, count: int, port: int, path: Path, folder: Path, first: int = 0
) -> tuple[float, float]:
    """Seconds until the last client is done, and the clients' processor seconds; all begin together.

    `first` is the number of the first study; there is one for every association.
    """
    secrets = list(map(str, issued(folder))) if load.tls else []
    shares = [count // load.associations + (n < count % load.associations) for n in range(load.associations)]
    clients = []
    for number, share in enumerate(shares):
        command = [sys.executable, "-m", "tests.bench.pusher", str(port), contender.speaks, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        clients.append(subprocess.Popen([*command, str(first + number), str(share), *secrets], **pipes))  # type: ignore[call-overload]
    for client in clients:
        if client.stdout.readline() != "ready\n":
            raise SystemExit(f"{contender.name}, {load}: no association; the server said {_last_words(folder)}")
    for client in clients:
        client.stdin.write("go\n")
        client.stdin.flush()
    told = [tuple(map(float, client.communicate(timeout=600)[0].split())) for client in clients]
    if any(len(one) != 2 for one in told):
        raise SystemExit(f"{contender.name}, {load}: a client gave up; the server said {_last_words(folder)}")
    return max(seconds for seconds, _ in told), sum(cpu for _, cpu in told)


def _last_words(folder: Path) -> str:
    """The end of the server's log, which goes with the folder."""
    return (folder / "server.log").read_text(errors="replace")[-600:].strip() or "nothing"


def compared(
    those: Sequence[Contender], loads: Sequence[Load], counts: dict[str, int], rounds: int, folder: Path
) -> dict[Load, dict[str, list[Measured]]]:
    """Contenders under every load, in turns."""
    found: dict[Load, dict[str, list[Measured]]] = {load: defaultdict(list) for load in loads}
    turns = [(load, one) for _ in range(rounds) for load in loads for one in those if one.tls or not load.tls]
    for load, one in track(turns, "Measuring", console=Console(stderr=True)):
        count = min(counts[load.modality], FEW if one.waits else 10**9)
        found[load][one.name].append(measure(one, load, count, folder))
    return found


def rows(found: dict[str, list[Measured]]) -> Iterator[tuple[str, ...]]:
    """Of one load: medians, and how many times as fast we are, the median over the rounds."""
    for name, measured in found.items():
        times = median(ours.rate / other.rate for ours, other in zip(found[OURS], measured, strict=True))
        cpu, client, mib = (median(getattr(m, field) for m in measured) for field in ("cpu", "client_cpu", "mib"))
        rate = median(m.rate for m in measured)
        yield name, f"{rate:.0f}", f"{times:.2f}", f"{cpu:.2f}", f"{client:.2f}", f"{mib:.0f}"


COLUMNS = ("", "images/s", "ours is times as fast", "server CPU s/1000", "client CPU s/1000", "peak MiB")


def main() -> None:
    options = _options()
    if options.quick:
        loads, options.rounds = [Load("CT", 4), Load("MR", 1), Load("CT", 4, tls=True)], 1
    else:
        loads = [Load(modality, number) for modality in ("CT", "MR") for number in options.associations]
        loads += [Load("CT", number, tls=True) for number in options.associations[:2]]
    counts = QUICK if options.quick else LONG
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        those = (variants if options.ours else contenders)(options.receivers)
        found = compared(those, loads, counts, options.rounds, Path(folder))
    chapter = [_ABOUT_OURS if options.ours else _about(counts, options.rounds, options.receivers)]
    for load, measured in found.items():
        table = Table(*COLUMNS, title=str(load))
        for row in rows(measured):
            table.add_row(*row)
        Console().print(table)
        chapter += [f"### {load}", markdown(COLUMNS, rows(measured))]
    if options.page:
        written(options.page, options.chapter or ("settings" if options.ours else "ingest"), "\n\n".join(chapter))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, three loads, one round")
    parser.add_argument("--ours", action="store_true", help="this node alone, by its settings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--receivers", type=int, default=receivers_of(Settings()), help="of this node; its own choice")
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--page", type=Path, help="Markdown page that gets the table")
    parser.add_argument("--chapter", help="of the page, where it is not the usual one")
    parser.add_argument("--folder", type=Path, help="where servers store; on the disk that is meant")
    return parser.parse_args()


_ABOUT_OURS = """## What the receiver's settings cost and give

`python -m tests.bench.ingest --ours --page docs/benchmarks.md`: the same measurement of this node alone.
`durability = "group"` answers before the disk has the image; `fast_path = false` leaves C-STORE to pynetdicom."""


def _about(counts: dict[str, int], rounds: int, receivers: int) -> str:
    sizes = ", ".join(f"{count} {modality}" for modality, count in counts.items())
    return f"""## Taking images in, {os.cpu_count()} cores

`{_command()}`: {sizes} images (0.5 and 0.13 MiB), medians of {rounds} rounds
in turns, Python {platform.python_version()}. "CT x 4" is CT over 4 associations.
All answer when image and name are on the disk (fdatasync, fsync of the folder); storescp, which never asks for that,
is made to by a preloaded library, and Orthanc synchronises the file alone. This node is {receivers} processes, storescp
one for every association, the others are one. Orthanc and storescp as shipped let the
network's timers run (Nagle and delayed acknowledgements); `TCP_NODELAY=1` ends that."""


def _command() -> str:
    """As it was called, without the folder, which is a place of this machine."""
    words = sys.argv[1:]
    if "--folder" in words:
        place = words.index("--folder")
        del words[place : place + 2]
    return " ".join(["python -m tests.bench.ingest", *words])


if __name__ == "__main__":
    main()
