"""Finding a study without knowing its UID. The ledger knows no patient's name, and of numbers a hash only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType
from sqlalchemy import and_, select

from dicom_node.desk.tables import listed
from dicom_node.ledger.schema import instance, study
from dicom_node.spool.dataset import accession_key, patient_key
from dicom_node.study import State, StudyRow, moment


def sought(
    state: State | None = None, patient_id: str | None = None, issuer: str = "", accession: str | None = None
) -> Any:
    """A condition on studies: of this state, with an image of this patient, one of this order; None fits all."""
    wanted = [] if state is None else [study.c.state == state]
    if patient_id is not None:
        wanted.append(_with_image(instance.c.patient_key == patient_key(patient_id, issuer)))
    if accession is not None:
        wanted.append(_with_image(instance.c.accession_key == accession_key(accession)))
    return and_(True, *wanted)


def _with_image(condition: Any) -> Any:
    return study.c.study_uid.in_(select(instance.c.study_uid).where(condition))


def shown(title: str, rows: Iterable[StudyRow], why: bool = False) -> RenderableType:
    """A table of studies; `why`: with what is said of them, where something is said of any."""
    there = list(rows)
    columns = ["last image", "study", "state", "images", "peer"]
    cells = [[moment(row.last_at), row.study_uid, row.state, row.instances, row.peer] for row in there]
    if why and any(row.reason for row in there):
        columns.append("reason")
        cells = [[*cell, row.reason] for cell, row in zip(cells, there, strict=True)]
    return listed(title, columns, cells)
