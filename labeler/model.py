"""Two encoders that meet in one space: transformers' CLIPModel, on CPU or GPU.

Any CLIP checkpoint in Hugging Face format loads. `AnatomyCLIP` is a CLIPModel whose patch embedding may be one of
`labeler.stems`; which one a checkpoint has stands in its config.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from labeler.errors import BundleMissing, DeviceMissing
from labeler.place import is_here
from labeler.preprocess import Pictures
from labeler.stems import ConvStem, LiteStem, fold_norms

Embeddings = NDArray[np.float32]

#: Pictures at once on a CPU; with more, what lies between two layers falls out of its cache (half the speed at 32).
CPU_BATCH = 8


class AnatomyCLIP(CLIPModel):
    """CLIPModel; its vision config may name a stem (`stem`), or the widths of one (`stem_widths`)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        vision = config.vision_config
        embeddings = self.vision_model.embeddings
        if getattr(vision, "stem", ""):
            embeddings.patch_embedding = LiteStem(vision.stem, vision.hidden_size)
        elif getattr(vision, "stem_widths", None):
            embeddings.patch_embedding = ConvStem(vision.stem_widths, vision.hidden_size)

    @property
    def stem(self) -> nn.Module:
        """What turns pictures into patches: a stem of ours, or CLIP's own convolution."""
        patches: nn.Module = self.vision_model.embeddings.patch_embedding
        return patches


@dataclass
class Encoders:
    """A checkpoint ready for use: model, tokenizer and image processor on one device."""

    model: AnatomyCLIP
    tokenizer: Any
    processor: CLIPImageProcessorPil
    device: torch.device

    @property
    def image_size(self) -> int:
        return int(self.model.config.vision_config.image_size)

    def pixels(self, pictures: Pictures) -> Tensor:
        """uint8 (n, side, side, 3) -> normalised (n, 3, image_size, image_size), by the checkpoint's processor."""
        if pictures.shape[1:3] == (self.image_size, self.image_size) and self.processor.do_normalize:
            return self._normalised(pictures)
        batch = self.processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
        return batch["pixel_values"]

    def _normalised(self, pictures: Pictures) -> Tensor:
        """What the processor does with pictures of the right size, for all of them at once (ten times faster)."""
        scale = self.processor.rescale_factor if self.processor.do_rescale else 1.0
        mean, spread = (torch.tensor(v).view(3, 1, 1) for v in (self.processor.image_mean, self.processor.image_std))
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().mul_(scale).sub_(mean).div_(spread)

    def folded(self) -> Encoders:
        """The same encoders, quicker, and no longer fit for training."""
        fold_norms(self.model.stem)
        return self

    @torch.inference_mode()
    def images(self, pictures: Pictures, batch_size: int = 32) -> Embeddings:
        """Unit embeddings (n, d) of pictures."""
        if self.device.type == "cpu":
            batch_size = min(batch_size, CPU_BATCH)
        found = [
            self._unit(self.model.get_image_features(self.pixels(part).to(self.device)))
            for part in np.array_split(pictures, max(1, -(-len(pictures) // batch_size)))
        ]
        return np.concatenate(found)

    @torch.inference_mode()
    def texts(self, sentences: Sequence[str]) -> Embeddings:
        """Unit embeddings (n, d) of sentences."""
        tokens = self.tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        return self._unit(self.model.get_text_features(**tokens.to(self.device)))

    def _unit(self, features: Any) -> Embeddings:
        pooled = getattr(features, "pooler_output", features)
        return nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())


def pick_device(wanted: str) -> torch.device:
    """`auto` takes the first GPU, else the CPU; anything else is torch's own name of a device.

    Raises:
        DeviceMissing: PyTorch cannot use it here.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:  # a build of PyTorch without CUDA asserts
        why = str(error).partition("\n")[0]
        raise DeviceMissing(f'device = "{wanted}": PyTorch cannot use it ({why}); set it to "auto" or "cpu"') from error


def load_encoders(checkpoint: str | Path, device: str = "auto") -> Encoders:
    """Load a CLIP checkpoint in Hugging Face format from a folder or, where the hub is reachable, by its name.

    Raises:
        DeviceMissing: PyTorch cannot use that device.
        BundleMissing: nothing there that transformers can read as a CLIP model.
    """
    is_here(checkpoint)
    where = pick_device(device)
    transformers.logging.disable_progress_bar()
    try:
        model = AnatomyCLIP.from_pretrained(checkpoint, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        processor = CLIPImageProcessorPil.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise BundleMissing(
            f"{checkpoint}: no CLIP checkpoint in Hugging Face format could be loaded ({error}). "
            "Give a folder with config.json, model.safetensors, tokenizer and preprocessor_config.json, "
            "or a hub name on a machine that reaches the hub."
        ) from error
    return Encoders(model.eval().to(where), tokenizer, processor, where)
