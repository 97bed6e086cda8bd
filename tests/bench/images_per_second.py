"""How much of the model's own speed reaches the user: the pipeline from decoded pixels against the bare forward pass.

    python -m tests.bench.images_per_second [--images 120] [--rounds 5] [--bundle FOLDER]

Both are measured in one run, in turns, on this machine's device. No threshold: it prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dicom_node.demo.phantoms import paint, torso, with_noise
from labeler.label import Labeler
from labeler.model import CPU_BATCH
from labeler.preprocess import prepare
from labeler.slices import Series, Source, make_plane, make_series

SIDE, FIELD, HEIGHT = 512, 400.0, 380.0


def decoded(images: int) -> np.ndarray:
    """A CT torso as it comes from the decoder: float32 (images, SIDE, SIDE), HU."""
    heights = np.linspace(0, HEIGHT, images)
    return with_noise(paint(torso(), FIELD, SIDE, heights, "CT"), "CT", 1).astype(np.float32)


def a_series(planes: np.ndarray, canvas: int) -> Series:
    mm, gap = FIELD / SIDE, HEIGHT / len(planes)
    made = [
        make_plane(plane, (1, 0, 0), (0, 1, 0), (0, 0, k * gap), Source(k), canvas, (mm, mm))
        for k, plane in enumerate(planes)
    ]
    return make_series("CT", made)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", default=None)
    options = parser.parse_args()
    labeler = Labeler.load(options.bundle)
    encoders = labeler.scorer.encoders
    planes, canvas = decoded(options.images), labeler.spec.canvas
    stack = a_series(planes, canvas).stacks[0]
    pictures = prepare([plane.pixels for plane in stack.planes], stack.mm, "CT", labeler.spec)
    tensors = encoders.pixels(pictures).to(encoders.device)

    def forward() -> None:
        with torch.inference_mode():
            for part in tensors.split(CPU_BATCH if encoders.device.type == "cpu" else 32):
                encoders.model.get_image_features(part).pooler_output.cpu()

    parts: dict[str, Callable[[], object]] = {
        "bare forward pass": forward,
        "pipeline": lambda: labeler.label(a_series(planes, canvas)),
        "of it: decoded -> planes": lambda: a_series(planes, canvas),
        "of it: planes -> pictures": lambda: prepare([p.pixels for p in stack.planes], stack.mm, "CT", labeler.spec),
        "of it: pictures -> tensors": lambda: encoders.pixels(pictures),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for work in parts.values():
        work()
    for _ in range(options.rounds):
        for name, work in parts.items():
            taken[name].append(seconds(work))
    shown = Table(title=f"{options.images} images of 512 x 512, {labeler.info.name} {labeler.info.version}")
    for column in ("", "images/s", "of the bare forward pass"):
        shown.add_column(column)
    bare = median(taken["bare forward pass"])
    for name, times in taken.items():
        shown.add_row(name, f"{options.images / median(times):.0f}", f"{bare / median(times):.2f}")
    Console().print(shown)


if __name__ == "__main__":
    main()
