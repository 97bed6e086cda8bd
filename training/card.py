"""The model card that ships with a bundle: what it is for, what it was made of, how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labeler.bundle import Manifest
from training.config import Config
from training.corpus import LabelledStack

_TEXT = """# Model card: {name} {version}

Labels the body stations and organs that a CT or MR slice shows. A CLIP ({parameters}) fine-tuned or trained
contrastively on images and sentences after Kakkar et al., arXiv 2405.20735. Research use; **not for diagnosis**.

## Intended use and limits
Routing, hanging protocols, search and quality control of DICOM headers, with a person able to look. Not a detector of
disease, not a measurement. Trained on few people ({train_people}), mostly adults; thin on {thin}.
Small structures and the first and last slice of a structure are the least sure.

## Data
{train_volumes} volumes of {train_people} people for training, {val_volumes} volumes of {val_people} other people held
out; split by person. Licences of the sources (as found; no image is in this bundle):

{licences}

## Figures
On the held-out people, every slice, the served path (`labeler.prepare`, prompts, smoothing {smoothing:g} mm,
stations and organs made consistent). The split was used to choose the checkpoint, the calibration and the
smoothing, so expect somewhat less elsewhere.

| | micro F1 | macro F1 |
| --- | --- | --- |
{rows}

Expected calibration error {ece:.3f}. Decision threshold 0.5 for every label.

F1 per label (held-out slices that show it or were said to):

{labels}

## Training
{steps} steps of {batch} images, contrastive objective over captions that name modality, orientation, stations and
organs{sigmoid}. Commit {commit}.
"""


def model_card(manifest: Manifest, config: Config, stacks: Sequence[LabelledStack], facts: dict[str, Any]) -> str:
    """Markdown; every number from the manifest, the corpus or the run."""
    metrics = manifest.metrics
    train = [s for s in stacks if s.split == "train"]
    held_out = [s for s in stacks if s.split == "val"]
    return _TEXT.format(
        name=manifest.name,
        version=manifest.version,
        parameters=config.model.start or "convolutional stem and transformer, from scratch",
        train_people=len({s.subject for s in train}),
        val_people=len({s.subject for s in held_out}),
        train_volumes=len(train),
        val_volumes=len(held_out),
        thin="shoulder, hand, foot, knee (MR), heart (MR), children",
        licences="\n".join(f"- {licence}" for licence in sorted({s.licence for s in train if s.licence})),
        smoothing=manifest.smoothing_mm,
        rows="\n".join(f"| {k} | {v:.3f} | {metrics['macro'][k]:.3f} |" for k, v in metrics["micro"].items()),
        ece=metrics["ece"],
        labels=_label_table(metrics["labels"]),
        steps=facts["steps"],
        batch=config.train.batch,
        sigmoid=", and a per-label sigmoid loss" if config.recipe.label_sigmoid else "",
        commit=facts["commit"],
    )


def _label_table(labels: dict[str, dict[str, float]]) -> str:
    names = sorted({name for per in labels.values() for name in per})
    lines = ["| label | " + " | ".join(labels) + " |", "| --- |" + " --- |" * len(labels)]
    for name in names:
        cells = (f"{per[name]:.2f}" if name in per else "" for per in labels.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
