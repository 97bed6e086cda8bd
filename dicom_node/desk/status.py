"""Answers for radiology IT: what the node has, does, and did not do. Tables for a terminal; reads only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydicom.uid import UID
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from sqlalchemy import Row, select

from dicom_node.desk import studies
from dicom_node.desk.corrections import shown
from dicom_node.desk.health import Finding
from dicom_node.desk.rejections import Rejection
from dicom_node.desk.tables import listed, table
from dicom_node.errors import Quarantine
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import delivery, not_labelled, refusal, study
from dicom_node.send import best_class
from dicom_node.study import OPEN, REPORT_CLASSES, State, WrittenReport, moment


def overview(ledger: Ledger) -> Iterator[RenderableType]:
    """Studies and deliveries by state, the latest studies, what was not labelled and why, who was refused."""
    yield listed("Studies", ("state", "peer", "count"), ledger.counts(study, study.c.state, study.c.peer))
    if latest := ledger.studies(limit=10):
        yield studies.shown("The latest studies", latest)
    yield listed(
        "Deliveries",
        ("state", "destination", "count"),
        ledger.counts(delivery, delivery.c.state, delivery.c.destination),
    )
    yield from _ailing(ledger)
    stuck = ledger.studies(study.c.state.in_([State.QUARANTINED, State.UNLABELLED]), limit=20)
    if stuck:
        rows = [(row.study_uid, row.peer, row.state.value, row.reason) for row in stuck]
        yield table("Not labelled: the latest studies", ("study", "peer", "state", "reason"), rows)
    left_out = ledger.counts(not_labelled, not_labelled.c.peer, not_labelled.c.reason)
    if left_out:
        yield table("Images without labels", ("peer", "reason", "count"), left_out)
    columns = (refusal.c.calling_ae, refusal.c.called_ae, refusal.c.host, refusal.c.reason, refusal.c.count)
    refused = ledger.rows(select(*columns, refusal.c.last_at).order_by(refusal.c.last_at.desc()).limit(20))
    if refused:
        seen = [(*tuple(row)[:-1], moment(row.last_at)) for row in refused]
        yield table("Refused", ("calling AE", "called AE", "host", "reason", "count", "last"), seen)


def health(found: Iterable[Finding]) -> Table:
    """What was looked at, and what to do about it."""
    rows = [(item.what, Text(item.state, "red" if item.remedy else ""), item.remedy) for item in found]
    return table("Health", ("what", "state", "what to do"), rows)


def owed(ledger: Ledger, failed: bool = False, to: str | None = None) -> Iterator[RenderableType]:
    """Deliveries that are not done, or only those that failed, and the destinations that do not answer."""
    yield from _ailing(ledger)
    rests = {one.name: one.rests_until for one in ledger.deliveries.destinations.ailing()}
    rows = [
        (row.report_uid, row.study_uid, row.destination, row.state, row.attempts, _next(row, rests), row.detail)
        for row in ledger.deliveries.listed(failed, to)
    ]
    columns = ("object", "study", "to", "state", "attempts", "next", "answer")
    yield listed("Deliveries", columns, rows, none="none failed" if failed else "none waits, none failed")


def _ailing(ledger: Ledger) -> Iterator[Table]:
    """Destinations whose last delivery failed."""
    now = ledger.clock()
    rows = [
        (
            one.name,
            one.failures,
            f"rests until {moment(one.rests_until)}" if one.rests_until > now else "is tried",
            one.detail,
        )
        for one in ledger.deliveries.destinations.ailing()
    ]
    if rows:
        yield table("Destinations in trouble", ("destination", "failures in a row", "state", "last answer"), rows)


def _next(row: Row[Any], rests: Mapping[str, float]) -> str:
    """When a delivery is tried: not before its destination's rest is over, and never where it was given up."""
    at = max(row.next_at, rests.get(row.destination, 0.0)) if row.state in OPEN else 0.0
    return moment(at) if at else ""


#: In the place of a remedy of several lines, which `to_paste` shows as they are to be written.
_LINES = "the lines below, in the settings"


def turned_away(found: Iterable[Rejection]) -> RenderableType:
    """Who knocked, and what would admit them."""
    columns = ("calling AE", "called AE", "host", "count", "last", "reason", "what would admit it")
    cells = ((r, _LINES if "\n" in r.remedy else r.remedy) for r in found)
    rows = ((r.calling_ae, r.called_ae, r.host, r.count, moment(r.last_at), r.reason, cure) for r, cure in cells)
    return listed("Turned away", columns, rows)


def to_paste(found: Iterable[Rejection]) -> str:
    """The lines of TOML that would admit who is unknown."""
    return "\n\n".join(dict.fromkeys(r.remedy for r in found if "\n" in r.remedy))


def story(ledger: Ledger, study_uid: str) -> Iterator[RenderableType]:
    """Everything the ledger knows of one study.

    Raises:
        Quarantine: the node has never received it.
    """
    row = ledger.study(study_uid)
    if row is None:
        raise Quarantine(f"{study_uid}: never received here; ask the scanner's log where it was sent")
    facts = [
        ("state", row.state.value),
        ("reason", row.reason),
        ("from", row.peer),
        ("images", row.instances),
        ("first, last image", f"{moment(row.first_at)}, {moment(row.last_at)}"),
        ("complete because", row.completed_by),
        ("attempts", row.attempts),
    ]
    yield table(study_uid, ("", ""), facts)
    if steps := ledger.performed.steps(study_uid):
        said = [(step.sop_instance_uid, step.peer, step.status.value, len(step.images)) for step in steps]
        yield table("Performed steps", ("step", "from", "status", "images named"), said)
    remarks = ledger.remarks(study_uid)
    yield _reports(ledger, study_uid, {remark.sop_instance_uid: remark.said_by for remark, _ in remarks})
    wanted = delivery.c.study_uid == study_uid
    columns = (delivery.c.report_uid, delivery.c.destination, delivery.c.state, delivery.c.attempts, delivery.c.detail)
    yield listed(
        "Deliveries", ("report", "to", "state", "attempts", "answer"), ledger.rows(select(*columns).where(wanted))
    )
    if remarks:
        yield shown(remarks)
    notes = select(not_labelled.c.sop_instance_uid, not_labelled.c.reason, not_labelled.c.detail)
    left_out = ledger.rows(notes.where(not_labelled.c.study_uid == study_uid))
    if left_out:
        yield table("Images without labels", ("instance", "reason", "detail"), left_out)


def _reports(ledger: Ledger, study_uid: str, verified: Mapping[str, str]) -> RenderableType:
    """A study's reports, the oldest first; `verified`: by whom, where somebody has."""
    rows = []
    for item in ledger.issued.of_study(study_uid):
        stands = "superseded" if ledger.issued.successor_of(item.sop_instance_uid) else "current"
        by = f", verified by {verified[item.sop_instance_uid]}" if item.sop_instance_uid in verified else ""
        rows.append((item.sop_instance_uid, stands + by, *_said_of(item)))
    return listed("Reports", ("report", "stands", "modality", "images", "stations", "header"), rows)


def _said_of(item: WrittenReport) -> tuple[Any, ...]:
    summary = json.loads(item.summary or "{}")
    header = summary.get("header", {})
    told = f"{header.get('claimed') or '(empty)'}: {header.get('agreement', '')}"
    return (
        summary.get("modality"),
        summary.get("images"),
        ", ".join(summary.get("stations", [])),
        told,
    )


def accepted(found: Mapping[UID, tuple[UID, ...]], peer: str) -> tuple[Table, bool]:
    """What `send.preflight` learnt, and whether our reports would be stored in one class or another."""
    rows = [
        (sop_class.name, ", ".join(syntax.name for syntax in syntaxes) or Text("not accepted", "red"))
        for sop_class, syntaxes in found.items()
    ]
    made = table(f"{peer} would take", ("SOP class", "transfer syntaxes"), rows)
    best = best_class(found)
    made.caption = (
        f"reports would go there as {best.name}"
        if best
        else f"{peer} would refuse our reports: let it accept {REPORT_CLASSES[0].name} in Implicit VR Little Endian"
    )
    return made, best is not None
