"""The model card that ships with a bundle: what it is for, what it was made of, how good it is, and where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labeler.bundle import Manifest, is_bundle, read_manifest
from labeler.vocabulary import vocabulary
from training.config import Config, ModelConfig
from training.corpus import PRESENT, LabelledStack
from training.evaluate import ENOUGH
from training.judge import FOLDS, Judged
from training.labelmaps import KINDS
from training.plots import failures, reliability_plot

_TEXT = """# Model card: {name} {version}

Labels the body stations and organs that a CT or MR slice shows. A CLIP, trained contrastively on images and sentences
after Kakkar et al., arXiv 2405.20735; {origin}. Research use; **not for diagnosis**.

## Intended use and limits
Routing, hanging protocols, search and quality control of DICOM headers, with a person able to look. Not a detector of
disease, not a measurement. Trained on {train_people} people, mostly adults. Labels that fewer than {few} training
people show are weak: {thin}.
Small structures and the first and last slice of a structure are the least sure.

## Data
{train_volumes} volumes of {train_people} people for training, {val_volumes} volumes of {val_people} other people held
out; split by person. {synthesis}Licences of the sources (as found; no image is in this bundle):

{licences}

## Figures
On the held-out people, every slice, the served path: `labeler.prepare`, prompts, smoothing ({smoothing}),
stations and organs made consistent. Calibration and thresholds of every person were fitted on the other people
({folds} folds); the checkpoint and the smoothing were chosen on this split, so expect somewhat less elsewhere.

| | micro F1 | macro F1 (labels on {enough} slices or more) | mAP |
| --- | --- | --- | --- |
{rows}

Micro F1 by plane: {planes}.

Organs outside all of their stations: {contradictions:.1f} per 1000 images before they are mended, none after.
Expected calibration error {ece:.3f}.

![Stated probability against observed frequency](reliability.png)

F1 per label (held-out slices that show it or were said to):

{labels}

## Where it fails
The held-out volumes with the most mistakes, label by label along their slices:

![Mistakes along the worst stacks](failures.png)

## Training
{steps} steps of {batch} images, contrastive objective over captions that name modality, orientation, stations and
organs{sigmoid}. Commit {commit}. Per label a threshold and a probability from which it is "not sure": `manifest.json`.
"""

#: What lies in a bundle for people; no part of what its hashes cover.
CARD_FILES = ("README.md", "reliability.png", "failures.png")

#: Training people below which a label is called weak.
FEW = 5


def write_card(
    bundle: Path,
    manifest: Manifest,
    config: Config,
    stacks: Sequence[LabelledStack],
    judged: Judged,
    facts: dict[str, Any],
) -> None:
    """`README.md` and its pictures; every number from the manifest, the corpus or the run."""
    readme, reliability, mistakes = (bundle / name for name in CARD_FILES)
    reliability_plot(judged, reliability)
    failures(judged, vocabulary(), mistakes)
    readme.write_text(model_card(manifest, config, stacks, facts))


def model_card(manifest: Manifest, config: Config, stacks: Sequence[LabelledStack], facts: dict[str, Any]) -> str:
    metrics = manifest.metrics
    train = [s for s in stacks if s.split == "train"]
    held_out = [s for s in stacks if s.split == "val"]
    return _TEXT.format(
        name=manifest.name,
        version=manifest.version,
        origin=origin(config.model),
        train_people=len({s.subject for s in train}),
        val_people=len({s.subject for s in held_out}),
        train_volumes=len(train),
        val_volumes=len(held_out),
        few=FEW,
        thin=", ".join(thin_labels(train)) or "none",
        synthesis=_synthesis(config),
        licences="\n".join(f"- {licence}" for licence in sorted({s.licence for s in train if s.licence})),
        smoothing=manifest.smoothing,
        folds=FOLDS,
        enough=ENOUGH,
        rows="\n".join(
            f"| {k} | {v:.3f} | {metrics['macro'][k]:.3f} | {metrics['average_precision'].get(k, 0):.3f} |"
            for k, v in metrics["micro"].items()
        ),
        planes=", ".join(f"{k} {v:.2f}" for k, v in metrics["planes"].items()),
        contradictions=metrics["contradictions"],
        ece=metrics["ece"],
        labels=_label_table(metrics["labels"]),
        steps=facts["steps"],
        batch=config.train.batch,
        sigmoid=", and a per-label sigmoid loss" if config.recipe.label_sigmoid else "",
        commit=facts["commit"],
    )


def origin(model: ModelConfig) -> str:
    """Where the weights began, in words that mean something on another machine."""
    start = model.start
    if not start and model.stem_weights:
        return f"stem {model.stem} with weights that have seen ImageNet (Apache-2.0), the rest from scratch"
    if not start:
        return "convolutional stem and transformer, from scratch"
    if is_bundle(start):
        earlier = read_manifest(Path(start))
        return f"continued from bundle {earlier.name} {earlier.version}, fingerprint {earlier.fingerprint[:12]}"
    return f"fine-tuned from {Path(start).name if Path(start).is_dir() else start}"


def thin_labels(train: Sequence[LabelledStack]) -> list[str]:
    """Texts of the labels that fewer than `FEW` training people show."""
    people: dict[int, set[str]] = {}
    for stack in train:
        for column in (stack.states == PRESENT).any(axis=0).nonzero()[0].tolist():
            people.setdefault(column, set()).add(stack.subject)
    return [label.text for column, label in enumerate(vocabulary().labels) if len(people.get(column, ())) < FEW]


def _synthesis(config: Config) -> str:
    if not (config.data.labelmaps and config.data.synthetic_share):
        return ""
    maps = Path(config.data.labelmaps)
    sources = [kind.source for prefix, kind in KINDS.items() if any(maps.glob(f"{prefix}*.nii.gz"))]
    share = f"{config.data.synthetic_share:.0%} of the pictures were painted from label maps with random contrast"
    return f"{share} ({'; '.join(sources)}). " if sources else f"{share}. "


def _label_table(labels: dict[str, dict[str, float]]) -> str:
    names = sorted({name for per in labels.values() for name in per})
    lines = ["| label | " + " | ".join(labels) + " |", "| --- |" + " --- |" * len(labels)]
    for name in names:
        cells = (f"{per[name]:.2f}" if name in per else "" for per in labels.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
