"""Is the node well? What stands still, grows or disagrees, each with what to do about it. Reads only.

A backlog is told by time: what waits, and since when. Clocks are compared where the node compares times: the ledger's
(this machine's), the broker's, the database's, and that of the disk under `home`.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.association.certificates import held
from dicom_node.association.tls import server_context
from dicom_node.desk.tables import counted
from dicom_node.errors import ConfigurationError, Retry
from dicom_node.ledger import Ledger
from dicom_node.ledger.orders import in_part
from dicom_node.ledger.schema import delivery, report, said_by_driver, study
from dicom_node.settings import ADDRESS, Settings
from dicom_node.study import OPEN, UNFIT, Delivery, Pulse, State
from dicom_node.tasks import Bell, connect

#: Seconds that clocks may differ.
SKEW = 2.0
#: Seconds that work may wait before somebody should look.
_LONG = 900.0
_HOUR = 3600.0
#: Seconds after which a silent process is no longer spoken of.
_FORGOTTEN = 24 * _HOUR
_MAKE_ROOM = (
    "make room there, or lower retention_days or reserve_mib; studies that wait for a person or an archive stay until "
    "`dicom-node retry` or `dismiss`, failed deliveries until `dicom-node deliveries retry` or `dismiss`"
)
_NO_MODEL = "mend `bundle` or `device` in the settings and start the worker again; studies wait, none is laid aside"
#: The parts of a node, by the names that `dicom-node up` gives them, and the commands that they are.
_COMMANDS = {
    "receive": "receive",
    "watch": "watch",
    "label": "worker --queues label --hostname label@%h",
    "deliver": "worker --queues deliver --hostname deliver@%h --pool threads --concurrency 8",
}
#: Where deploy/ puts the unit for all, on machines that systemd runs.
_UNITS = tuple(Path(f"{place}/systemd/system/dicom-node.target") for place in ("/etc", "/usr/lib", "/usr/local/lib"))
#: How calls of ours fail, in the words of `association.call`.
_ANSWERS = (
    "cannot be looked up",
    "connection refused",
    "timed out",
    "rejected the association",
    "certificate",
    "speaks no TLS",
    "did not answer",
    "no answer within",
    "cannot be reached",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty while it is well."""

    what: str
    state: str
    remedy: str = ""


def findings(settings: Settings, ledger: Ledger, ahead: Iterable[tuple[str, float]] | None = None) -> Iterator[Finding]:
    """Everything that was looked at, in the order of a study's way; `ahead`: the `skews`, where they are known."""
    yield from _processes(settings, ledger)
    yield from _leases(settings, ledger)
    yield from _backlogs(ledger)
    yield _in_part(ledger)
    yield Finding("reports go to", settings.addressees, ADDRESS if settings.is_unaddressed else "")
    yield from _disk(settings)
    yield from _certificates(settings)
    clocks = dict(skews(settings, ledger) if ahead is None else ahead)
    if settings.broker and "broker" not in clocks:
        yield Finding("broker", "does not answer", "start it; the ledger keeps all work until then")
    yield from _clocks(clocks)


def headline(found: Sequence[Finding]) -> str:
    """All of it in one line, as monitors show it."""
    ailing = [f"{item.what} ({item.state})" for item in found if item.remedy]
    return f"{len(ailing)} of {len(found)} need a person: {', '.join(ailing)}" if ailing else "well"


def as_json(found: Sequence[Finding]) -> str:
    """The same for programs."""
    well = not any(item.remedy for item in found)
    return json.dumps({"well": well, "findings": [asdict(item) for item in found]}, indent=2)


@contextmanager
def answering(ledger: Ledger) -> Iterator[Ledger]:
    """A ledger for one question: where it goes away meanwhile, or `home` is closed to us, that is told in one line."""
    try:
        yield ledger
    except OSError as error:
        raise ConfigurationError(f"{error}; ask as the user that the node runs as") from error
    except SQLAlchemyError as error:
        raise Retry(f"the ledger does not answer ({said_by_driver(error)}): check the database and `ledger`") from error
    finally:
        ledger.engine.dispose()


def signs_of(ledger: Ledger) -> list[Pulse]:
    """The last sign of every process that is still spoken of."""
    now = ledger.clock()
    return [sign for sign in ledger.pulses.all() if sign.seen_at > now - _FORGOTTEN]


def _processes(settings: Settings, ledger: Ledger) -> Iterator[Finding]:
    now, signs = ledger.clock(), signs_of(ledger)
    for sign in signs:
        silent = now - sign.seen_at
        if silent > settings.stall_seconds:
            remedy = (
                f"killed, or hanging: start it again where it ran; this line goes after {_span(_FORGOTTEN)} of silence"
            )
            yield Finding(sign.process, f"no sign for {_span(silent)}", remedy)
        else:
            yield Finding(sign.process, sign.doing, _NO_MODEL if sign.doing.startswith(UNFIT) else "")
    for kind in missing(sign.process for sign in signs):
        yield Finding(kind, "does not run", _start(kind))


def _by_systemd() -> bool:
    """Do services run the node on this machine? A command by hand would run beside them, as somebody else."""
    return any(unit.exists() for unit in _UNITS)


def _start(kind: str) -> str:
    """How a part of the node is started on this machine."""
    if _by_systemd():
        return "systemctl start dicom-node.target; `journalctl -u 'dicom-node-*'` says why it ended"
    return f"start `dicom-node {_COMMANDS[kind]}`, or `dicom-node up` for all"


def _another_worker() -> str:
    """What helps where labelling falls behind."""
    if _by_systemd():
        return (
            "`systemctl status dicom-node-label` says whether it works; where it does, add a worker on another machine "
            "(Several machines in deploy/README.md)"
        )
    return "start another worker: dicom-node worker --queues label"


def missing(processes: Iterable[str]) -> list[str]:
    """Parts of a node that none of these processes is; a worker of another name is taken to work for both queues."""
    names = {re.sub(r"-\d+$", "", process.partition("@")[0]) for process in processes}
    there = names | ({"label", "deliver"} if names - set(_COMMANDS) else set())
    return [kind for kind in _COMMANDS if kind not in there]


def _leases(settings: Settings, ledger: Ledger) -> Iterator[Finding]:
    now = ledger.clock()
    held = ledger.rows(select(study.c.study_uid, study.c.lease_until).where(study.c.state == State.LABELLING))
    stuck = [row.study_uid for row in held if row.lease_until < now - settings.lease_seconds]
    remedy = f"{stuck[0]} and others are taken back by the watcher: {_start('watch')}" if stuck else ""
    yield Finding("leases", f"{len(held)} held, {len(stuck)} stuck", remedy)


def _backlogs(ledger: Ledger) -> Iterator[Finding]:
    now = ledger.clock()
    queued: Any = select(func.count(), func.min(study.c.last_at)).where(study.c.state == State.QUEUED)
    count, oldest = tuple(ledger.rows(queued)[0])
    came = ledger.rows(select(func.count()).select_from(study).where(study.c.last_at > now - _HOUR))[0][0]
    done = select(func.count(report.c.study_uid.distinct())).where(report.c.created_at > now - _HOUR)
    went = ledger.rows(done)[0][0]
    late = count and now - oldest > _LONG
    yield Finding(
        "waiting for labels",
        f"{count} studies{_since(now, oldest)}; in the last hour {came} came, {went} were reported",
        _another_worker() if late else "",
    )
    # the first attempt may be under way, or have stored what only its commitment is awaited of
    over = and_(delivery.c.state == Delivery.WAITING, delivery.c.lease_until <= now)
    failed = or_(delivery.c.attempts > 1, and_(delivery.c.attempts == 1, over))
    tried: Any = select(func.count(), func.max(delivery.c.attempts)).where(delivery.c.state.in_(OPEN), failed)
    count, worst = tuple(ledger.rows(tried)[0])
    remedy = "`dicom-node deliveries` tells why; they are sent again by themselves" if count else ""
    attempts = f", up to {worst} attempts" if worst else ""
    ailing = [f"{one.name} ({_answer(one.detail)})" for one in ledger.deliveries.destinations.ailing()] if count else []
    state = f"{count} deliveries{attempts}{': ' if ailing else ''}{', '.join(ailing)}"
    yield Finding("waiting for an archive", state, remedy)


def _in_part(ledger: Ledger) -> Finding:
    """Studies of which a series stands aside (docs/decisions/0022); nothing else shows, since they were sent."""
    ours: Any = select(func.count(), func.min(study.c.study_uid)).where(in_part())
    count, first = tuple(ledger.rows(ours)[0])
    if not count:
        return Finding("labelled in part", "0 studies")
    remedy = (
        f"`dicom-node status {first}` tells where: please report it, and with a mended node `dicom-node retry "
        "--in-part`; `dicom-node dismiss STUDY --because TEXT` leaves it so"
    )
    return Finding(
        "labelled in part", f"{counted(count, 'study', 'studies')}, a series of which failed in our code", remedy
    )


def _answer(detail: str) -> str:
    """What a destination's last answer comes down to, without its own words: they may name a patient."""
    return next((words for words in _ANSWERS if words in detail), "its last answer was no success")


def _disk(settings: Settings) -> Iterator[Finding]:
    """Room for images; as the receiver looks at it before every push."""
    if not settings.home.is_dir():
        return
    free = shutil.disk_usage(settings.home).free
    state = f"{free >> 20} MiB free, {settings.reserve_mib} MiB of them stay so (reserve_mib)"
    if free < settings.reserve_mib << 20:
        yield Finding("disk of home", f"every push is refused (0xA700): {state}", _MAKE_ROOM)
    else:
        yield Finding("disk of home", state)


def _certificates(settings: Settings) -> Iterator[Finding]:
    """As peers see them: until when they hold, and whether the receiver could take them up now."""
    if (tls := settings.tls) is None:
        return
    try:
        server_context(tls)
        now = time.time()
        for one in held(tls):
            yield Finding(f"TLS {one.setting}", one.stands(now), one.doubt(now))
    except ConfigurationError as error:
        remedy = "put files back that belong together (`dicom-node config check`); they count at once"
        yield Finding("TLS certificate", f"cannot be used: {error}", remedy)


def _clocks(ahead: Mapping[str, float]) -> Iterator[Finding]:
    for name, seconds in ahead.items():
        off = abs(seconds) > SKEW
        state = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} ours" if off else "as ours"
        yield Finding(f"clock of the {name}", state, "let both machines follow one time server (NTP)" if off else "")


def skews(settings: Settings, ledger: Ledger) -> Iterator[tuple[str, float]]:
    """How far other clocks are ahead of the ledger's, seconds; one that cannot be asked is left out."""
    if (moment := ledger.pulses.database_time()) is not None:
        yield "database", moment - ledger.clock()
    if settings.broker and (moment := Bell(connect(settings)).time()) is not None:
        yield "broker", moment - ledger.clock()
    try:
        with tempfile.NamedTemporaryFile(dir=settings.home) as probe:
            yield "disk", Path(probe.name).stat().st_mtime - ledger.clock()
    except OSError:
        pass
    newest = ledger.rows(select(func.max(study.c.last_at)))[0][0]
    if newest and newest - ledger.clock() > SKEW:
        yield "latest image", newest - ledger.clock()


def _since(now: float, moment: float | None) -> str:
    return "" if moment is None else f", the oldest for {_span(now - moment)}"


def _span(seconds: float) -> str:
    """A duration as people say it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
