"""A run's best checkpoint -> a bundle: calibrated, measured, hashed, with its model card.

python -m training export CONFIG.toml RUN BUNDLE

A bundle may stand in the place of the run: the same weights are calibrated anew, on other people or after other rules.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labeler.aggregate import Smoothing
from labeler.bundle import MANIFEST, Manifest, file_sha256, is_bundle
from labeler.calibration import Calibration
from labeler.model import Encoders, load_encoders
from labeler.order import BodyOrder
from labeler.prompts import prompts_sha256
from labeler.score import Scorer
from labeler.vocabulary import Vocabulary, vocabulary
from training.calibrate import Fit, fit_all
from training.card import CARD_FILES, write_card
from training.config import Config
from training.corpus import LabelledStack
from training.evaluate import Metrics, stack_pictures
from training.judge import Judged, judge
from training.start import save_checkpoint
from training.train import LEARNT, commit_of_code

#: What is tried along the stack on the held-out split: widths in mm, without and with the order of the body.
SMOOTHINGS = [Smoothing(width, order) for order in (None, BodyOrder()) for width in (0.0, 3.0, 6.0, 9.0, 13.0)]


def export(run: Path, bundle: Path, config: Config, stacks: Sequence[LabelledStack], version: str) -> Metrics:
    """Write the bundle; returns cross-validated figures of the served path on the held-out subjects."""
    if config.recipe.classifier:
        raise ValueError("[recipe] classifier = true is for comparison: such a run has no sentences that could serve")
    words = vocabulary()
    held_out = [stack for stack in stacks if stack.split == "val"]
    checkpoint = run if is_bundle(run) else run / "best"
    encoders = load_encoders(checkpoint, config.train.device)
    start = _learnt(checkpoint / LEARNT, encoders)
    scorer = Scorer(encoders, words, start)
    cosines = [scorer.cosines(stack_pictures(s, config.preprocess), s.modality, s.plane) for s in held_out]
    judged = {each: judge(held_out, cosines, start, each, words) for each in SMOOTHINGS}
    smoothing = max(judged, key=lambda each: judged[each].metrics.score)
    fit = fit_all(held_out, cosines, start, smoothing, words)
    _save_half(encoders, bundle)
    manifest = _manifest(bundle, config, version, fit, judged[smoothing], words)
    (bundle / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1))
    write_card(bundle, manifest, config, stacks, judged[smoothing], training_facts(run))
    return judged[smoothing].metrics


def _learnt(beside: Path, encoders: Encoders) -> Calibration | None:
    """What training learnt of each label; None for a bundle's weights, whose fit has seen the people who judge."""
    if not beside.exists():
        return None
    bias = json.loads(beside.read_text())["bias"]
    return Calibration((encoders.logit_scale,) * len(bias), tuple(bias))


def _manifest(bundle: Path, config: Config, version: str, fit: Fit, judged: Judged, words: Vocabulary) -> Manifest:
    return Manifest(
        name=config.name,
        version=version,
        files=_hashes(bundle),
        vocabulary=words.version,
        vocabulary_sha256=words.sha256,
        prompts_sha256=prompts_sha256(),
        preprocess=config.preprocess,
        scale=fit.calibration.scale,
        bias=fit.calibration.bias,
        thresholds=_table(words, fit.thresholds),
        doubt=_table(words, fit.doubt),
        smoothing=fit.smoothing,
        metrics={**judged.metrics.to_json(), "ece": judged.ece},
    )


def _table(words: Vocabulary, values: NDArray[np.float32]) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in zip(words.names, values, strict=True)}


def _save_half(encoders: Encoders, bundle: Path) -> None:
    """Weights travel as float16 (half the package); computing stays in float32."""
    bundle.mkdir(parents=True, exist_ok=True)
    encoders.model.to(torch.float16)
    save_checkpoint(encoders, bundle)
    encoders.model.to(torch.float32)
    for path in bundle.iterdir():
        path.chmod(0o644)


def _hashes(bundle: Path) -> dict[str, str]:
    names = sorted(p.name for p in bundle.iterdir() if p.is_file() and p.name not in (MANIFEST, *CARD_FILES))
    return {name: file_sha256(bundle / name) for name in names}


def training_facts(run: Path) -> dict[str, Any]:
    """Steps of the kept checkpoint and the commit that the run was started from."""
    if is_bundle(run):
        return {"steps": "No further", "commit": commit_of_code()}
    learnt = json.loads((run / "best" / LEARNT).read_text())
    commit = run / "commit.txt"
    return {"steps": learnt["step"], "commit": commit.read_text().strip() if commit.exists() else ""}
