"""The node in figures, for Prometheus: what `health` looks at and `status` counts. Reads only.

Labels are names from the settings and words of our own: whatever strangers call themselves, they make no new series.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import func, select

from dicom_node.association.certificates import held
from dicom_node.desk.health import Finding, findings, signs_of, skews
from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import delivery, not_labelled, refusal, study
from dicom_node.settings import Settings
from dicom_node.study import State

#: The values of a figure's labels -> its value.
Values = Mapping[tuple[str, ...], float]
#: What is none of the names that a label may have.
OTHER = "other"
#: How the reasons of refusals read (`association.admission`, `association.transport`, `spool`), by what a label says.
#: A caller's own words come after the first of ours, so that none is taken for another's.
_REFUSALS = {
    "called AE": re.compile("called "),
    "calling AE unknown": re.compile("calling AE .* is unknown$", re.DOTALL),
    "calling AE at another host": re.compile("calling AE "),
    "TLS": re.compile("TLS: "),
    "limit of associations": re.compile(r"associations(_per_host)? = \d+ is reached"),
    "no room": re.compile(r"\d+ MiB free at |.*: No space left on device$", re.DOTALL),
    "without TLS": re.compile(".* came without TLS$", re.DOTALL),
}


@dataclass(frozen=True)
class Figure:
    """A gauge: its name, without the node's own, what it says, and a value for each of its labels' values."""

    name: str
    says: str
    labels: tuple[str, ...] = ()
    values: Values = field(default_factory=dict)


def exposition(settings: Settings, ledger: Ledger) -> str:
    """All figures in Prometheus' text format."""
    registry = CollectorRegistry()
    for figure in figures(settings, ledger):
        gauge = Gauge(f"dicom_node_{figure.name}", figure.says, figure.labels, registry=registry)
        for values, value in figure.values.items():
            (gauge.labels(*values) if values else gauge).set(value)
    return generate_latest(registry).decode()


def figures(settings: Settings, ledger: Ledger) -> Iterator[Figure]:
    """What there is to be told."""
    ahead = list(skews(settings, ledger))
    yield from _verdict(list(findings(settings, ledger, ahead)))
    yield from _counts(settings, ledger)
    yield from _moments(ledger)
    if settings.home.is_dir():
        free = shutil.disk_usage(settings.home).free
        yield Figure("home_free_bytes", "Free room on the disk of home.", values={(): free})
    says = "When the first certificate of a file of [tls] ends, seconds since the epoch; none while it cannot be read."
    yield Figure("certificate_expiry_timestamp_seconds", says, ("file",), _ends(settings))
    skew: Values = {(name,): seconds for name, seconds in ahead}
    yield Figure("clock_skew_seconds", "How far another clock is ahead of the node's.", ("clock",), skew)


def _ends(settings: Settings) -> Values:
    try:
        return {(one.setting,): one.until for one in held(settings.tls)} if settings.tls else {}
    except ConfigurationError:  # told by the verdict
        return {}


def _verdict(found: list[Finding]) -> Iterator[Figure]:
    each: Values = {(item.what,): float(not item.remedy) for item in found}
    yield Figure("well", "1 where nothing needs a person (dicom-node health).", values={(): min(each.values())})
    yield Figure("finding_well", "1 where this needs no person.", ("finding",), each)


def _counts(settings: Settings, ledger: Ledger) -> Iterator[Figure]:
    names = {peer.name for peer in settings.peers}
    came = _told_by_peer(ledger.counts(study, study.c.state, study.c.peer), names)
    yield Figure("studies", "Studies by where they stand and who pushed them.", ("state", "peer"), came)
    owed = _told_by_peer(ledger.counts(delivery, delivery.c.state, delivery.c.destination), names)
    yield Figure("deliveries", "Deliveries by where they stand and to whom.", ("state", "destination"), owed)
    left_out: Values = {(reason,): count for reason, count in ledger.counts(not_labelled, not_labelled.c.reason)}
    yield Figure("unlabelled_images", "Images without labels, by the reason.", ("reason",), left_out)
    refused: dict[tuple[str, ...], float] = {(kind,): 0 for kind in (*_REFUSALS, OTHER)}
    by_reason: Any = select(refusal.c.reason, func.sum(refusal.c.count)).group_by(refusal.c.reason)
    for reason, count in map(tuple, ledger.rows(by_reason)):
        refused[kind_of(reason),] += int(count)
    yield Figure("refusals", "Associations and objects refused, of those that are kept.", ("reason",), refused)


def _told_by_peer(rows: list[tuple[Any, ...]], names: set[str]) -> Values:
    """Counts by state and peer; peers that the settings no longer name are told as one."""
    counts: Counter[tuple[str, ...]] = Counter()
    for state, peer, count in rows:
        counts[str(state), peer if peer in names else OTHER] += count
    return counts


def kind_of(reason: str) -> str:
    """What a refusal comes down to, without the names and addresses in it."""
    return next((kind for kind, form in _REFUSALS.items() if form.match(reason)), OTHER)


def _moments(ledger: Ledger) -> Iterator[Figure]:
    now = ledger.clock()
    first: Any = select(func.min(study.c.last_at)).where(study.c.state == State.QUEUED)
    oldest = ledger.rows(first)[0][0]
    waits = 0.0 if oldest is None else now - oldest
    says = "Time since the last image of the study that waits longest for labels; 0 where none waits."
    yield Figure("oldest_waiting_study_age_seconds", says, values={(): waits})
    silent: Values = {(sign.process,): now - sign.seen_at for sign in signs_of(ledger)}
    yield Figure("process_silence_seconds", "Time since a process's last sign of life.", ("process",), silent)
