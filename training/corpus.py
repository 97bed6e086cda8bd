"""Labelled volumes -> planes that wait for the trainer, split by subject.

A label of a slice is present (1), absent (0) or unknown (-1); what a reader was unsure of and what a collection does
not annotate is unknown and never counts as absent.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from labeler.nifti import read_nifti
from labeler.preprocess import PreprocessSpec, canvas
from labeler.prompts import Modality, PlaneName
from labeler.vocabulary import Vocabulary, vocabulary

Split = Literal["train", "val"]
States = NDArray[np.int8]

PRESENT, ABSENT, UNKNOWN = 1, 0, -1


@dataclass(frozen=True)
class LabelledStack:
    """One volume: its planes on the canvas and what each of them shows.

    Attributes:
        values: float16 (n, canvas, canvas); HU for CT, 0..1 for MR.
        states: int8 (n, labels), PRESENT, ABSENT or UNKNOWN, in the vocabulary's order.
        positions: mm along the stack, one per plane.
        mm: side of one canvas pixel.
    """

    name: str
    subject: str
    split: Split
    modality: Modality
    plane: PlaneName
    values: NDArray[np.float16]
    states: States
    positions: tuple[float, ...]
    mm: float | None = None
    licence: str = ""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.states):
            raise ValueError(f"{self.name}: {len(self.values)} planes but labels for {len(self.states)}")


def read_anatomy(folder: Path, spec: PreprocessSpec, cache: Path | None = None) -> list[LabelledStack]:
    """The slice-range collection: `volumes.csv`, `labels.csv` and `volumes/NAME.nii.gz`.

    `labels.csv` gives inclusive slice ranges; kind `unsure` makes a label unknown in the whole volume.
    Canvases are kept in `cache`, keyed by the preprocessing, when a folder is given.
    """
    ranges = _ranges(folder / "labels.csv")
    with (folder / "volumes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    stacks = [
        _anatomy_stack(folder, row, ranges[row["volume"]], spec, cache)
        for row in track(rows, description="Reading volumes")
    ]
    check_split(stacks)
    return stacks


def _ranges(path: Path) -> dict[str, list[dict[str, str]]]:
    ranges: dict[str, list[dict[str, str]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            ranges[row["volume"]].append(row)
    return ranges


def _anatomy_stack(
    folder: Path, row: dict[str, str], ranges: Sequence[dict[str, str]], spec: PreprocessSpec, cache: Path | None
) -> LabelledStack:
    modality: Modality = "CT" if row["modality"] == "CT" else "MR"
    split: Split = "val" if row["split"] == "val" else "train"
    path = folder / "volumes" / f"{row['volume']}.nii.gz"
    prepared = _prepared(path, modality, spec, cache)
    states = states_from_ranges(int(row["slices"]), ranges, vocabulary())[prepared.kept]
    return LabelledStack(
        row["volume"],
        row["subject"],
        split,
        modality,
        prepared.plane,
        prepared.values,
        states,
        tuple(prepared.positions.tolist()),
        float(prepared.mm) or None,
        row["licence"],
    )


def states_from_ranges(slices: int, ranges: Iterable[dict[str, str]], words: Vocabulary) -> States:
    """(slices, labels): absent unless a range says present; unknown where a reader was unsure."""
    states = np.full((slices, len(words.labels)), ABSENT, np.int8)
    for row in ranges:
        column = words.index(row["label"])
        if row["kind"] == "unsure":
            states[:, column] = np.where(states[:, column] == PRESENT, PRESENT, UNKNOWN)
        else:
            states[int(row["first"]) : int(row["last"]) + 1, column] = PRESENT
    return states


@dataclass(frozen=True)
class _Prepared:
    """One volume on the canvas; `kept` are the indices of slices that are not blank."""

    values: NDArray[np.float16]
    plane: PlaneName
    positions: NDArray[np.float64]
    kept: NDArray[np.int64]
    mm: float


def _prepared(path: Path, modality: Modality, spec: PreprocessSpec, cache: Path | None) -> _Prepared:
    key = hashlib.sha256(f"3|{path.name}|{path.stat().st_size}|{spec.sha256}".encode()).hexdigest()[:16]
    kept_at = cache / f"{path.name.removesuffix('.nii.gz')}-{key}.npz" if cache else None
    if kept_at and kept_at.exists():
        with np.load(kept_at) as stored:
            plane = cast(PlaneName, str(stored["plane"]))
            return _Prepared(stored["values"], plane, stored["positions"], stored["kept"], float(stored["mm"]))
    (stack,) = read_nifti(path, modality, spec.canvas).stacks
    planes = stack.planes
    square = canvas([plane.pixels for plane in planes], stack.mm, modality, spec)
    made = _Prepared(
        square.values.astype(np.float16),
        stack.plane,
        np.array([plane.position for plane in planes]),
        np.array([plane.source.index for plane in planes]),
        square.mm or 0.0,
    )
    if kept_at:
        kept_at.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept_at, **made.__dict__)
    return made


def check_split(stacks: Iterable[LabelledStack]) -> None:
    """ValueError when a subject stands in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for stack in stacks:
        splits[stack.subject].add(stack.split)
    torn = sorted(subject for subject, found in splits.items() if len(found) > 1)
    if torn:
        raise ValueError(f"subjects in more than one split: {', '.join(torn)}; a person belongs to one split only")


def of_split(stacks: Iterable[LabelledStack], split: Split) -> Iterator[LabelledStack]:
    return (stack for stack in stacks if stack.split == split)
