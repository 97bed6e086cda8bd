"""The play: scanners send, blows fall, the node must come through; a table while it runs, a summary at the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.chaos.blows import Fist
from dicom_node.chaos.plan import Blow, Means, Plan, blow_kinds, drawn
from dicom_node.chaos.scanner import Received, Scanners
from dicom_node.chaos.scans import Errand, Expected, Image, scanned
from dicom_node.chaos.servers import has_database
from dicom_node.chaos.verdict import Verdict, judged, reports_in, settled
from dicom_node.chaos.world import LEASE_SECONDS, World, forget_site, scratch
from dicom_node.ledger import Ledger
from dicom_node.study import State

_SCANNERS = 3
_LOOK = 0.2


@dataclass(frozen=True)
class Wish:
    """What the command was asked for.

    Attributes:
        ledger: sqlite, postgresql or auto.
        pacs: archive or orthanc.
        patience: seconds in which, after the last blow, at least one study must come to its end.
        without: means that are left out, as `plan.Means` names them.
    """

    studies: int
    seed: int
    blows: int
    home: Path | None = None
    ledger: str = "auto"
    pacs: str = "archive"
    patience: float = 120.0
    without: frozenset[str] = frozenset()


@dataclass
class Rehearsal:
    """One rehearsal while it runs."""

    world: World
    plan: Plan
    console: Console
    received: Received = field(default_factory=Received)
    dealt: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    fallen: int = 0
    drain_seconds: float = 0.0
    _errands: list[Errand] = field(default_factory=list)
    _expected: list[Expected] = field(default_factory=list)
    _settled: int = 0
    _looked: float = 0.0

    def run(self, patience: float) -> Verdict:
        self._errands, self._expected = scanned(self.plan.scans, self.plan.seed, self.world.folder / "scans")
        ledger = self.world.open()
        stop = threading.Event()
        with Live(self._shown(), console=self.console, refresh_per_second=2) as live:
            scanners = self._start_scanners(ledger, stop)
            fist = Fist(self.world, lambda seconds: self._pass(seconds, live, ledger))
            self._until(lambda: bool(self.received.acknowledged), 60.0, live, ledger)
            for blow in self.plan.blows:
                self._pass(blow.peace, live, ledger)
                self._deal(blow, fist)
            self._drain(scanners, patience, live, ledger)
            stop.set()
            self.missed += fist.unmet()
        self.world.fetch()
        return judged(
            self._expected,
            self.sent,
            self.received.acknowledged,
            ledger,
            self.world.settings.home,
            self.world.folder / "pacs",
            self.world.programs(),
        )

    @property
    def sent(self) -> set[Image]:
        return {image for errand in self._errands for image in errand.images}

    def _start_scanners(self, ledger: Ledger, stop: threading.Event) -> list[Scanners]:
        def reported(study_uid: str) -> bool:
            with suppress(SQLAlchemyError):
                row = ledger.study(study_uid)
                return row is not None and row.state == State.SENT
            return False

        scanners = [
            Scanners(
                self._errands[number::_SCANNERS],
                self.world.scanner_port,
                self.received,
                lambda: self.fallen,
                reported,
                stop,
                random.Random(f"{self.plan.seed} {number}"),
            )
            for number in range(_SCANNERS)
        ]
        for scanner in scanners:
            scanner.start()
        return scanners

    def _deal(self, blow: Blow, fist: Fist) -> None:
        self.console.print(f"[dim]{self.fallen + 1:4d}/{len(self.plan.blows)}[/dim] {blow}", highlight=False)
        (self.dealt if fist.strike(blow) else self.missed)[str(blow)] += 1
        self.fallen += 1

    def _pass(self, seconds: float, live: Live, ledger: Ledger) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self.world.keep()
            if time.monotonic() - self._looked > 1.0:
                self._settled, self._looked = settled(self._expected, ledger), time.monotonic()
            live.update(self._shown())
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(_LOOK, left))

    def _drain(self, scanners: Sequence[Scanners], patience: float, live: Live, ledger: Ledger) -> None:
        """Peace, until all is settled, or for `patience` seconds nothing more comes to its end."""
        began = last = time.monotonic()
        most = 0
        while time.monotonic() - last < patience:
            self._pass(_LOOK, live, ledger)
            if self._settled > most:
                most, last = self._settled, time.monotonic()
            if self._settled == len(self._expected) and not any(scanner.is_alive() for scanner in scanners):
                break
        self.drain_seconds = time.monotonic() - began

    def _until(self, condition: Callable[[], bool], seconds: float, live: Live, ledger: Ledger) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self._pass(_LOOK, live, ledger)

    def _shown(self) -> Group:
        hits = Table(title="Blows", title_justify="left")
        for column in ("what", "where", "dealt"):
            hits.add_column(column)
        means = {
            kind: [(n, b.partition(": ")[2]) for b, n in self.dealt.items() if b.startswith(f"{kind}: ")]
            for kind in Means
        }
        for kind, found in means.items():
            if found:
                where = ", ".join(f"{at} {count}" for count, at in sorted(found, reverse=True))
                hits.add_row(kind, where, str(sum(count for count, _ in found)))
        answers = ", ".join(f"{status} {count}" for status, count in self.received.answers.most_common())
        told = (
            f"studies settled {self._settled} of {len(self._expected)}, "
            f"images acknowledged {len(self.received.acknowledged)} of {len(self.sent)}; answers: {answers}"
        )
        return Group(hits, told, "")

    def summary(self, verdict: Verdict, seconds: float) -> dict[str, Any]:
        """The figures, as JSON keeps them."""
        hits = self.dealt - self.missed
        return {
            "seed": self.plan.seed,
            "kept": verdict.kept,
            "ledger": "postgresql" if self.world.database else "sqlite",
            "broker": Path(self.world.broker.command[0]).name,
            "pacs": self.world.pacs_kind,
            "disk": "tmpfs" if self.world.disk.own else "RLIMIT_FSIZE",
            "studies": len(self._expected),
            "instances": len(self.received.acknowledged),
            "reports": len(reports_in(self.world.folder / "pacs")),
            "blows": dict(sorted(hits.items())),
            "kills": sum(count for blow, count in hits.items() if blow.startswith(Means.KILL)),
            "answers": dict(self.received.answers),
            "drain_seconds": round(self.drain_seconds, 1),
            "seconds": round(seconds, 1),
            **{name: list(found) for name, found in asdict(verdict).items()},
        }


def rehearse(wish: Wish, console: Console, write_to: Path | None = None) -> bool:
    """Rehearse a night; True when every promise was kept.

    Raises:
        ConfigurationError: the home holds something, or there is no PostgreSQL where one is wanted.
        Retry: a server did not start.
    """
    forget_site(os.environ)
    folder = scratch(wish.home)
    postgresql = has_database() if wish.ledger == "auto" else wish.ledger == "postgresql"
    world = World(folder, postgresql=postgresql, orthanc=wish.pacs == "orthanc")
    kinds = blow_kinds(database=postgresql, small_disk=world.disk.own)
    plan = drawn(wish.seed, wish.studies, wish.blows, kinds, LEASE_SECONDS, wish.without)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1))
    console.print(f"seed {wish.seed}: {wish.studies} studies, {wish.blows} blows; everything in {folder}")
    rehearsal, began = Rehearsal(world, plan, console), time.monotonic()
    try:
        verdict = rehearsal.run(wish.patience)
    finally:
        codes = world.close()
        world.sweep_up()
    left = world.left_behind()
    left += [f"{name} did not end on SIGTERM (exit code {code})" for name, code in codes.items() if code != 0]
    verdict = Verdict(verdict.lost, verdict.doubled, verdict.astray, (*verdict.left_behind, *left))
    summary = rehearsal.summary(verdict, time.monotonic() - began)
    for place in (folder / "summary.json", *([write_to] if write_to else [])):
        place.write_text(json.dumps(summary, indent=1))
    _tell(summary, verdict, folder, console)
    _put_away(world, folder, wish.home is None and verdict.kept)
    return verdict.kept


def _tell(summary: dict[str, Any], verdict: Verdict, folder: Path, console: Console) -> None:
    console.print_json(json.dumps(summary))
    for finding in (*verdict.lost, *verdict.doubled, *verdict.astray, *verdict.left_behind):
        console.print(f"[red]{finding}[/red]", highlight=False)
    told = "every promise was kept" if verdict.kept else f"promises were broken; the logs are in {folder / 'logs'}"
    console.print(f"[{'green' if verdict.kept else 'red'}]{told}[/]")


def _put_away(world: World, folder: Path, vanish: bool) -> None:
    """The node's disk ends with this process: keep a copy where somebody will want to look."""
    if vanish:
        with suppress(OSError):
            world.disk.close()
        shutil.rmtree(folder, ignore_errors=True)
    elif world.disk.own:
        shutil.copytree(folder / "node", folder / "node-as-it-was", dirs_exist_ok=True)
