"""Language augmentation: for every image a sentence, and for every sentence what it claims.

A sentence claims labels (and sometimes modality and orientation). An image matches it when all claims hold, does not
when one fails, and nothing is said about the pair when a claim is unknown. So two images of the liver are no
negatives of each other, whatever sentence either was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from labeler.prompts import (
    MODALITIES,
    MODALITY_WORDS,
    PLANES,
    Modality,
    PlaneName,
    plain_caption,
    random_caption,
    random_label_prompt,
)
from labeler.vocabulary import Vocabulary
from training.corpus import ABSENT, PRESENT, UNKNOWN, States

#: Organs named in one caption, at most; long lists teach little and cost tokens.
MAX_ORGANS = 5


@dataclass(frozen=True)
class Shown:
    """One image of a batch: how it was made and what it shows (states, int8 (labels,))."""

    modality: Modality
    plane: PlaneName
    states: States


@dataclass(frozen=True)
class Sentence:
    """A text and its claims: label indices, and modality and plane where the text names them."""

    text: str
    labels: tuple[int, ...]
    modality: Modality | None = None
    plane: PlaneName | None = None


def caption(
    image: Shown, words: Vocabulary, random: Random, *, stations: bool = True, augment: bool = True
) -> Sentence:
    """A sentence that is true of the image: its stations and a few of its organs.

    Args:
        stations: name stations (the paper's superset) or organs only.
        augment: draw words and order at random, or use the one fixed sentence.
    """
    present = [label for label, state in zip(words.labels, image.states, strict=True) if state == PRESENT]
    shown_stations = [label for label in present if label.kind == "station"] if stations else []
    organs = [label for label in present if label.kind == "organ"]
    if augment:
        random.shuffle(organs)
        organs = organs[: random.randint(0 if shown_stations else 1, MAX_ORGANS)]
        text = random_caption(shown_stations, organs, image.modality, image.plane, random)
    else:
        text = plain_caption(shown_stations, organs, image.modality, image.plane)
    claims = tuple(words.index(label.name) for label in (*shown_stations, *organs))
    return Sentence(text, claims, *_named(text, image.modality, image.plane))


def label_sentences(batch: Sequence[Shown], words: Vocabulary, random: Random) -> list[Sentence]:
    """A sentence for every label and every modality of the batch, in the orientation of one of its images."""
    sentences = []
    for modality in sorted({image.modality for image in batch}):
        planes = [image.plane for image in batch if image.modality == modality]
        for index, label in enumerate(words.labels):
            plane = random.choice(planes)
            text = random_label_prompt(label, modality, plane, random)
            sentences.append(Sentence(text, (index,), modality, _named(text, modality, plane)[1]))
    return sentences


def _named(text: str, modality: Modality, plane: PlaneName) -> tuple[Modality | None, PlaneName | None]:
    padded = f" {text.replace(',', ' ').replace(':', ' ')} "
    says_modality = any(f" {word} " in padded for word in MODALITY_WORDS[modality])
    return (modality if says_modality else None), (plane if f" {plane} " in padded else None)


def matches(images: Sequence[Shown], sentences: Sequence[Sentence], mismatch: int = ABSENT) -> States:
    """int8 (images, sentences): PRESENT where every claim holds, ABSENT where one fails, else UNKNOWN.

    A sentence about another modality or orientation than the image's gets `mismatch`: ABSENT teaches those words,
    UNKNOWN leaves the pair out.
    """
    states = np.stack([image.states for image in images]).astype(np.int8)
    result = np.full((len(images), len(sentences)), PRESENT, np.int8)
    for column, sentence in enumerate(sentences):
        claimed = states[:, list(sentence.labels)]
        if sentence.labels:
            result[(claimed == UNKNOWN).any(axis=1), column] = UNKNOWN
            result[(claimed == ABSENT).any(axis=1), column] = ABSENT
    return np.where(_made_alike(images, sentences), result, np.int8(mismatch))


def _made_alike(images: Sequence[Shown], sentences: Sequence[Sentence]) -> np.ndarray:
    """bool (images, sentences): the sentence names no other modality or plane than the image's."""
    image_modality = np.array([MODALITIES.index(i.modality) for i in images])[:, None]
    image_plane = np.array([PLANES.index(i.plane) for i in images])[:, None]
    modality = np.array([-1 if s.modality is None else MODALITIES.index(s.modality) for s in sentences])[None]
    plane = np.array([-1 if s.plane is None else PLANES.index(s.plane) for s in sentences])[None]
    return ((modality < 0) | (modality == image_modality)) & ((plane < 0) | (plane == image_plane))
