"""The served path, measured: pictures by `prepare`, scores by `labeler.score`, decisions by `labeler.aggregate`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table
from torch import Tensor

from labeler.aggregate import decide, decisions
from labeler.calibration import Calibration, Logits
from labeler.label import Labeler
from labeler.model import Encoders
from labeler.preprocess import Canvas, Pictures, PreprocessSpec, picture_of_canvas
from labeler.prompts import MODALITIES, PLANES
from labeler.score import Scorer, with_directions
from labeler.vocabulary import Vocabulary, vocabulary
from training.corpus import PRESENT, UNKNOWN, LabelledStack, States

Mask = NDArray[np.bool_]

#: Slices that must show a label before it counts in a macro average.
ENOUGH = 5


@dataclass(frozen=True)
class Metrics:
    """F1 over known labels of slices. Keys are `CT organs`, `MR stations` ...; `planes` has `CT organs axial` ...

    `score`, by which a run is chosen, is the mean of the four micro F1. `average_precision` is the mean over labels
    (mAP); `contradictions` counts organs outside all of their stations per 1000 images, before they are mended.
    """

    score: float
    micro: dict[str, float]
    macro: dict[str, float]
    labels: dict[str, dict[str, float]] = field(default_factory=dict)
    planes: dict[str, float] = field(default_factory=dict)
    average_precision: dict[str, float] = field(default_factory=dict)
    contradictions: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{key} {self.micro[key]:.3f} (macro {self.macro[key]:.3f})" for key in self.micro]
        return f"score {self.score:.4f}; " + ", ".join(parts)


def uncalibrated(scale: float, bias: Tensor) -> Calibration:
    """The training loss's own scale and biases, for choosing among checkpoints."""
    return Calibration((scale,) * len(bias), tuple(bias.detach().float().cpu().tolist()))


def evaluate(
    encoders: Encoders,
    stacks: Sequence[LabelledStack],
    spec: PreprocessSpec,
    calibration: Calibration | None,
    directions: Tensor | None = None,
) -> Metrics:
    """Score stacks slice by slice, without smoothing, at probability one half.

    Args:
        directions: (labels, d) of a classifier that has no sentences.
    """
    words = vocabulary()
    scorer = Scorer(encoders, words, calibration)
    if directions is not None:
        scorer = with_directions(scorer, directions.cpu().numpy())
    half = np.full(len(words.labels), 0.5, np.float32)
    logits = [score_stack(scorer, stack, spec) for stack in stacks]
    decided = [decide(z, half, words)[1] for z in logits]
    return measure(stacks, decided, words, logits, [decisions(z, half) for z in logits])


def evaluate_bundle(labeler: Labeler, stacks: Sequence[LabelledStack]) -> Metrics:
    """What `labeler.label` answers for these stacks: smoothed, with the bundle's thresholds, made consistent."""
    words = labeler.scorer.words
    logits = [
        labeler.smoothing.of(score_stack(labeler.scorer, stack, labeler.spec), stack.positions, stack.plane, words)
        for stack in track(stacks, description="Labelling")
    ]
    decided = [decide(z, labeler.thresholds, words)[1] for z in logits]
    return measure(stacks, decided, words, logits, [decisions(z, labeler.thresholds) for z in logits])


def score_stack(scorer: Scorer, stack: LabelledStack, spec: PreprocessSpec) -> Logits:
    return scorer.logits(stack_pictures(stack, spec), stack.modality, stack.plane)


def stack_pictures(stack: LabelledStack, spec: PreprocessSpec) -> Pictures:
    """What `prepare` makes of the planes that this stack was read from."""
    return picture_of_canvas(Canvas(stack.values.astype(np.float32), stack.mm), stack.modality, spec)


def measure(
    stacks: Sequence[LabelledStack],
    decided: Iterable[Mask],
    words: Vocabulary,
    logits: Sequence[Logits] | None = None,
    unmended: Iterable[Mask] = (),
) -> Metrics:
    """Compare decisions with what readers saw; unknown labels take no part.

    Args:
        logits: of the same stacks, for mAP.
        unmended: decisions before consistency, for the count of contradictions.
    """
    guesses = list(decided)
    micro: dict[str, float] = {}
    macro: dict[str, float] = {}
    labels: dict[str, dict[str, float]] = {}
    planes: dict[str, float] = {}
    precision: dict[str, float] = {}
    for modality in MODALITIES:
        rows = [i for i, stack in enumerate(stacks) if stack.modality == modality]
        if not rows:
            continue
        counts = _counts(stacks, guesses, rows, words)
        labels[modality] = {name: _f1(*c) for name, c in counts.items() if c[0] + c[2] > 0}
        for kind in ("organ", "station"):
            names = [label.name for label in words.labels if label.kind == kind]
            key = f"{modality} {kind}s"
            micro[key] = _f1(*np.sum([counts[name] for name in names], axis=0))
            seen = [name for name in names if counts[name][0] + counts[name][2] >= ENOUGH]
            macro[key] = float(np.mean([_f1(*counts[name]) for name in seen])) if seen else 0.0
            planes |= _by_plane(stacks, guesses, rows, names, key, words)
            if logits is not None:
                precision[key] = _mean_average_precision(stacks, logits, rows, seen, words)
    score = float(np.mean(list(micro.values()))) if micro else 0.0
    contradictions = contradictions_per_1000(list(unmended), words)
    return Metrics(score, micro, macro, labels, planes, precision, contradictions)


def metrics_table(metrics: Metrics, title: str) -> Table:
    """One row per modality and kind."""
    table = Table(title=title, title_justify="left")
    for column in ("", "micro F1", "macro F1", "mAP", "by plane"):
        table.add_column(column)
    for key, micro in metrics.micro.items():
        planes = ", ".join(
            f"{name.removeprefix(key).strip()} {f1:.3f}" for name, f1 in metrics.planes.items() if name.startswith(key)
        )
        precision = f"{metrics.average_precision.get(key, 0):.3f}"
        table.add_row(key, f"{micro:.3f}", f"{metrics.macro[key]:.3f}", precision, planes)
    table.caption = f"{metrics.contradictions:.1f} contradictions per 1000 images before they are mended"
    return table


def _by_plane(
    stacks: Sequence[LabelledStack],
    guesses: Sequence[Mask],
    rows: Sequence[int],
    names: Sequence[str],
    key: str,
    words: Vocabulary,
) -> dict[str, float]:
    found = {}
    for plane in PLANES:
        of_plane = [i for i in rows if stacks[i].plane == plane]
        if of_plane:
            counts = _counts(stacks, guesses, of_plane, words)
            found[f"{key} {plane}"] = _f1(*np.sum([counts[name] for name in names], axis=0))
    return found


def _counts(
    stacks: Sequence[LabelledStack], guesses: Sequence[Mask], rows: Sequence[int], words: Vocabulary
) -> dict[str, tuple[int, int, int]]:
    """Label -> true positives, false positives, false negatives over the stacks of these rows."""
    truth = np.concatenate([stacks[i].states for i in rows])
    guess = np.concatenate([guesses[i] for i in rows])
    known, yes = truth != UNKNOWN, truth == PRESENT
    counts = ((yes & guess).sum(0), (known & ~yes & guess).sum(0), (yes & ~guess).sum(0))
    return {name: (int(tp), int(fp), int(fn)) for name, tp, fp, fn in zip(words.names, *counts, strict=True)}


def _f1(tp: float, fp: float, fn: float) -> float:
    return float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else 0.0


def _mean_average_precision(
    stacks: Sequence[LabelledStack],
    logits: Sequence[Logits],
    rows: Sequence[int],
    names: Sequence[str],
    words: Vocabulary,
) -> float:
    truth = np.concatenate([stacks[i].states for i in rows])
    score = np.concatenate([logits[i] for i in rows])
    columns = [words.index(name) for name in names]
    found = [average_precision(score[:, c], truth[:, c]) for c in columns]
    return float(np.mean(found)) if found else 0.0


def average_precision(score: NDArray[np.float32], states: States) -> float:
    """Mean precision at the rank of every true slice; UNKNOWN slices take no part."""
    known = states != UNKNOWN
    order = np.argsort(-score[known], kind="stable")
    truth = (states[known] == PRESENT)[order]
    if not truth.any():
        return 0.0
    precision = np.cumsum(truth) / np.arange(1, len(truth) + 1)
    return float(precision[truth].mean())


def contradictions_per_1000(decided: Sequence[Mask], words: Vocabulary) -> float:
    """Organs shown outside all of their stations, per 1000 images."""
    images = sum(len(mask) for mask in decided)
    count = 0
    for column, homes in words.homes():
        count += sum(int((mask[:, column] & ~mask[:, homes].any(axis=1)).sum()) for mask in decided)
    return 1000 * count / max(1, images)
