"""`config check`: will a node of these settings work? Tried as far as a moment allows, and nothing is left behind."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydicom.uid import SecondaryCaptureImageStorage
from rich.table import Table
from rich.text import Text
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.association.call import Caller
from dicom_node.association.certificates import held
from dicom_node.association.tls import server_context
from dicom_node.association.transport import trouble_at, unheard
from dicom_node.desk.orders import known_receivers
from dicom_node.desk.tables import table
from dicom_node.errors import ConfigurationError, NodeError, Retry
from dicom_node.ledger.schema import open_engine, said_by_driver
from dicom_node.send import best_class, echo, preflight
from dicom_node.settings import ADDRESS, Peer, Settings, Tls, strange_variables
from dicom_node.study import REPORT_CLASSES
from dicom_node.tasks import Bell, connect
from labeler.errors import LabelerError
from labeler.place import is_here

#: Seconds in which a database answers.
_PATIENCE = 3
#: Seconds in which a bundle loads.
_LOADED = 120


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    what: str
    setting: str
    state: str = ""
    well: bool = True
    doubtful: bool = False


class Doubt(NodeError):
    """It works, but not for long or not for all; a person should look."""


def looked_at(settings: Settings, ask: bool) -> Iterator[Row]:
    """Everything, in the order of the file; `ask`: the broker, the database and every peer with a port too."""
    yield _tried("we are", f"{settings.ae_title} at {settings.bind}:{settings.port}", lambda: _may_listen(settings))
    if strange := strange_variables():
        yield Row("environment", "", "; ".join(strange), doubtful=True)
    yield from _own(settings, ask)
    if (tls := settings.tls) is not None:
        yield _tried("tls ends", str(tls.certificate), lambda: _in_time(tls))
    yield _tried("reserve", f"{settings.reserve_mib} MiB stay free", lambda: _room(settings))
    broker = _shown(settings.broker or "embedded")
    yield _tried("broker", broker, lambda: _broker_answers(settings) if settings.broker and ask else "")
    bundle = f"{settings.bundle or 'the one in the package'}, device {settings.device}"
    yield _tried("bundle", bundle, lambda: _model(settings))
    if ask:
        yield _tried("deliveries", "to peers of these settings", lambda: known_receivers(settings))
    yield _tried("images come from", "", lambda: _pushers(settings))
    yield _tried("reports go to", settings.addressees, lambda: _addressed(settings))
    for peer in settings.peers:
        what = f"{peer.ae_title} at {peer.host}:{peer.port or '-'}, may {', '.join(sorted(peer.may))}"
        yield _tried(f"peer {peer.name}", what, partial(_asked, settings, peer) if ask else lambda: "not asked")


def must_work(settings: Settings) -> None:
    """What no process of a node can do without.

    Raises:
        ConfigurationError: says all of it that cannot work.
    """
    wrong = [f"{row.what} {row.setting}: {row.state}" for row in _own(settings) if not row.well]
    if wrong:
        raise ConfigurationError("\n".join(wrong))


def table_of(rows: Iterator[Row], config: Path | None) -> tuple[Table, bool]:
    """What was looked at in words, and whether all is well."""
    seen = list(rows)
    cells = ((row.what, row.setting, Text(row.state, _style(row))) for row in seen)
    made = table(f"Settings from {config or 'the defaults and the environment'}", ("what", "setting", "state"), cells)
    return made, all(row.well for row in seen)


def _style(row: Row) -> str:
    return "red" if not row.well else "yellow" if row.doubtful else ""


def _own(settings: Settings, ask: bool = False) -> Iterator[Row]:
    """What is looked at on this machine alone, at once; `ask`: the database too."""
    yield _tried("home", str(settings.home), lambda: _folder(settings.home))
    if (file := settings.ledger_file) is not None:
        yield _tried("ledger", _shown(settings.ledger_url), lambda: _database_file(file))
    else:
        look = _database_answers if ask else _driver
        yield _tried("ledger", _shown(settings.ledger_url), lambda: look(settings.ledger_url))
    if (tls := settings.tls) is not None:
        yield _tried("tls", str(tls.certificate), lambda: f"port {tls.port}" if server_context(tls) else "")


def _tried(what: str, setting: str, look: Callable[[], str]) -> Row:
    try:
        return Row(what, setting, look())
    except Doubt as doubt:
        return Row(what, setting, str(doubt), doubtful=True)
    except (NodeError, LabelerError) as error:
        return Row(what, setting, str(error), well=False)


def _in_time(tls: Tls) -> str:
    """Our certificates end one day; a node starts all the same, since its plain port takes images."""
    now, all_held = time.time(), tuple(held(tls))
    told = "; ".join(filter(None, (one.doubt(now) for one in all_held)))
    if any(one.is_over(now) or now < one.begins for one in all_held):
        raise ConfigurationError(told)
    if told:
        raise Doubt(told)
    return min(all_held, key=lambda one: one.until).stands(now)


def _shown(url: str) -> str:
    """Without the password."""
    return url.rsplit("@", 1)[-1]


def _may_listen(settings: Settings) -> str:
    taken = []
    for port in (settings.port, *([settings.tls.port] if settings.tls else [])):
        trouble = trouble_at(settings.bind, port)
        if trouble is not None and trouble.errno != errno.EADDRINUSE:
            raise ConfigurationError(unheard(settings.bind, port, trouble))
        taken += [str(port)] if trouble else []
    return f"{' and '.join(taken)} taken: by this node if it runs, else by another program" if taken else "free"


def _existing(home: Path) -> Path:
    return next(place for place in (home, *home.absolute().parents) if place.exists())


def _folder(home: Path) -> str:
    place = _existing(home)
    if not place.is_dir():
        raise ConfigurationError(f"{place} is a file, and a folder is wanted: move it away, or set another place")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be written ({error.strerror}): give it to the node's user, or set another place"
        ) from error
    return "exists" if place == home else f"will be made in {place}"


def _database_file(file: Path) -> str:
    if file.is_dir():
        raise ConfigurationError(f"{file} is a folder, and a file is wanted: write sqlite:///{file}/ledger.sqlite")
    _folder(file.parent)
    if not file.exists():
        return "will be made"
    _readable(file)
    return "exists"


def _readable(file: Path) -> None:
    """Opens it as it is, and looks into every table."""
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)) as ledger:
            tables = ledger.execute("select name from sqlite_master where type = 'table'").fetchall()
            for (name,) in tables:
                ledger.execute(f'select * from "{name}" limit 1').fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise Doubt(f"{file} could not be read within {_PATIENCE} s ({error}): try again") from error
        raise ConfigurationError(f"{file} cannot be read ({error}): give it to the node's user") from error
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"{file} is damaged ({error}): stop the node and put its backup back, or move it away, with its -wal and "
            "-shm: without a ledger, what is in spool/ is labelled and sent again (Restore in deploy/README.md)"
        ) from error


def _driver(url: str) -> str:
    open_engine(url).dispose()
    return "not asked"


def _database_answers(url: str) -> str:
    engine = open_engine(url, _PATIENCE)
    try:
        with engine.connect() as connection:
            connection.execute(text("select 1"))
    except SQLAlchemyError as error:
        raise Retry(f"does not answer ({said_by_driver(error)}): start the database, or mend `ledger`") from error
    finally:
        engine.dispose()
    return "answers"


def _room(settings: Settings) -> str:
    free = shutil.disk_usage(_existing(settings.home)).free >> 20
    if free < settings.reserve_mib:
        raise ConfigurationError(
            f"only {free} MiB are free at home: every push would be refused (0xA700); make room, or lower reserve_mib"
        )
    return f"{free} MiB are free"


def _broker_answers(settings: Settings) -> str:
    if Bell(connect(settings)).time() is None:
        raise Retry("does not answer: start it, or take `broker` out of the settings for an embedded one")
    return "answers"


def _model(settings: Settings) -> str:
    """In a child: who answers people loads no model."""
    if settings.bundle and not is_here(settings.bundle):
        return "a name on the hub; the worker fetches it"
    chosen = ("--bundle", settings.bundle) if settings.bundle else ()
    child = (sys.executable, "-m", "labeler", "check", *chosen, "--device", settings.device)
    try:
        done = subprocess.run(child, capture_output=True, text=True, timeout=_LOADED, check=True)
    except subprocess.TimeoutExpired as error:
        raise Retry(f"not loaded within {_LOADED} s; try again") from error
    except subprocess.CalledProcessError as error:
        raise ConfigurationError(error.stderr.strip().rpartition("\n")[2] or f"exit code {error.returncode}") from error
    return f"loads: {done.stdout.strip()}"


def _asked(settings: Settings, peer: Peer) -> str:
    if peer.port is None:
        return _looked_up(peer)
    with Caller(settings) as caller:
        echo(peer, caller)
        return _takes_reports(peer, caller) if peer in settings.receivers_of_reports else "answers"


def _takes_reports(peer: Peer, caller: Caller) -> str:
    found = preflight(peer, caller)
    wanting = f"answers, and would refuse our {{}}: let it accept {{}} (`dicom-node preflight {peer.name}`)"
    if (best := best_class(found)) is None:
        raise Retry(wanting.format("reports", f"{REPORT_CLASSES[0].name} in Implicit VR Little Endian"))
    if peer.sheet and not found[SecondaryCaptureImageStorage]:
        raise Doubt(f"{wanting.format('sheets', SecondaryCaptureImageStorage.name)}, or set sheet = false")
    return f"answers, takes {best.name}"


def _pushers(settings: Settings) -> str:
    names = [peer.name for peer in settings.peers if "push" in peer.may]
    if not names:
        raise Doubt('nobody may push: add a [[peers]] table with may = ["push"] for every scanner')
    return ", ".join(names)


def _addressed(settings: Settings) -> str:
    if settings.is_unaddressed:
        raise Doubt(ADDRESS)
    return ""


def _looked_up(peer: Peer) -> str:
    """Of one that only calls us: a name that nobody knows lets nobody in."""
    if not peer.is_somewhere:
        raise Doubt(
            f"{peer.host} cannot be looked up, and whoever calls as {peer.ae_title} is turned away: check host in "
            f"[[peers]] {peer.name!r} and the name server, or write its address"
        )
    return "no port, not asked"
