"""Held-out people, labelled as by a bundle that was fitted on the others: the figures that a model card may print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labeler.aggregate import Smoothing, decide, decisions
from labeler.calibration import Calibration, Logits, probabilities
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

    @property
    def states(self) -> States:
        return np.concatenate([stack.states for stack in self.stacks])

    @property
    def probabilities(self) -> NDArray[np.float32]:
        return probabilities(np.concatenate(self.logits))

    @property
    def ece(self) -> float:
        return expected_calibration_error(self.probabilities, self.states)


def judge(
    held_out: Sequence[LabelledStack],
    cosines: Sequence[Logits],
    start: Calibration | None,
    smoothing: Smoothing,
    words: Vocabulary,
    folds: int = FOLDS,
) -> Judged:
    """Calibration and thresholds of every stack come from people of the other folds."""
    people = sorted({stack.subject for stack in held_out})
    fold_of = {person: number % folds for number, person in enumerate(people)}
    fits = {}
    for fold in set(fold_of.values()):
        others = [i for i, stack in enumerate(held_out) if fold_of[stack.subject] != fold] or range(len(held_out))
        fits[fold] = fit_all([held_out[i] for i in others], [cosines[i] for i in others], start, smoothing, words)
    own = [fits[fold_of[stack.subject]] for stack in held_out]
    logits = [fit.logits(c, stack, words) for fit, c, stack in zip(own, cosines, held_out, strict=True)]
    decided = [decide(z, fit.thresholds, words)[1] for z, fit in zip(logits, own, strict=True)]
    unmended = [decisions(z, fit.thresholds) for z, fit in zip(logits, own, strict=True)]
    return Judged(held_out, logits, decided, measure(held_out, decided, words, logits, unmended))
