"""Small checkpoints and collections of our own making, in the layouts that training and serving read."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from dicom_node.demo.phantoms import head, paint, torso, with_noise
from training.start import own_processor, own_tokenizer


def a_plain_clip(folder: Path, image_size: int = 64) -> Path:
    """A checkpoint as a hub would serve it: transformers' own CLIPModel, patches and all, tokenizer, processor."""
    tokenizer = own_tokenizer(40)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config={**text, **words, "pad_token_id": 1},
        vision_config={**text, "image_size": image_size, "patch_size": 32},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own_processor(image_size).save_pretrained(folder)
    return folder


def a_collection(folder: Path, people: int = 6) -> Path:
    """The slice-range layout: CT torsos with a liver and MR heads with a brain, one volume a person, two held out."""
    (folder / "volumes").mkdir(parents=True)
    volumes, labels = [], []
    for number in range(people):
        modality = "CT" if number % 2 == 0 else "MR"
        shapes, field, heights = (torso, 400.0, (60.0, 230.0)) if modality == "CT" else (head, 250.0, (60.0, 170.0))
        planes = paint(shapes(), field, 64, np.linspace(*heights, 8), modality)
        data = with_noise(planes, modality, number).transpose(2, 1, 0).astype(np.float32)
        name = f"{modality.lower()}_{number}"
        affine = np.diag([-field / 64, -field / 64, (heights[1] - heights[0]) / 7, 1.0])
        nib.save(nib.Nifti1Image(data, affine), folder / "volumes" / f"{name}.nii.gz")
        split = "val" if number >= people - 2 else "train"
        volumes.append([name, f"person {number}", split, modality, 8, "our own phantoms"])
        shown = (
            (("station", "abdomen"), ("organ", "liver"))
            if modality == "CT"
            else (("station", "head"), ("organ", "brain"))
        )
        labels += [[name, kind, label, 0, 7] for kind, label in shown]
    _table(folder / "volumes.csv", ["volume", "subject", "split", "modality", "slices", "licence"], volumes)
    _table(folder / "labels.csv", ["volume", "kind", "label", "first", "last"], labels)
    return folder


def _table(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
