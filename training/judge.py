"""Held-out people, labelled as by a bundle that was fitted on the others: the figures that a model card may print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labeler.aggregate import decide, decisions
from labeler.score import Calibration, Logits, probabilities
from labeler.vocabulary import Vocabulary
from training.calibrate import expected_calibration_error, fit_all
from training.corpus import LabelledStack, States
from training.evaluate import Mask, Metrics, measure

FOLDS = 5


@dataclass(frozen=True)
class Judged:
    """One entry per held-out stack: calibrated and smoothed logits, what was decided from them; and the figures."""

    stacks: Sequence[LabelledStack]
    logits: Sequence[Logits]
    decided: Sequence[Mask]
    metrics: Metrics
    ece: float

    @property
    def states(self) -> States:
        return np.concatenate([stack.states for stack in self.stacks])

    @property
    def probabilities(self) -> NDArray[np.float32]:
        return probabilities(np.concatenate(self.logits))


def judge(
    held_out: Sequence[LabelledStack],
    cosines: Sequence[Logits],
    start: Calibration | None,
    smoothing_mm: float,
    words: Vocabulary,
    folds: int = FOLDS,
) -> Judged:
    """Calibration and thresholds of every stack come from people of the other folds."""
    people = sorted({stack.subject for stack in held_out})
    fold_of = {person: number % folds for number, person in enumerate(people)}
    logits: dict[int, Logits] = {}
    decided: dict[int, Mask] = {}
    raw: dict[int, Mask] = {}
    for fold in sorted(set(fold_of.values())):
        others = [i for i, stack in enumerate(held_out) if fold_of[stack.subject] != fold]
        others = others or list(range(len(held_out)))
        fit = fit_all([held_out[i] for i in others], [cosines[i] for i in others], start, smoothing_mm, words)
        for i, stack in enumerate(held_out):
            if fold_of[stack.subject] == fold:
                logits[i] = fit.logits(cosines[i], stack.positions)
                decided[i] = decide(logits[i], fit.thresholds, words)[1]
                raw[i] = decisions(logits[i], fit.thresholds)
    order = range(len(held_out))
    metrics = measure(held_out, [decided[i] for i in order], words, [logits[i] for i in order], [raw[i] for i in order])
    states = np.concatenate([stack.states for stack in held_out])
    ece = expected_calibration_error(probabilities(np.concatenate([logits[i] for i in order])), states)
    return Judged(held_out, [logits[i] for i in order], [decided[i] for i in order], metrics, ece)
