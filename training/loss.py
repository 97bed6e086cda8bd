"""What the encoders are asked for.

All losses compare unit embeddings of images (n, d) and sentences (m, d) and are told which pairs match: PRESENT,
ABSENT or UNKNOWN (left out), as `training.captions.matches` says.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.corpus import PRESENT, UNKNOWN


def plain_contrastive(images: Tensor, sentences: Tensor, scale: Tensor) -> Tensor:
    """CLIP's own loss (Radford et al. 2021): the i-th sentence belongs to the i-th image and to no other."""
    logits = images @ sentences.T * scale
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def balanced_contrastive(
    images: Tensor, sentences: Tensor, match: Tensor, scale: Tensor, balance: float = 0.5
) -> Tensor:
    """Both directions with many positives: every matching sentence shares an image's probability, and the reverse.

    Args:
        match: int (n, m); UNKNOWN pairs take no part.
        balance: weight of image -> text; the rest is text -> image (the paper's balanced loss).
    """
    logits = (images @ sentences.T * scale).masked_fill(match == UNKNOWN, -math.inf)
    positive = (match == PRESENT).float()
    return balance * _shared(logits, positive) + (1 - balance) * _shared(logits.T, positive.T)


def _shared(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross entropy against equal shares for all positives of a row; rows without any are left out."""
    count = positive.sum(1)
    rows = count > 0
    if not rows.any():
        return logits.new_zeros(())
    logarithm = F.log_softmax(logits[rows], dim=1).masked_fill(positive[rows] == 0, 0.0)
    return -(logarithm.sum(1) / count[rows]).mean()


class LabelSigmoid(nn.Module):
    """Each sentence of one label asks yes or no of each image (the sigmoid loss of Zhai et al. 2023), balanced.

    Rare labels weigh as much as common ones: `positive_weight` is learnt from how often the sampler shows a label.
    With `directions` > 0 it holds a learnt vector of that width per label: the plain classifier to compare with.
    """

    def __init__(self, positive_weight: Tensor, bias: float = -2.0, directions: int = 0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((len(positive_weight),), bias))
        self.directions = nn.Parameter(torch.randn(len(positive_weight), directions)) if directions else None
        self.positive_weight: Tensor
        self.register_buffer("positive_weight", positive_weight)

    def unit_directions(self) -> Tensor | None:
        """(labels, d), or None where sentences stand for the labels."""
        return None if self.directions is None else F.normalize(self.directions.detach(), dim=1)

    def classified(self, images: Tensor, states: Tensor, scale: Tensor) -> Tensor:
        """The loss of a classifier without sentences; states int8 (n, labels)."""
        assert self.directions is not None, "made without directions"
        label = torch.arange(len(self.bias), device=images.device)
        return self(images, F.normalize(self.directions, dim=1), label, states, scale)

    def forward(self, images: Tensor, sentences: Tensor, label: Tensor, match: Tensor, scale: Tensor) -> Tensor:
        """Args: sentences (m, d), each about the label index in `label` (m,); match int (n, m)."""
        logits = images @ sentences.T * scale + self.bias[label]
        known = (match != UNKNOWN).float()
        weight = torch.where(match == PRESENT, self.positive_weight[label], torch.ones_like(logits))
        loss = F.binary_cross_entropy_with_logits(logits, (match == PRESENT).float(), reduction="none")
        return (loss * weight * known).sum() / known.sum().clamp(min=1)
