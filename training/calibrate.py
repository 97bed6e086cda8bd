"""Cosines -> probabilities that mean what they say, and thresholds, fitted on held-out subjects.

Per label a scale and a bias, drawn towards what training learnt as strongly as the label is rare in the held-out split;
likewise a threshold, drawn towards the one that serves all labels of its kind: a label seen on three people is not
refitted on three people. Below its threshold a label is doubted, not denied, down to where few true ones lie. What such
fitting is worth on other people is told by `training.judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from labeler.aggregate import Smoothing
from labeler.calibration import Calibration, Logits, probabilities
from labeler.vocabulary import Vocabulary
from training.corpus import PRESENT, UNKNOWN, LabelledStack, States

#: Positive slices at which a label's own fit and the prior weigh the same.
PRIOR = 60.0
THRESHOLD_PRIOR = 150.0
#: Share of true labels that may be denied outright; between this and the threshold the answer is "not sure".
DENIED_WRONGLY = 0.05
#: A label is never called present at less than three in ten.
THRESHOLDS = np.arange(0.3, 0.71, 0.05)


@dataclass(frozen=True)
class Fit:
    """Everything that is fitted on held-out people."""

    calibration: Calibration
    thresholds: NDArray[np.float32]
    doubt: NDArray[np.float32]
    smoothing: Smoothing

    def logits(self, cosines: Logits, stack: LabelledStack, words: Vocabulary) -> Logits:
        """Smoothed, calibrated logits of one stack."""
        return self.smoothing.of(self.calibration.logits(cosines), stack.positions, stack.plane, words)


def fit_all(
    stacks: Sequence[LabelledStack],
    cosines: Sequence[Logits],
    start: Calibration | None,
    smoothing: Smoothing,
    words: Vocabulary,
) -> Fit:
    """Calibration of single slices, then thresholds of what smoothing makes of them.

    Args:
        start: what training learnt; None, where it learnt no such thing, begins with one fit for all labels together.
    """
    states, flat = np.concatenate([stack.states for stack in stacks]), np.concatenate(cosines)
    calibration = calibrate(flat, states, start or common_calibration(flat, states))
    smoothed = [
        smoothing.of(calibration.logits(cosine), stack.positions, stack.plane, words)
        for cosine, stack in zip(cosines, stacks, strict=True)
    ]
    p = probabilities(np.concatenate(smoothed))
    thresholds = choose_thresholds(p, states, words)
    return Fit(calibration, thresholds, choose_doubt(p, states, thresholds, words), smoothing)


def calibrate(cosines: Logits, states: States, start: Calibration) -> Calibration:
    """Fit scale and bias per label by penalised logistic regression.

    Args:
        cosines: (n, labels) of held-out slices, unsmoothed.
        states: int8 (n, labels); UNKNOWN slices take no part.
        start: what training learnt; labels without positives keep it.
    """
    scale, bias = np.array(start.scale), np.array(start.bias)
    for column in range(states.shape[1]):
        known = states[:, column] != UNKNOWN
        truth = (states[known, column] == PRESENT).astype(float)
        if truth.sum() < 5:
            continue
        scale[column], bias[column] = _fit(cosines[known, column], truth, scale[column], bias[column])
    return Calibration(tuple(scale.tolist()), tuple(bias.tolist()))


def common_calibration(cosines: Logits, states: States) -> Calibration:
    """One scale and one bias that serve all labels."""
    known = states != UNKNOWN
    truth, cosine = (states[known] == PRESENT).astype(float), cosines[known]

    def loss(x: NDArray[np.float64]) -> float:
        logit = np.exp(x[0]) * cosine + x[1]
        return float(np.mean(np.logaddexp(0, logit) - truth * logit))

    best = minimize(loss, np.array([np.log(10.0), -2.0]), method="Nelder-Mead").x
    labels = states.shape[1]
    return Calibration((float(np.exp(best[0])),) * labels, (float(best[1]),) * labels)


def _fit(cosine: NDArray[np.float32], truth: NDArray[np.float64], scale: float, bias: float) -> tuple[float, float]:
    positives = truth.sum()
    trust = positives / (positives + PRIOR)

    def loss(x: NDArray[np.float64]) -> float:
        logit = np.exp(x[0]) * cosine + x[1]
        likelihood = np.mean(np.logaddexp(0, logit) - truth * logit)
        drawn = ((x[0] - np.log(scale)) / 0.7) ** 2 + ((x[1] - bias) / 2.0) ** 2
        return float(trust * likelihood + (1 - trust) * 0.02 * drawn)

    best = minimize(loss, np.array([np.log(scale), bias]), method="Nelder-Mead").x
    return float(np.exp(best[0])), float(best[1])


def choose_thresholds(p: NDArray[np.float32], states: States, words: Vocabulary) -> NDArray[np.float32]:
    """Per label the threshold of best F1, drawn towards the best one of all labels of its kind."""
    chosen = np.full(len(words.labels), 0.5, np.float32)
    for kind in ("station", "organ"):
        columns = [i for i, label in enumerate(words.labels) if label.kind == kind]
        curves = {column: _f1_curve(p[:, column], states[:, column]) for column in columns}
        positives = {column: int((states[:, column] == PRESENT).sum()) for column in columns}
        total = sum(positives.values())
        if not total:
            continue
        common = np.sum([positives[c] * curves[c] for c in columns], axis=0) / total
        for column in columns:
            own = positives[column] * curves[column] + THRESHOLD_PRIOR * common
            chosen[column] = THRESHOLDS[int(np.argmax(own))]
    return chosen


def choose_doubt(
    p: NDArray[np.float32], states: States, thresholds: NDArray[np.float32], words: Vocabulary
) -> NDArray[np.float32]:
    """Per kind the probability below which only `DENIED_WRONGLY` of the true labels lie; at most the threshold."""
    chosen = thresholds.copy()
    for kind in ("station", "organ"):
        columns = [i for i, label in enumerate(words.labels) if label.kind == kind]
        true = p[:, columns][states[:, columns] == PRESENT]
        if len(true):
            chosen[columns] = np.minimum(np.quantile(true, DENIED_WRONGLY), thresholds[columns])
    return chosen


def _f1_curve(p: NDArray[np.float32], states: States) -> NDArray[np.float64]:
    """F1 at every candidate threshold."""
    known = states != UNKNOWN
    guess = p[known, None] >= THRESHOLDS
    truth = (states[known] == PRESENT)[:, None]
    tp, wrong = (truth & guess).sum(0), (truth ^ guess).sum(0)
    return np.divide(2 * tp, 2 * tp + wrong, out=np.zeros(len(THRESHOLDS)), where=(2 * tp + wrong) > 0)


def reliability(p: NDArray[np.float32], states: States, bins: int = 15) -> list[tuple[float, float, int]]:
    """Per equal-width bin: mean confidence, frequency of truth, number of known (slice, label) pairs."""
    known = states != UNKNOWN
    confidence, truth = p[known], states[known] == PRESENT
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        (float(confidence[index == b].mean()), float(truth[index == b].mean()), int((index == b).sum()))
        for b in range(bins)
        if (index == b).any()
    ]


def expected_calibration_error(p: NDArray[np.float32], states: States, bins: int = 15) -> float:
    """ECE over all known (slice, label) pairs: mean distance of confidence and frequency."""
    rows = reliability(p, states, bins)
    total = sum(count for _, _, count in rows)
    return sum(count * abs(confidence - truth) for confidence, truth, count in rows) / total
