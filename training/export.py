"""A run's best checkpoint -> a bundle: calibrated, measured, hashed, with its model card.

python -m training export RUN BUNDLE
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labeler.aggregate import decide, smooth
from labeler.bundle import FORMAT, MANIFEST, Manifest, file_sha256
from labeler.model import Encoders, load_encoders
from labeler.prompts import prompts_sha256
from labeler.score import Calibration, Logits, Scorer, probabilities
from labeler.vocabulary import vocabulary
from training.calibrate import calibrate, expected_calibration_error
from training.card import model_card
from training.config import Config
from training.corpus import LabelledStack
from training.evaluate import Metrics, measure, stack_pictures
from training.start import save_checkpoint

#: Widths of the smoothing along the stack that are tried on the held-out split, mm.
SMOOTHINGS = (0.0, 2.0, 4.0, 6.0)


def export(run: Path, bundle: Path, config: Config, stacks: Sequence[LabelledStack], version: str) -> Metrics:
    """Write the bundle; returns the figures of the served path on the held-out subjects."""
    words = vocabulary()
    held_out = [stack for stack in stacks if stack.split == "val"]
    encoders = load_encoders(run / "best", config.train.device)
    bias = json.loads((run / "best" / "label_bias.json").read_text())
    start = Calibration((encoders.logit_scale,) * len(bias), tuple(bias))
    scorer = Scorer(encoders, words, start)
    cosines = [scorer.cosines(stack_pictures(s, config.preprocess), s.modality, s.plane) for s in held_out]
    states = np.concatenate([stack.states for stack in held_out])
    calibration = calibrate(np.concatenate(cosines), states, start)
    logits = [_logits(c, calibration) for c in cosines]
    smoothing, metrics = _best_smoothing(held_out, logits)
    ece = expected_calibration_error(probabilities(np.concatenate(logits)), states)
    _save_half(encoders, bundle)
    manifest = Manifest(
        name=config.name,
        version=version,
        files=_hashes(bundle),
        vocabulary=words.version,
        vocabulary_sha256=words.sha256,
        prompts_sha256=prompts_sha256(),
        preprocess=config.preprocess,
        scale=calibration.scale,
        bias=calibration.bias,
        thresholds=dict.fromkeys(words.names, 0.5),
        smoothing_mm=smoothing,
        metrics={**metrics.to_json(), "ece": ece},
    )
    (bundle / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1))
    (bundle / "README.md").write_text(model_card(manifest, config, stacks, _training_facts(run)))
    return metrics


def _logits(cosines: Logits, calibration: Calibration) -> Logits:
    return (cosines * np.array(calibration.scale) + np.array(calibration.bias)).astype(np.float32)


def _best_smoothing(held_out: Sequence[LabelledStack], logits: Sequence[Logits]) -> tuple[float, Metrics]:
    words = vocabulary()
    half = np.full(len(words.labels), 0.5, np.float32)
    tried: list[tuple[float, Metrics]] = []
    for width in SMOOTHINGS:
        decided = [decide(smooth(z, s.positions, width), half, words)[1] for z, s in zip(logits, held_out, strict=True)]
        tried.append((width, measure(held_out, decided, words)))
    return max(tried, key=lambda pair: pair[1].score)


def _save_half(encoders: Encoders, bundle: Path) -> None:
    """Weights travel as float16 (half the package); computing stays in float32."""
    bundle.mkdir(parents=True, exist_ok=True)
    encoders.model.to(torch.float16)
    save_checkpoint(encoders, bundle)
    encoders.model.to(torch.float32)
    for path in bundle.iterdir():
        path.chmod(0o644)


def _hashes(bundle: Path) -> dict[str, str]:
    names = sorted(p.name for p in bundle.iterdir() if p.is_file() and p.name not in (MANIFEST, "README.md"))
    return {name: file_sha256(bundle / name) for name in names}


def _training_facts(run: Path) -> dict[str, Any]:
    history = json.loads((run / "metrics.json").read_text())
    commit = run / "commit.txt"
    return {
        "steps": history[-1]["step"],
        "commit": commit.read_text().strip() if commit.exists() else "",
        "format": FORMAT,
    }
