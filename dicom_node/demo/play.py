"""The demo: every part is the real one; only the scanner's images and the archive are made for the show."""

from __future__ import annotations

import json
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dicom_node.demo.archive import Archive
from dicom_node.demo.scanner import Push, carried, drawn, push
from dicom_node.desk.tables import counted
from dicom_node.errors import NodeError, Retry
from dicom_node.ledger import Ledger
from dicom_node.processes.node import supervised
from dicom_node.settings import load_settings
from dicom_node.study import State

_NODE, _SCANNER, _PACS = "ANATOMY", "SCANNER", "PACS"


def play(out: Path, console: Console, timeout: float) -> bool:
    """Play the demo; True when the archive holds exactly one report on every series that should have one."""
    _clear(out)
    home = Path(tempfile.mkdtemp(prefix="dicom-node-demo-"))
    try:
        with Archive(out / "pacs", _PACS) as archive, (out / "node.log").open("wb") as log:
            config = _write_config(home, archive.port)
            settings = load_settings(config)
            node = supervised(settings, config, log)
            node.start()
            try:
                pushes = [*drawn(), *carried()]
                ledger = Ledger(settings.ledger_url)
                _wait_for(settings.port, timeout)
                _play(pushes, settings.port, ledger, archive, console, timeout)
                return _show(pushes, ledger, archive, out, console)
            finally:
                node.stop()
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return False
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _clear(out: Path) -> None:
    """Make the output folder; what an earlier demo left in it goes, nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    for left in (*(out / "pacs").glob("*.dcm"), *(out / "sheets").glob("*.png")):
        left.unlink()


def _write_config(home: Path, archive_port: int) -> Path:
    config = home / "dicom-node.toml"
    config.write_text(
        f"""ae_title = "{_NODE}"
bind = "127.0.0.1"
port = {_free_port()}
home = "{home / "node"}"
quiet_seconds = 1.5
sweep_seconds = 0.3
reserve_mib = 64

[[peers]]
name = "scanner"
ae_title = "{_SCANNER}"
host = "127.0.0.1"
may = ["push"]

[[peers]]
name = "pacs"
ae_title = "{_PACS}"
host = "127.0.0.1"
port = {archive_port}
may = ["reports"]
"""
    )
    return config


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise Retry(f"the receiver did not start within {timeout:g} s; its log is node.log in the output folder")


def _play(
    pushes: Sequence[Push], port: int, ledger: Ledger, archive: Archive, console: Console, timeout: float
) -> None:
    expected = sum(item.labelled for item in pushes)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        images = progress.add_task("scanner pushes images", total=sum(len(item.images) for item in pushes))
        reports = progress.add_task("reports come back", total=expected)
        scanner = threading.Thread(
            target=_scan, args=(pushes, port, lambda: progress.advance(images)), name="scanner", daemon=True
        )
        scanner.start()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            progress.update(reports, completed=len(archive.reports_per_series()))
            if not scanner.is_alive() and _settled(pushes, ledger):
                break
            time.sleep(0.3)
        progress.update(reports, completed=len(archive.reports_per_series()))


def _scan(pushes: Sequence[Push], port: int, sent: Any) -> None:
    """As a scanner does: one association per series, tried again until every image was taken."""
    for item in pushes:
        for _ in range(5):
            try:
                push(item.images, "127.0.0.1", port, _NODE, _SCANNER, sent)
                break
            except NodeError:
                time.sleep(1.0)


def _settled(pushes: Sequence[Push], ledger: Ledger) -> bool:
    final = {State.SENT, State.UNLABELLED, State.QUARANTINED}
    states = {row.study_uid: row.state for row in ledger.studies()}
    return all(states.get(item.study_uid) in final for item in pushes)


def _show(pushes: Sequence[Push], ledger: Ledger, archive: Archive, out: Path, console: Console) -> bool:
    found = archive.reports_per_series()
    table = Table(title="What the node saw", title_justify="left", show_lines=True)
    for column in ("series", "stations: images, certainty", "organs: images, certainty", "header says"):
        table.add_column(column, overflow="fold")
    labels: dict[str, Any] = {}
    for item in pushes:
        summary = _summary(item, ledger)
        if summary is None:
            row = ledger.study(item.study_uid)
            table.add_row(item.title, f"[dim]{row.reason if row else 'never received'}[/dim]", "", "")
            continue
        labels[item.series_uid] = {"title": item.title, "study_uid": item.study_uid, **summary}
        table.add_row(f"{item.title}\n{summary['modality']} {counted(summary['images'], 'image')}", *_cells(summary))
    (out / "labels.json").write_text(json.dumps(labels, indent=1))
    _print_sheets(pushes, archive, out / "sheets")
    console.print(table)
    wrong = [item.title for item in pushes if found[item.series_uid] != int(item.labelled)]
    for title in wrong:
        console.print(f"[red]{title}: not exactly the one report that it should have; see {out / 'node.log'}[/red]")
    console.print(
        f"{sum(found.values())} reports in {out / 'pacs'}, their evidence sheets as pictures in {out / 'sheets'}, "
        f"all labels in {out / 'labels.json'}; not for diagnosis"
    )
    return not wrong


def _print_sheets(pushes: Sequence[Push], archive: Archive, folder: Path) -> None:
    """The archive's evidence sheets as pictures, named after what was pushed."""
    folder.mkdir(exist_ok=True)
    titles = {item.study_uid: item.title for item in pushes}
    for sheet in archive.sheets():
        name = "-".join(re.findall(r"\w+", titles[str(sheet.StudyInstanceUID)]))
        Image.fromarray(sheet.pixel_array).save(folder / f"{name}.png")


def _summary(item: Push, ledger: Ledger) -> dict[str, Any] | None:
    report = ledger.issued.current(item.study_uid, item.series_uid)
    return json.loads(report.summary) if report else None


def _cells(summary: dict[str, Any]) -> tuple[str, str, str]:
    stations = [_finding(f) for f in summary["findings"] if f["kind"] == "station"]
    organs = [_finding(f) for f in summary["findings"] if f["kind"] == "organ"]
    header = summary["header"]
    colour = "red" if header["agreement"] == "DIFFER" else "green"
    told = f"{header['claimed'] or '(empty)'}\n[{colour}]{header['agreement']}[/{colour}]"
    return "\n".join(stations) or "none sure enough", ", ".join(organs) or "none sure enough", told


def _finding(finding: dict[str, Any]) -> str:
    ranges = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in finding["images"])
    return f"{finding['name'].replace('_', ' ')} [dim]{ranges}[/dim] {finding['certainty']:.0%}"
