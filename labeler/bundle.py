"""The trained parts as one folder: weights, tokenizer, processor and the manifest that binds them to this code.

A bundle is a CLIP checkpoint in Hugging Face format with a `manifest.json` beside it. The manifest carries the hash of
every file, of the vocabulary and of the prompts, and the preprocessing, calibration and thresholds that belong to the
weights. Whatever disagrees is an error at load: a labeler that runs is the one that was measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.aggregate import Smoothing
from labeler.errors import BundleMismatch, BundleMissing
from labeler.preprocess import PreprocessSpec
from labeler.prompts import prompts_sha256
from labeler.result import BundleInfo
from labeler.vocabulary import Vocabulary, vocabulary

MANIFEST = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; see `training.export` for how it comes about."""

    name: str
    version: str
    files: Mapping[str, str]
    vocabulary: str
    vocabulary_sha256: str
    prompts_sha256: str
    preprocess: PreprocessSpec
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    thresholds: Mapping[str, float]
    #: Per label the probability from which "not sure" is the answer.
    doubt: Mapping[str, float]
    smoothing: Smoothing
    metrics: Mapping[str, Any]
    fingerprint: str = ""

    def to_json(self) -> dict[str, Any]:
        data = {key: value for key, value in self.__dict__.items() if key != "fingerprint"}
        return {
            **data,
            "format": FORMAT,
            "preprocess": self.preprocess.to_json(),
            "smoothing": self.smoothing.to_json(),
        }


def default_bundle() -> Path:
    """The bundle that ships in this package."""
    return Path(str(files(__package__).joinpath("bundles", "small")))


def is_bundle(checkpoint: str | Path) -> bool:
    return (Path(checkpoint) / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Parse `manifest.json`; BundleMissing or BundleMismatch say what is wrong with it."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
        data = json.loads(raw)
    except OSError as error:
        raise BundleMissing(f"{folder}: no {MANIFEST} ({error.strerror})") from error
    except ValueError as error:
        raise BundleMismatch(f"{path}: not JSON ({error}); take the bundle anew from where it came") from error
    if data.pop("format", None) != FORMAT:
        raise BundleMismatch(f"{path}: not of format {FORMAT}; export the bundle anew with this version's training")
    try:
        data["preprocess"] = PreprocessSpec.from_json(data["preprocess"])
        data["smoothing"] = Smoothing.from_json(data["smoothing"])
        data["scale"], data["bias"] = tuple(data["scale"]), tuple(data["bias"])
        return Manifest(**data, fingerprint=hashlib.sha256(raw).hexdigest())
    except (KeyError, TypeError) as error:
        raise BundleMismatch(f"{path}: {error}; export the bundle anew with this version's training") from error


def verify(folder: Path, manifest: Manifest, words: Vocabulary) -> None:
    """Compare every part with the manifest.

    Raises:
        BundleMismatch: names the part that is not the one that was measured, and what mends it.
    """
    for name, wanted in manifest.files.items():
        if Path(name).name != name:
            raise BundleMismatch(f"{folder}: the manifest names a file outside the bundle: {name!r}")
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise BundleMismatch(f"{folder / name}: named in the manifest but {error.strerror}") from error
        if found != wanted:
            raise BundleMismatch(f"{folder / name}: sha256 {found[:12]}, the manifest says {wanted[:12]}")
    for part, found, wanted in (
        ("vocabulary", words.sha256, manifest.vocabulary_sha256),
        ("prompts", prompts_sha256(), manifest.prompts_sha256),
    ):
        if found != wanted:
            raise BundleMismatch(
                f"{folder}: made for other {part} (sha256 {wanted[:12]}, this code has {found[:12]}); "
                "use the version that exported it or export it anew with `python -m training export`"
            )
    if not len(manifest.scale) == len(manifest.bias) == len(words.labels):
        raise BundleMismatch(f"{folder}: calibration is not of one number per label")
    for part, table in (("thresholds", manifest.thresholds), ("doubt", manifest.doubt)):
        if set(table) != set(words.names):
            raise BundleMismatch(f"{folder}: {part} are not of one number per label of the vocabulary")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def per_label(table: Mapping[str, float], words: Vocabulary) -> NDArray[np.float32]:
    """A table of the manifest as (labels,), in the vocabulary's order."""
    return np.array([table[name] for name in words.names], np.float32)


def info_of(manifest: Manifest) -> BundleInfo:
    return BundleInfo(
        name=manifest.name,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        weights_sha256=manifest.files["model.safetensors"],
        vocabulary=manifest.vocabulary,
        thresholds=tuple(sorted(manifest.thresholds.items())),
        smoothing=str(manifest.smoothing),
        calibrated=True,
    )


def default_info() -> BundleInfo:
    """Who would answer with the shipped bundle, without loading any weights."""
    folder = default_bundle()
    manifest = read_manifest(folder)
    verify(folder, manifest, vocabulary())
    return info_of(manifest)
