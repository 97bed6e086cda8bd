"""Slices -> a series: smooth along the stack, decide, and let no organ contradict its station. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.calibration import Logits, probabilities
from labeler.order import CHAIN, BodyOrder, ordered, places_of
from labeler.prompts import PlaneName
from labeler.result import Finding
from labeler.vocabulary import Vocabulary

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Smoothing:
    """What the slices of a stack say of each other. Chosen on held-out people; part of a bundle."""

    #: Standard deviation of the weights of neighbours, mm; 0 takes every slice alone.
    millimetres: float = 0.0
    #: How the stations of axial stacks follow one another; None lets them come as they may.
    order: BodyOrder | None = None

    def of(self, logits: Logits, positions: Sequence[float], plane: PlaneName, words: Vocabulary) -> Logits:
        """Calibrated logits (n, labels) of one stack -> what the whole stack makes of them.

        Images of which it is not known where they stand are left alone.
        """
        if not np.isfinite(positions).all():
            return logits
        out = smooth(logits, positions, self.millimetres)
        if self.order is None or plane != "axial" or places_of(positions)[-1] < 2:
            return out
        chain = [words.index(name) for name in CHAIN]
        settled, share = ordered(logits[:, chain], positions, self.order), self.order.share
        out = out.copy()
        out[:, chain] = (1 - share) * out[:, chain] + share * settled
        return out

    def __str__(self) -> str:
        width = f"gaussian {self.millimetres:g} mm" if self.millimetres else "none"
        return f"{width}, stations in body order" if self.order else width

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Smoothing:
        """Every field, no more and no less; KeyError or TypeError tell which."""
        order = data["order"]
        if order is not None and (missing := BodyOrder.__dataclass_fields__.keys() - order.keys()):
            raise KeyError(f"smoothing lacks {', '.join(sorted(missing))}")
        return cls(float(data["millimetres"]), BodyOrder(**order) if order is not None else None)


def smooth(logits: Logits, positions: Sequence[float], millimetres: float) -> Logits:
    """Average neighbours along the stack with Gaussian weights of their distance in mm.

    Phases of one place are weighed together: a functional MR has ten thousand images of forty places.

    Args:
        logits: (n, labels) in stack order.
        positions: (n,) mm along the stack.
        millimetres: standard deviation of the weights; 0 leaves everything as it is.
    """
    if millimetres <= 0 or len(logits) < 3:
        return logits
    along, place, counts = np.unique(np.asarray(positions, np.float64), return_inverse=True, return_counts=True)
    sums = np.zeros((len(along), logits.shape[1]))
    np.add.at(sums, place, logits)
    weights = np.exp(-0.5 * ((along[:, None] - along[None]) / millimetres) ** 2)
    return ((weights @ sums) / (weights @ counts)[:, None])[place].astype(np.float32)


def consistent(logits: Logits, thresholds: NDArray[np.float32], words: Vocabulary) -> Logits:
    """Logits whose decisions never show an organ outside all of its stations.

    Where they would, the less sure side gives way: the organ's likeliest station is raised to present when it misses
    its threshold by less than the organ exceeds its own, else the organ is lowered to absent.
    """
    out = logits.copy()
    cut = _logit(thresholds)
    for column, homes in words.homes():
        lonely = (out[:, column] >= cut[column]) & (out[:, homes] < cut[homes]).all(axis=1)
        for row in np.flatnonzero(lonely):
            missing = cut[homes] - out[row, homes]
            nearest = int(np.argmin(missing))
            if missing[nearest] < out[row, column] - cut[column]:
                out[row, homes[nearest]] = cut[homes[nearest]] + 1e-3
            else:
                out[row, column] = cut[column] - 1e-3
    return out


def _logit(p: NDArray[np.float32]) -> NDArray[np.float32]:
    p = np.clip(p, 1e-4, 1 - 1e-4)
    logit: NDArray[np.float32] = np.log(p / (1 - p)).astype(np.float32)
    return logit


def decisions(logits: Logits, thresholds: NDArray[np.float32]) -> Mask:
    """Which labels reach their thresholds, slice by slice, consistent or not."""
    return np.greater_equal(logits, _logit(thresholds))


def decide(logits: Logits, thresholds: NDArray[np.float32], words: Vocabulary) -> tuple[NDArray[np.float32], Mask]:
    """Probabilities (n, labels) and which of them count as present, free of contradictions."""
    settled = consistent(logits, thresholds, words)
    return probabilities(settled), decisions(settled, thresholds)


def doubtful(p: NDArray[np.float32], present: Mask, doubt: NDArray[np.float32], words: Vocabulary) -> Mask:
    """Labels about which the honest answer is "not sure": missed, but not by enough to say that they are absent.

    Args:
        doubt: (labels,) probability from which a label that is not present counts as unsure.
    An organ is unsure only where one of its stations is present or unsure too.
    """
    unsure: Mask = ~present & (p >= doubt)
    somewhere = present | unsure
    for column, homes in words.homes():
        unsure[:, column] &= somewhere[:, homes].any(axis=1)
    return unsure


def findings(p: NDArray[np.float32], present: Mask, words: Vocabulary) -> tuple[Finding, ...]:
    """One finding per label that at least one slice shows: stations first, each in the order of appearance."""
    found = []
    for column, label in enumerate(words.labels):
        mask = present[:, column]
        if mask.any():
            shown = np.where(mask, p[:, column], -1.0)
            found.append(
                Finding(
                    label.name,
                    label.kind,
                    runs(mask),
                    int(np.argmax(shown)),
                    float(shown.max()),
                    float(p[mask, column].mean()),
                )
            )
    return tuple(sorted(found, key=lambda f: (f.kind != "station", f.ranges[0][0], f.name)))


def runs(mask: Mask) -> tuple[tuple[int, int], ...]:
    """Inclusive first and last positions of every stretch of True."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return tuple(
        (int(first), int(last) - 1)
        for first, last in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True)
    )
