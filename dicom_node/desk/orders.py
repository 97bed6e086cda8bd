"""What `retry`, `dismiss` and `redirect` have in common, and their answers: what follows, or why nothing was done."""

from __future__ import annotations

import getpass
import math
import os
import time
from collections.abc import Mapping
from typing import TypeVar

import typer
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.errors import ConfigurationError
from dicom_node.ledger import Ledger
from dicom_node.ledger.deliveries import UNSENT, Deliveries
from dicom_node.ledger.schema import Store, open_engine, said_by_driver
from dicom_node.settings import Settings
from dicom_node.study import Dismissal, Redirection, State, StudyRow

Named = TypeVar("Named", bound=str)


def one_or_all(study: str | None, chosen: Mapping[Named, bool], reason: str) -> list[Named]:
    """The states of which all studies are meant; none where one study is named.

    Raises:
        BadParameter: both or neither.
    """
    states = [state for state, wanted in chosen.items() if wanted]
    if (study is None) == (not states) or (study and reason):
        named = [f"--{state}" for state in chosen]
        raise typer.BadParameter(
            f"name a study, or all that are {', '.join(named[:-1])} or {named[-1]} [--reason TEXT]"
        )
    return states


def a_dismissal(because: str, by: str | None) -> Dismissal:
    """A person's word.

    Raises:
        BadParameter: it gives no reason.
    """
    if not because.strip():
        raise typer.BadParameter("say why: who reads it in a year was not there", param_hint="--because")
    return Dismissal((by or "").strip() or _who(), because.strip())


def a_redirection(settings: Settings, origin: str, to: str, by: str | None) -> Redirection:
    """A person's word.

    Raises:
        BadParameter: from one to the same.
        ConfigurationError: `to` is no peer that gets reports.
    """
    if origin == to:
        raise typer.BadParameter(f"{to} is to get it already; name another peer", param_hint="--to")
    if settings.peer(to) not in settings.receivers_of_reports:
        others = ", ".join(peer.name for peer in settings.receivers_of_reports) or "no peer"
        raise ConfigurationError(
            f'peer {to!r} gets no reports, {others} does: write "reports" into its `may`, and its name into '
            "`destinations` where the settings have that"
        )
    return Redirection((by or "").strip() or _who(), origin, to)


def what_stays(ledger: Ledger, origin: str) -> str:
    """What is owed yet to a peer from which all was redirected."""
    if not (count := ledger.deliveries.owed().get(origin, 0)):
        return f"nothing waits for {origin} now"
    return (
        f"{count} to {origin} stay, under way at this moment (say it again in a minute) or answers about storage "
        f"commitment (if {origin} is gone: `dicom-node deliveries dismiss --to {origin} --waiting --because TEXT`)"
    )


def known_receivers(settings: Settings) -> str:
    """Are all for whom deliveries wait peers of these settings? Asks a ledger that is there, as it is.

    Raises:
        ConfigurationError: says whose are not, and what mends it.
    """
    if settings.ledger_file is not None and not settings.ledger_file.is_file():
        return "nothing waits"
    engine = open_engine(settings.ledger_url)
    try:
        owed = Deliveries(Store(engine, time.time)).owed()
    except SQLAlchemyError as error:
        return f"not known ({said_by_driver(error)})"
    finally:
        engine.dispose()
    names = {peer.name for peer in settings.peers}
    if strangers := {name: count for name, count in owed.items() if name not in names}:
        told = ", ".join(f"{count} to {name}" for name, count in strangers.items())
        first = next(iter(strangers))
        raise ConfigurationError(
            f"of no peer in the settings: {told}. Give it its name back, or `dicom-node deliveries redirect --from "
            f"{first} --to PEER`"
        )
    return f"{sum(owed.values())} wait or failed"


def _who() -> str:
    """Who is logged in, and not the account to which sudo led."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def what_follows(settings: Settings, study: str = "") -> str:
    """What becomes of the images of a study that was dismissed, and how to take it back."""
    back = f"retry {study}" if study else "retry --dismissed"
    if math.isinf(settings.retention_days):
        stay = "Its images stay" if study else "Images stay"
        return f"{stay} (retention_days = inf); `dicom-node {back}` takes it back."
    return (
        f"Images go {settings.retention_days:g} days after the last one came, sooner where the disk runs low, and none "
        f"while a delivery of its study is owed; until then `dicom-node {back}` takes it back."
    )


def why_not_retried(study: str, row: StudyRow | None) -> str:
    if row is None:
        return f"{study}: never received here; see `dicom-node status`"
    if UNSENT in row.reason:  # behind why it was purged before its time, where it was
        return (
            f"{study}: is {row.state}, {row.reason}. To deliver it after all: `dicom-node deliveries retry REPORT`, or "
            f"to another peer `dicom-node deliveries redirect --from OLD --to NEW --dismissed [REPORT]`; "
            f"`dicom-node status {study}` lists them"
        )
    if row.state == State.PURGED:
        return f"{study}: is purged, its images have left the spool; push it again to have it labelled"
    return f"{study}: is {row.state}, nothing of it failed; see `dicom-node status`"


def why_not_dismissed(study: str, row: StudyRow | None) -> str:
    if row is None:
        return f"{study}: never received here; see `dicom-node status`"
    if row.state == State.QUARANTINED:
        return (
            f"{study}: is labelled, {row.reason}. To leave it at that: `dicom-node deliveries dismiss REPORT --to PEER "
            f"--because TEXT`; `dicom-node status {study}` lists them"
        )
    if row.state == State.DISMISSED:
        return f"{study}: is dismissed already ({row.reason})"
    waits = "it does not wait for a person" if row.state != State.PURGED else "its images have left the spool already"
    return f"{study}: is {row.state}, {waits}; see `dicom-node status {study}`"
