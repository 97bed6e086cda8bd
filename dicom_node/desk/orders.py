"""What `retry` and `dismiss` have in common, and their answers: what follows, or why nothing was done."""

from __future__ import annotations

import getpass
import math
import os
from collections.abc import Mapping

import typer

from dicom_node.settings import Settings
from dicom_node.study import Dismissal, State, StudyRow


def one_or_all(study: str | None, chosen: Mapping[State, bool], reason: str) -> list[State]:
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
