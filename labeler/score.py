"""Pictures -> one logit per label: cosine to the label's prompt ensemble, brought to a calibrated scale."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from labeler.calibration import Calibration, Logits
from labeler.model import Embeddings, Encoders
from labeler.preprocess import Pictures
from labeler.prompts import MODALITIES, PLANES, Modality, PlaneName, absent_prompts, label_prompts
from labeler.vocabulary import Vocabulary


@dataclass
class Scorer:
    """Scores pictures against the vocabulary's prompts.

    Without a calibration (a checkpoint used zero-shot) the logit is the model's own preference for the sentences
    that claim a label over those that deny it.
    """

    encoders: Encoders
    words: Vocabulary
    calibration: Calibration | None = None
    _texts: dict[tuple[str, str, bool], Embeddings] = field(default_factory=dict, repr=False)

    def logits(self, pictures: Pictures, modality: Modality, plane: PlaneName, batch_size: int = 32) -> Logits:
        """uint8 (n, side, side, 3) -> float32 (n, labels)."""
        images = self.encoders.images(pictures, batch_size)
        cosine = images @ self._ensemble(modality, plane, claimed=True).T
        if self.calibration is None:
            denied = images @ self._ensemble(modality, plane, claimed=False).T
            return (self.encoders.logit_scale * (cosine - denied)).astype(np.float32)
        return self.calibration.logits(cosine)

    def cosines(self, pictures: Pictures, modality: Modality, plane: PlaneName) -> Logits:
        """Cosines (n, labels) before any calibration; what a calibration is fitted on."""
        cosines: Logits = self.encoders.images(pictures) @ self._ensemble(modality, plane, claimed=True).T
        return cosines

    def _ensemble(self, modality: Modality, plane: PlaneName, *, claimed: bool) -> Embeddings:
        """(labels, d): per label the mean direction of its sentences."""
        key = (modality, plane, claimed)
        if key not in self._texts:
            make = label_prompts if claimed else absent_prompts
            sentences = [make(label, modality, plane) for label in self.words.labels]
            embedded = self.encoders.texts([text for group in sentences for text in group])
            mean = embedded.reshape(len(sentences), -1, embedded.shape[-1]).mean(axis=1)
            self._texts[key] = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
        return self._texts[key]


def with_directions(scorer: Scorer, directions: Embeddings) -> Scorer:
    """A scorer that asks learnt directions (labels, d) in place of sentences: a plain classifier, for comparison."""
    keys = ((modality, plane, True) for modality in MODALITIES for plane in PLANES)
    texts: dict[tuple[str, str, bool], Embeddings] = dict.fromkeys(keys, directions)
    return Scorer(scorer.encoders, scorer.words, scorer.calibration, texts)
