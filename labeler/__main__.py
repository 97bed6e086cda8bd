"""`python -m labeler label PATH`: label a DICOM folder or a NIfTI volume on this machine, no network, no queue."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from labeler.errors import LabelerError
from labeler.result import SeriesLabels
from labeler.slices import Skip
from labeler.vocabulary import vocabulary

#: Files that are named.
_NAMED = 10

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


class ModalityName(StrEnum):
    CT = "CT"
    MR = "MR"


@app.command()
def label(
    path: Annotated[Path, typer.Argument(help="Folder of DICOM files, a DICOM file, or a NIfTI volume (CT in HU).")],
    modality: Annotated[ModalityName | None, typer.Option(help="Of a NIfTI volume; DICOM says it itself.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all probabilities there.")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Bundle folder, or a CLIP checkpoint (folder or hub name) used zero-shot.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Say which stations and organs every slice shows."""
    from labeler.label import Labeler

    console = Console(stderr=True)
    try:
        if json_file:
            _must_take(json_file)
        labeler = Labeler.load(bundle, device)
        read = labeler.read(path, modality.value if modality else None)
        series = track(read, description="Labelling", console=console, transient=True)
        answers = [labeler.label(one) for one in series]
    except LabelerError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from error
    for answer in answers:
        shown = [table(answer)] if answer.slices else []
        Console().print(*shown, *notes(answer), sep="\n", highlight=False)
    if json_file:
        documents = [answer.to_json() for answer in answers]
        json_file.write_text(json.dumps(documents[0] if len(documents) == 1 else documents, indent=1))
    if not any(answer.slices for answer in answers):
        console.print("[red]no image could be labelled; what is written above says why[/red]")
        raise typer.Exit(1)


def _must_take(file: Path) -> None:
    """Before the work: a file that cannot be written is told at once."""
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise LabelerError(f"--json {file}: cannot be written; name a file in a folder that is there and yours")


@app.command()
def check(
    bundle: Annotated[str | None, typer.Option(help="As for `label`.")] = None,
    device: Annotated[str, typer.Option(help="As for `label`.")] = "auto",
) -> None:
    """Load the model and say which it is, and where it runs."""
    from labeler.label import Labeler

    try:
        labeler = Labeler.load(bundle, device)
    except LabelerError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    print(f"{labeler.info.name} {labeler.info.version} on {labeler.scorer.encoders.device}")


def table(answer: SeriesLabels) -> Table:
    """One row per station and organ: where, how surely."""
    words = vocabulary()
    title = f"{answer.modality} {answer.plane or ''} - {len(answer.slices)} images"
    shown = Table(title=title, title_justify="left", caption=answer.series_instance_uid, caption_justify="left")
    for column in ("", "label", "images", "best", "certainty"):
        shown.add_column(column)
    for finding in answer.findings:
        ranges = ", ".join(
            _number(answer, first) if first == last else f"{_number(answer, first)}-{_number(answer, last)}"
            for first, last in finding.ranges
        )
        best = _number(answer, finding.best)
        shown.add_row(finding.kind, words[finding.name].text, ranges, best, f"{finding.certainty:.0%}")
    return shown


def _number(answer: SeriesLabels, position: int) -> str:
    source = answer.slices[position].source
    return str(source.index if source.sop_instance_uid is None else source.shown_number)


def notes(answer: SeriesLabels) -> list[str]:
    """Which model said so, and how many images carry no label for which reason."""
    left_out: dict[Skip, list[str]] = {}
    for item in answer.skipped:
        left_out.setdefault(item.reason, []).append(item.detail)
    calibrated = "" if answer.bundle.calibrated else "; zero-shot, uncalibrated"
    said = [f"{len(told)} not labelled: {reason.value}{_files(reason, told)}" for reason, told in left_out.items()]
    if answer.unsure:
        said.append("not sure: " + ", ".join(vocabulary()[name].text for name in answer.unsure))
    return [f"{answer.bundle.name} {answer.bundle.version}{calibrated}; not for diagnosis", *said]


def _files(reason: Skip, told: Sequence[str]) -> str:
    """Which files, where nothing in them says so."""
    if reason not in (Skip.NOT_DICOM, Skip.AWAY):
        return ""
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return f" ({', '.join(told[:_NAMED])}{more})"


@app.callback()
def main() -> None:
    """Label images on this machine."""


app()
