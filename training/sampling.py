"""Which planes a batch is drawn from: rare labels and small people count, CT gets its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labeler.preprocess import PreprocessSpec, ruler_pixels
from labeler.vocabulary import vocabulary
from training.captions import Shown
from training.corpus import ABSENT, PRESENT, UNKNOWN, LabelledStack, States

#: Labels whose anatomy has sides: a picture that shows one is never mirrored.
_ASYMMETRIC = ("heart", "liver", "spleen", "stomach", "gallbladder", "pancreas", "duodenum", "colon", "aorta")


@dataclass
class Planes:
    """All training planes in one block, and how often each is drawn."""

    values: Tensor
    states: States
    shown: list[Shown]
    is_ct: Tensor
    mirror: Tensor
    ruler: Tensor
    weights: Tensor

    @classmethod
    def of(cls, stacks: Sequence[LabelledStack], ct_share: float, spec: PreprocessSpec) -> Planes:
        states = np.concatenate([stack.states for stack in stacks])
        shown = [Shown(s.modality, s.plane, row) for s in stacks for row in s.states]
        is_ct = np.array([image.modality == "CT" for image in shown])
        sagittal = np.array([image.plane == "sagittal" for image in shown])
        columns = [vocabulary().index(name) for name in _ASYMMETRIC]
        return cls(
            torch.from_numpy(np.concatenate([stack.values for stack in stacks])),
            states,
            shown,
            torch.from_numpy(is_ct),
            torch.from_numpy(~sagittal & (states[:, columns] != PRESENT).all(axis=1)),
            torch.tensor([ruler_pixels(stack.mm, spec) for stack in stacks for _ in stack.states]),
            torch.from_numpy(sampling_weights(stacks, states, is_ct, ct_share)),
        )

    def drawn(self, chosen: Tensor, close: Tensor) -> Drawn:
        """The planes of these indices, those of `close` (bool) to be cut to a close-up."""
        pairs = zip(chosen.tolist(), close.tolist(), strict=True)
        shown = [close_up(self.shown[i]) if cut else self.shown[i] for i, cut in pairs]
        values = self.values[chosen.to(self.values.device)].float()
        return Drawn(Canvases(values, self.is_ct[chosen], self.mirror[chosen], self.ruler[chosen], close), shown)


class Canvases(NamedTuple):
    """What `training.augment.pictures` makes pictures of, one entry an image."""

    values: Tensor
    is_ct: Tensor
    mirror: Tensor
    ruler: Tensor
    close: Tensor


@dataclass
class Drawn:
    """One batch before augmentation."""

    canvases: Canvases
    shown: list[Shown]

    def to(self, device: torch.device) -> Drawn:
        return Drawn(Canvases._make(block.to(device) for block in self.canvases), self.shown)

    def split(self, count: int) -> tuple[Drawn, Drawn]:
        """The first `count` and the rest."""
        first, rest = (
            Canvases._make(block[part] for block in self.canvases) for part in (slice(count), slice(count, None))
        )
        return Drawn(first, self.shown[:count]), Drawn(rest, self.shown[count:])

    def joined(self, other: Drawn) -> Drawn:
        pairs = zip(self.to(other.canvases.values.device).canvases, other.canvases, strict=True)
        return Drawn(Canvases._make(torch.cat(pair) for pair in pairs), [*self.shown, *other.shown])


def close_up(image: Shown) -> Shown:
    """What is still known of an image when a part of it is shown: what it lacks, and its station if it has but one.

    A station beside one that is unknown is not sure: the part may show just the other.
    """
    states = image.states.copy()
    present = states == PRESENT
    stations = np.array([label.kind == "station" for label in vocabulary().labels])
    sure = stations if (stations & (states != ABSENT)).sum() == 1 else np.zeros_like(stations)
    states[present & ~sure] = UNKNOWN
    return Shown(image.modality, image.plane, states)


def sampling_weights(stacks: Sequence[LabelledStack], states: States, is_ct: np.ndarray, ct_share: float) -> np.ndarray:
    """How often each plane is drawn: its rarest label decides, people count alike, CT gets its share."""
    present = states == PRESENT
    rarity = 1 / np.sqrt(np.maximum(present.sum(axis=0), 1))
    weights = np.where(present.any(axis=1), (present * rarity).max(axis=1), rarity.min())
    subjects = np.concatenate([[stack.subject] * len(stack.states) for stack in stacks])
    _, inverse, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    weights = weights / np.sqrt(counts[inverse])
    for mask, share in ((is_ct, ct_share), (~is_ct, 1 - ct_share)):
        if mask.any():
            weights[mask] *= share / weights[mask].sum()
    return weights


def positive_weights(states: States, weights: Tensor) -> Tensor:
    """How much a label's positives count more than its negatives, from how often the sampler shows them: 1..8."""
    share = weights.numpy()[:, None] / weights.sum().item()
    present = (share * (states == PRESENT)).sum(axis=0) / np.maximum((share * (states != UNKNOWN)).sum(axis=0), 1e-9)
    ratio = np.sqrt((1 - present) / np.maximum(present, 1e-3))
    return torch.from_numpy(np.clip(ratio, 1, 8)).float()
