"""What people say about reports, as tests say it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.corrections import amend
from dicom_node.reports.amend import Amendment, Change
from dicom_node.reports.audit import predecessors_of
from dicom_node.reports.word import Verifier
from dicom_node.study import State, WrittenReport
from labeler.sr import read_report
from labeler.vocabulary import vocabulary
from tests.factories import a_series
from tests.parts import Bench

WHO = Verifier("Doe^Jane", "General Hospital")
WHEN = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)
#: Images of a study about which people speak; and with those that come late.
IMAGES, ALL = 6, 8


def the_report(bench: Bench, study: str) -> WrittenReport:
    return bench.ledger.issued.of_study(study)[0]


def a_label_of(bench: Bench, study: str) -> str:
    """An organ that the report names on some image."""
    found: list[str] = json.loads(the_report(bench, study).summary)["organs"]
    return found[0]


def corrected(bench: Bench, study: str, *changes: Change) -> WrittenReport:
    report = the_report(bench, study)
    said = Amendment(changes, WHO, WHEN, "seen")
    return amend(bench.settings, bench.ledger, bench.spool, report.sop_instance_uid, said)


def heard(bench: Bench, study: str, said: Dataset, peer: str = "review") -> State | None:
    bench.take([said], peer=peer)
    bench.clock.now += 60
    return bench.label(study)


def made_elsewhere(study: str, tmp_path: Path, *changes: Change) -> Dataset:
    """A workstation's verified successor of the report on the study's first images."""
    elsewhere = Bench(tmp_path / "elsewhere", 1)
    elsewhere.label(elsewhere.take(a_series("torso", ALL, name="remarks")[:IMAGES]))
    theirs = dcmread(corrected(elsewhere, study, *changes).path)
    elsewhere.ledger.engine.dispose()
    return theirs


def labels_of(report: WrittenReport) -> list[frozenset[str]]:
    said = read_report(dcmread(report.path), vocabulary())
    assert said is not None
    return said.by_image()


def grown(bench: Bench, late: list[Dataset], peer: str = "ct1") -> WrittenReport:
    """The one report that stands when late objects have been worked on."""
    bench.clock.now += 60
    uid = bench.take(late, peer=peer)
    bench.clock.now += 60
    bench.label(uid)
    series = bench.ledger.issued.of_study(uid)[0].source_series_uid
    (standing,) = [
        r for r in bench.ledger.issued.of_study(uid) if not bench.ledger.issued.successor_of(r.sop_instance_uid)
    ]
    assert bench.ledger.issued.current(uid, series) == standing
    return standing


def named_by(report: WrittenReport) -> list[str]:
    return list(predecessors_of(dcmread(report.path)))
