"""The paper's experiments as one table: what each part of the recipe is worth (Kakkar et al., arXiv 2405.20735).

    python -m training experiments CONFIG.toml --out runs/experiments --seeds 3

Every row adds one part to the row above it. All rows are judged alike: last weights, no smoothing, calibration and
thresholds fitted on other people. A killed command goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from rich.console import Console

from labeler.aggregate import Smoothing
from labeler.model import load_encoders
from labeler.score import Scorer, with_directions
from labeler.vocabulary import vocabulary
from training.config import Config
from training.corpus import LabelledStack
from training.evaluate import Metrics, stack_pictures
from training.judge import judge
from training.start import save_checkpoint, starting_encoders
from training.synthesis import Body
from training.train import DIRECTIONS, fit

#: What the paper reports as relative gain over its baseline, per kind.
PAPER = {"organs": 0.476, "stations": 0.27}

BASELINE = "plain fine-tuning, one prompt, organs only"
BEST = "+ synthesis"
RARE = "+ label sigmoid, for rare labels"


@dataclass(frozen=True)
class Variant:
    """One row of the table; `trained` is False for the starting weights as they are."""

    name: str
    config: Config
    trained: bool = True


def variants(config: Config) -> list[Variant]:
    """Rows in the paper's order, then ours: each the row above and one part more."""
    full = config.recipe
    plain = replace(
        full,
        stations=False,
        image_augmentation=False,
        language_augmentation=False,
        loss="plain",
        label_sigmoid=0.0,
        classifier=False,
    )
    real = replace(config, data=replace(config.data, synthetic_share=0.0))
    steps = [
        (BASELINE, plain),
        ("+ stations", plain := replace(plain, stations=True)),
        ("+ image augmentation", plain := replace(plain, image_augmentation=True)),
        ("+ language augmentation", plain := replace(plain, language_augmentation=True)),
        ("+ balanced loss", plain := replace(plain, loss="balanced")),
        (RARE, plain := replace(plain, label_sigmoid=full.label_sigmoid or 4.0)),
    ]
    rows = [Variant("starting weights, zero-shot", real, trained=False)]
    rows += [Variant(name, replace(real, recipe=recipe)) for name, recipe in steps]
    if config.data.labelmaps and config.data.synthetic_share:
        rows.append(Variant(BEST, replace(config, recipe=plain)))
    rows.append(
        Variant("classifier without sentences", replace(rows[-1].config, recipe=replace(plain, classifier=True)))
    )
    return rows


def experiments(
    config: Config, stacks: Sequence[LabelledStack], bodies: Sequence[Body], out: Path, seeds: int = 3
) -> str:
    """Train and judge every variant with every seed; returns the table as Markdown and writes it to `out`."""
    found: dict[str, list[Metrics]] = {}
    rows = variants(config)
    for number, variant in enumerate(rows):
        for seed in range(seeds if variant.trained else 1):
            run = out / f"{number}-seed{seed}"
            Console().print(f"[bold]{variant.name}[/bold], seed {seed}")
            metrics = _kept(run) or _trained(variant, seed, stacks, bodies, run)
            found.setdefault(variant.name, []).append(metrics)
    text = table(found)
    (out / "experiments.md").write_text(text)
    return text


def _kept(run: Path) -> Metrics | None:
    """The figures that an earlier call left."""
    path = run / "judged.json"
    return Metrics(**json.loads(path.read_text())) if path.exists() else None


def _trained(
    variant: Variant, seed: int, stacks: Sequence[LabelledStack], bodies: Sequence[Body], run: Path
) -> Metrics:
    steps = variant.config.train.steps
    config = replace(variant.config, train=replace(variant.config.train, seed=seed, evaluate_every=steps))
    if variant.trained:
        fit(config, stacks, run, bodies)
    else:
        save_checkpoint(starting_encoders(config), run / "best")
    words = vocabulary()
    scorer = Scorer(load_encoders(run / "best", config.train.device), words)
    if (run / "best" / DIRECTIONS).exists():
        scorer = with_directions(scorer, np.load(run / "best" / DIRECTIONS))
    held_out = [stack for stack in stacks if stack.split == "val"]
    cosines = [scorer.cosines(stack_pictures(s, config.preprocess), s.modality, s.plane) for s in held_out]
    metrics = judge(held_out, cosines, None, Smoothing(), words).metrics
    (run / "judged.json").write_text(json.dumps(metrics.to_json()))
    return metrics


def table(found: dict[str, list[Metrics]]) -> str:
    """Markdown: a row per variant, mean and spread over the seeds; then the gains beside the paper's."""
    keys = list(next(iter(found.values()))[0].micro)
    head = ["", *(f"{key} F1 micro / macro" for key in keys), "mAP organs", "mAP stations", "contradictions / 1000"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, metrics in found.items():
        cells = [f"{_spread([m.micro[k] for m in metrics])} / {mean(m.macro[k] for m in metrics):.3f}" for k in keys]
        for kind in PAPER:
            cells.append(_spread([_of_kind(m.average_precision, kind) for m in metrics]))
        cells.append(_spread([m.contradictions for m in metrics], digits=0))
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join([*lines, "", *_by_plane(found), "", *_gains(found)]) + "\n"


def _by_plane(found: dict[str, list[Metrics]]) -> list[str]:
    keys = list(next(iter(found.values()))[0].planes)
    lines = ["| micro F1 | " + " | ".join(keys) + " |", "|" + " --- |" * (len(keys) + 1)]
    for name, metrics in found.items():
        lines.append("| " + " | ".join([name, *(_spread([m.planes[k] for m in metrics]) for k in keys)]) + " |")
    return lines


def _gains(found: dict[str, list[Metrics]]) -> list[str]:
    if BASELINE not in found:
        return []
    full = BEST if BEST in found else RARE
    lines = []
    for kind, paper in PAPER.items():
        before = mean(_of_kind(m.micro, kind) for m in found[BASELINE])
        after = mean(_of_kind(m.micro, kind) for m in found[full])
        score, error = (after - before) / max(before, 1e-9), (after - before) / max(1 - before, 1e-9)
        lines.append(
            f"- {kind}: micro F1 {before:.3f} -> {after:.3f}: {score:+.1%} of the score, {error:+.1%} of the error "
            f"that was left (the paper: {paper:+.1%})"
        )
    return lines


def _of_kind(figures: dict[str, float], kind: str) -> float:
    """Mean over the modalities."""
    return mean(value for key, value in figures.items() if key.endswith(kind))


def _spread(values: Sequence[float], digits: int = 3) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
