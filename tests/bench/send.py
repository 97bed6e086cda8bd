"""What it costs to bring a report to an archive: on an open association, on a new one, and with all that goes with it.

    python -m tests.bench.send [--quick] [--page docs/benchmarks.md]

Orthanc and DCMTK's storescp, both with TCP_NODELAY=1, on this machine; one report of a real series under ever new UIDs,
and the same cut down to its first three content items. "delivered" adds our own part: the claim and the record in the
ledger, and the gate that reads the report again. Beside it stand the C-STORE of pynetdicom on one association, without
our socket options, and two bounds: the same bytes over a socket, without any library, and the archive's own processor
time meanwhile. No threshold.
"""

from __future__ import annotations

import argparse
import logging
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE
from rich.console import Console
from rich.table import Table

from dicom_node.association.call import Caller
from dicom_node.deliver import Deliverer
from dicom_node.ledger import Ledger
from dicom_node.send import store
from dicom_node.settings import Peer, Settings
from dicom_node.spool.dataset import data_set_offset
from dicom_node.study import Delivery, WrittenReport
from tests.bench.process import cpu_seconds, markdown, written
from tests.bench.pusher import STORED, associated, pushed, stores
from tests.factories import a_series
from tests.parts import Bench
from tests.support import Orthanc, eventually, free_port, listens, program, running

_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"


def a_report(home: Path) -> WrittenReport:
    """What the labelling half writes on a series of 12 images."""
    bench = Bench(home, 1)
    uid = bench.take(a_series("torso", 12, name="bench"))
    bench.label(uid)
    (report,) = bench.ledger.issued.of_study(uid)
    bench.ledger.engine.dispose()
    return report


def cut_down(report: WrittenReport, path: Path) -> WrittenReport:
    """Its first three content items: what a report costs an archive that says next to nothing."""
    data_set = dcmread(report.path)
    data_set.ContentSequence = data_set.ContentSequence[:3]
    data_set.save_as(path, enforce_file_format=True)
    return replace(report, path=path)


def items(data_set: Dataset) -> int:
    """Content items below this one."""
    return sum(1 + items(child) for child in data_set.get("ContentSequence") or [])


def copies(report: WrittenReport, folder: Path, count: int) -> Iterator[WrittenReport]:
    """The report under so many UIDs."""
    data_set = dcmread(report.path)
    for number in range(count):
        uid = f"{report.sop_instance_uid[:-6]}{number:06}"
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = uid
        data_set.save_as(folder / f"{uid}.dcm", enforce_file_format=True)
        yield WrittenReport(uid, report.sop_class_uid, "1.2", "1.2.0", "c", folder / f"{uid}.dcm", None)


def milliseconds(each: Callable[[WrittenReport], object], reports: list[WrittenReport]) -> float:
    """The median of all but the first."""
    taken = []
    for report in reports:
        started = time.perf_counter()
        each(report)
        taken.append(1000 * (time.perf_counter() - started))
    return median(taken[1:])


@contextmanager
def bare(peer: Peer) -> Iterator[Callable[[WrittenReport], Dataset]]:
    """pynetdicom as it comes."""
    entity = AE("ANATOMY")
    entity.add_requested_context(_CLASS)
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    yield lambda report: association.send_c_store(report.path)
    association.release()


@contextmanager
def bound(peer: Peer) -> Iterator[Callable[[WrittenReport], None]]:
    """Bytes that were made before: what the peer itself takes."""
    with socket.create_connection((str(peer.host), peer.port or 0), 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        longest = associated(connection, _CLASS, peer.ae_title, "ANATOMY")

        def push(report: WrittenReport) -> None:
            data_set = report.path.read_bytes()
            named = report.sop_instance_uid.encode(), data_set[data_set_offset(data_set[:144]) :]
            pushed(connection, stores(_CLASS, iter([named]), longest), STORED, 0)

        yield push


@dataclass(frozen=True)
class Archive:
    """A peer, and the process that it is."""

    peer: Peer
    pid: int


def measured(archive: Archive, reports: list[WrittenReport], home: Path, passes: bool) -> list[float]:
    """Milliseconds per report: the archive's own processor; bare bytes, C-STORE kept open, on new associations,
    pynetdicom's own; and, where it passes the gate, delivered.

    Every way gets its share of the reports: an archive treats what it has already otherwise.
    """
    peer = archive.peer
    settings = Settings(home=home, peers=(peer,))
    once = peer.model_copy(update={"idle_seconds": 0.0})
    deliverer = Deliverer(settings, Ledger(settings.ledger_url))
    with deliverer.ledger.engine.begin() as connection:
        for report in reports:
            deliverer.ledger.issued.enter(connection, report, [peer.name])

    def delivered(report: WrittenReport) -> None:
        if deliverer.deliver(report.sop_instance_uid, peer.name) != Delivery.SENT:
            raise SystemExit(f"{peer.name} did not take it")

    with Caller(settings) as caller, deliverer.caller, bare(peer) as plain, bound(peer) as push:
        ways: list[Callable[[WrittenReport], object]] = [
            push,
            lambda report: store(report.path, peer, caller),
            lambda report: store(report.path, once, caller),
            plain,
            *([delivered] if passes else []),
        ]
        each = len(reports) // len(ways)
        before = cpu_seconds(archive.pid)
        first = milliseconds(ways[0], reports[:each])
        used = 1000 * (cpu_seconds(archive.pid) - before) / each
        found = [milliseconds(way, reports[n * each : (n + 1) * each]) for n, way in enumerate(ways[1:], start=1)]
    deliverer.ledger.engine.dispose()
    return [used, first, *found]


@contextmanager
def archives(folder: Path) -> Iterator[list[Archive]]:
    with ExitStack() as stack:
        orthanc = stack.enter_context(Orthanc(folder / "orthanc").started())
        port = free_port()
        (folder / "stored").mkdir()
        command = [program("storescp"), "--fork", "-od", str(folder / "stored"), str(port)]
        storescp = stack.enter_context(running(command, folder / "storescp.log", {"TCP_NODELAY": "1"}))
        eventually(lambda: listens(port), 10)
        ends = [
            ("Orthanc", orthanc.ae_title, orthanc.dicom_port, orthanc.pid),
            ("storescp", "SCP", port, storescp.pid),
        ]
        yield [
            Archive(Peer(name=name, ae_title=title, host="127.0.0.1", port=end, may=frozenset({"reports"})), pid)
            for name, title, end, pid in ends
        ]


COLUMNS = (
    "ms per report",
    "content items",
    "archive's processor",
    "bare bytes (bound)",
    "open association",
    "new association",
    "pynetdicom, open",
    "delivered, open",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 reports a way instead of 100")
    parser.add_argument("--page", type=Path, help="Markdown page that gets the table")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rows = []
    with tempfile.TemporaryDirectory() as name, archives(Path(name)) as found:
        folder = Path(name)
        whole = a_report(folder / "labelled")
        for report in (whole, cut_down(whole, folder / "cut.dcm")):
            count = items(dcmread(report.path))
            for archive in found:
                place = folder / f"{archive.peer.name}-{count}"
                place.mkdir()
                reports = list(copies(report, place, 100 if options.quick else 500))
                figures = [f"{ms:.1f}" for ms in measured(archive, reports, place, passes=report is whole)]
                rows.append([archive.peer.name, str(count), *figures, *([] if report is whole else [""])])
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.page:
        written(options.page, "send", f"{_ABOUT}\n\n{markdown(COLUMNS, rows)}")


_ABOUT = """## Sending a report

`python -m tests.bench.send --page docs/benchmarks.md`: medians over 100 reports of 12 images each (89 kB, 465
content items), and over the same cut down to three items (3 kB). "bare bytes" is what the archive itself takes, without
any library at our end; "archive's processor" is what its process computes meanwhile. "delivered" is all that happens to
a report: claim, gate, C-STORE, record. "pynetdicom" is its own C-STORE, whose sockets wait for Nagle and delayed
acknowledgements."""


if __name__ == "__main__":
    main()
