"""The sentences that the text encoder reads: one set for training and serving.

Language augmentation of the paper (Kakkar et al., arXiv 2405.20735): a sentence may name the modality, the
orientation, the station and the organs, in changing words. Training draws from these templates at random;
serving averages over all of them (a prompt ensemble).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Literal

from labeler.vocabulary import Label, vocabulary

Modality = Literal["CT", "MR"]
PlaneName = Literal["axial", "sagittal", "coronal"]

MODALITIES: tuple[Modality, ...] = ("CT", "MR")
PLANES: tuple[PlaneName, ...] = ("axial", "sagittal", "coronal")

MODALITY_WORDS: dict[Modality, tuple[str, ...]] = {
    "CT": ("ct", "computed tomography"),
    "MR": ("mr", "magnetic resonance", "mri"),
}

#: One label; used alone and in ensembles. Each may name modality and plane.
LABEL_TEMPLATES = (
    "the {label}",
    "an image of the {label}",
    "{modality} of the {label}",
    "{plane} {modality} image showing the {label}",
    "{plane} slice through the {label}",
    "a {modality} scan, {plane} view, with the {label} visible",
)

#: The same claim denied; only for checkpoints without calibration (zero-shot).
ABSENT_TEMPLATES = (
    "an image without the {label}",
    "{modality} in which the {label} is not visible",
    "{plane} {modality} image of another body part, no {label}",
)

#: Station and organs in one sentence: the caption of a training image.
CAPTION_TEMPLATES = (
    "{plane} {modality} of the {stations} showing the {organs}",
    "{modality} image, {plane} plane, {stations}: {organs}",
    "{stations} {modality}, {plane}, with {organs}",
    "a {plane} slice of the {stations} in which the {organs} can be seen",
    "{organs} in the {stations} on {modality}",
)
STATION_TEMPLATES = (
    "{plane} {modality} of the {stations}",
    "{modality} image of the {stations}, {plane} plane",
    "a {plane} slice through the {stations}",
)


def canonical(text: str) -> str:
    """Lower case, single spaces, no closing point: what both encoders' tokenizers see."""
    return " ".join(text.lower().replace("_", " ").split()).rstrip(".")


def label_prompts(label: Label, modality: Modality, plane: PlaneName) -> list[str]:
    """The ensemble of sentences that claim this label, for one modality and orientation."""
    return _filled(LABEL_TEMPLATES, label, modality, plane)


def absent_prompts(label: Label, modality: Modality, plane: PlaneName) -> list[str]:
    """The ensemble of sentences that deny this label."""
    return _filled(ABSENT_TEMPLATES, label, modality, plane)


def _filled(templates: Sequence[str], label: Label, modality: Modality, plane: PlaneName) -> list[str]:
    word = MODALITY_WORDS[modality][0]
    return [canonical(t.format(label=label.text, modality=word, plane=plane)) for t in templates]


def random_label_prompt(label: Label, modality: Modality, plane: PlaneName, random: Random) -> str:
    """One sentence that claims this label, in words drawn at random."""
    text = random.choice((label.text, label.text, *label.synonyms))
    word = random.choice(MODALITY_WORDS[modality])
    return canonical(random.choice(LABEL_TEMPLATES).format(label=text, modality=word, plane=plane))


def random_caption(
    stations: Sequence[Label], organs: Sequence[Label], modality: Modality, plane: PlaneName, random: Random
) -> str:
    """A sentence that claims these stations and organs together, in words drawn at random."""
    templates = CAPTION_TEMPLATES if organs else STATION_TEMPLATES
    return canonical(
        random.choice(templates).format(
            stations=_listing(stations, random) or "body",
            organs=_listing(organs, random),
            modality=random.choice(MODALITY_WORDS[modality]),
            plane=plane,
        )
    )


def plain_caption(stations: Sequence[Label], organs: Sequence[Label], modality: Modality, plane: PlaneName) -> str:
    """The one fixed sentence of the experiments without language augmentation."""
    shown = ", ".join(label.text for label in (*stations, *organs)) or "body"
    return canonical(f"{plane} {MODALITY_WORDS[modality][0]} image showing the {shown}")


def _listing(labels: Sequence[Label], random: Random) -> str:
    words = [random.choice((label.text, label.text, *label.synonyms)) for label in labels]
    random.shuffle(words)
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


@cache
def prompts_sha256() -> str:
    """Hash over every sentence that serving can utter: the manifest's proof that the words are unchanged."""
    digest = hashlib.sha256()
    for label in vocabulary().labels:
        for modality in MODALITIES:
            for plane in PLANES:
                for text in label_prompts(label, modality, plane) + absent_prompts(label, modality, plane):
                    digest.update(text.encode() + b"\n")
    return digest.hexdigest()
