"""The labeler as one object: a series in, its labels out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labeler.aggregate import Mask, Smoothing, decide, doubtful, findings
from labeler.bundle import default_bundle, file_sha256, info_of, is_bundle, per_label, read_manifest, verify
from labeler.calibration import Calibration, Logits
from labeler.dicom import read_dicom
from labeler.errors import InputError
from labeler.model import Encoders, load_encoders
from labeler.nifti import read_nifti
from labeler.preprocess import Pictures, PreprocessSpec, in_parts
from labeler.prompts import Modality, PlaneName
from labeler.result import BundleInfo, SeriesLabels, SliceLabels
from labeler.score import Scorer
from labeler.slices import Series, Stack
from labeler.vocabulary import Vocabulary, vocabulary

#: Called with the number of slices that have just been scored.
Progress = Callable[[int], None]
#: `Scorer.logits`, or what stands before it: pictures, modality, plane, batch size -> logits.
Score = Callable[[Pictures, Modality, PlaneName, int], Logits]


@dataclass
class Labeler:
    """A bundle, loaded and verified, ready to label series after series."""

    scorer: Scorer
    spec: PreprocessSpec
    thresholds: NDArray[np.float32]
    doubt: NDArray[np.float32]
    smoothing: Smoothing
    info: BundleInfo

    @classmethod
    def load(cls, checkpoint: str | Path | None = None, device: str = "auto") -> Labeler:
        """Load a bundle, or any CLIP checkpoint for zero-shot use; None takes the bundle in this package.

        Raises:
            BundleMissing: no checkpoint there.
            BundleMismatch: a part of the bundle is not the one that its manifest was made for.
        """
        words = vocabulary()
        place = default_bundle() if checkpoint is None else checkpoint
        if not is_bundle(place):
            return cls._zero_shot(str(place), load_encoders(place, device), words)
        folder = Path(place)
        manifest = read_manifest(folder)
        verify(folder, manifest, words)
        calibration = Calibration(manifest.scale, manifest.bias)
        scorer = Scorer(load_encoders(folder, device).folded(), words, calibration)
        thresholds, doubt = per_label(manifest.thresholds, words), per_label(manifest.doubt, words)
        return cls(scorer, manifest.preprocess, thresholds, doubt, manifest.smoothing, info_of(manifest))

    @classmethod
    def _zero_shot(cls, name: str, encoders: Encoders, words: Vocabulary) -> Labeler:
        half = np.full(len(words.labels), 0.5, np.float32)
        size = encoders.image_size
        weights = _weights_hash(name)
        info = BundleInfo(
            name=f"zero-shot {Path(name).name}",
            version="0",
            fingerprint=hashlib.sha256(f"{weights}|{words.sha256}".encode()).hexdigest(),
            weights_sha256=weights,
            vocabulary=words.version,
            thresholds=tuple((label, 0.5) for label in sorted(words.names)),
            smoothing=str(Smoothing()),
            calibrated=False,
        )
        spec = PreprocessSpec(size=size, canvas=max(size, 160))
        return cls(Scorer(encoders, words), spec, half, half, Smoothing(), info)

    def label(
        self,
        series: Series,
        progress: Progress = lambda _: None,
        batch_size: int = 32,
        score: Score | None = None,
    ) -> SeriesLabels:
        """Label every plane of a series; a series without planes gets an answer without labels.

        Args:
            score: asked in place of the scorer, batch by batch.
        """
        slices: list[SliceLabels] = []
        masks: list[Mask] = []
        for stack in series.stacks:
            logits = self._logits(stack, series.modality, progress, batch_size, score or self.scorer.logits)
            positions = [plane.position for plane in stack.planes]
            settled = self.smoothing.of(logits, positions, stack.plane, self.scorer.words)
            p, present = decide(settled, self.thresholds, self.scorer.words)
            unsure = doubtful(p, present, self.doubt, self.scorer.words)
            slices += [self._slice(stack, row, p, present, unsure) for row in range(len(stack.planes))]
            masks.append(present)
        names = self.scorer.words.names
        p_all = np.array([item.probabilities for item in slices], np.float32).reshape(-1, len(names))
        mask = np.concatenate(masks) if masks else np.zeros((0, len(names)), bool)
        return SeriesLabels(
            modality=series.modality,
            plane=series.stacks[0].plane if series.stacks else None,
            names=names,
            slices=tuple(slices),
            findings=findings(p_all, mask, self.scorer.words),
            skipped=series.skipped,
            bundle=self.info,
            series_instance_uid=series.series_instance_uid,
        )

    def _logits(self, stack: Stack, modality: Modality, progress: Progress, batch_size: int, score: Score) -> Logits:
        scored = []
        for part in in_parts([plane.pixels for plane in stack.planes], stack.mm, modality, self.spec, batch_size):
            scored.append(score(part, modality, stack.plane, batch_size))
            progress(len(part))
        return np.concatenate(scored)

    def _slice(self, stack: Stack, row: int, p: NDArray[np.float32], present: Mask, unsure: Mask) -> SliceLabels:
        values = tuple(float(v) for v in p[row])
        shown, doubted = self._names(present[row]), self._names(unsure[row])
        return SliceLabels(stack.planes[row].source, stack.plane, values, shown, doubted)

    def _names(self, row: Mask) -> tuple[str, ...]:
        return tuple(name for name, yes in zip(self.scorer.words.names, row, strict=True) if yes)

    def read(self, path: Path, modality: Modality | None = None) -> list[Series]:
        """Read a folder of DICOM files, one DICOM file or one NIfTI volume.

        Raises:
            InputError: nothing readable there, or a NIfTI volume without a modality.
        """
        side = self.spec.canvas
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.name.endswith((".nii", ".nii.gz")):
            if modality is None:
                raise InputError(f"{path}: a NIfTI volume does not say its modality; add --modality CT or MR")
            return [read_nifti(path, modality, side)]
        paths = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        if not paths:
            raise InputError(f"{path}: the folder is empty")
        return read_dicom(paths, side)


def _weights_hash(name: str) -> str:
    """Of a local checkpoint the hash of its weights; of a hub name the hash of the name."""
    for candidate in ("model.safetensors", "pytorch_model.bin"):
        path = Path(name) / candidate
        if path.is_file():
            return file_sha256(path)
    return hashlib.sha256(name.encode()).hexdigest()
