"""Cosines -> logits -> probabilities: the numbers between the encoders and the decisions, without either."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """Per label, logit = scale * cosine + bias; fitted on held-out subjects: sigmoid(logit) is a probability."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]

    def logits(self, cosines: Logits) -> Logits:
        """(n, labels) -> (n, labels)."""
        return (cosines * np.asarray(self.scale, np.float32) + np.asarray(self.bias, np.float32)).astype(np.float32)


def probabilities(logits: Logits) -> NDArray[np.float32]:
    """The logistic function, without overflow."""
    p: NDArray[np.float32] = (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
    return p
