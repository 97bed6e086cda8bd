"""What a run and a bundle look like: learning curves, reliability, and where on the stacks the mistakes lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from labeler.vocabulary import Vocabulary
from training.calibrate import reliability
from training.corpus import PRESENT, UNKNOWN, LabelledStack
from training.evaluate import Mask
from training.judge import Judged

matplotlib.use("Agg")

#: Okabe and Ito's palette: told apart by colour-blind readers and in print.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _RED)

_UNREAD, _ABSENT, _FOUND, _MISSED, _INVENTED = range(5)
_SHADES = ("#DDDDDD", "#FFFFFF", _BLUE, _ORANGE, _RED)


def curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses and the four micro F1 over the steps of a run, as PNG."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in history]
    for colour, name in zip(_COLOURS, history[0]["losses"], strict=False):
        left.plot(steps, [row["losses"][name] for row in history], color=colour, label=name)
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    for colour, key in zip(_COLOURS, history[0]["metrics"]["micro"], strict=False):
        right.plot(steps, [row["metrics"]["micro"][key] for row in history], color=colour, label=key)
    right.set(xlabel="step", ylabel="micro F1, held-out people, slice by slice", ylim=(0, 1))
    right.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def reliability_plot(judged: Judged, path: Path) -> None:
    """Stated probability against observed frequency, per modality, as PNG."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="perfect")
    rows = np.concatenate([[stack.modality] * len(stack.states) for stack in judged.stacks])
    for colour, modality in zip(_COLOURS, np.unique(rows), strict=False):
        chosen = rows == modality
        points = reliability(judged.probabilities[chosen], judged.states[chosen])
        axes.plot([c for c, _, _ in points], [f for _, f, _ in points], "o-", color=colour, label=str(modality))
    axes.set(xlabel="stated probability", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)


def failures(judged: Judged, words: Vocabulary, path: Path, worst: int = 8, labels: int = 5) -> list[str]:
    """Strips of the stacks with the most mistakes, as PNG; returns their names.

    One row per label with mistakes, one column per slice: found, missed, invented, not read. No image is shown, so the
    picture may travel where the images may not.
    """
    pairs = list(zip(judged.stacks, judged.decided, strict=True))
    pairs.sort(key=lambda pair: -float(_wrong(*pair).sum()) / max(1, len(pair[1])))
    chosen = pairs[:worst]
    rows = (len(chosen) + 1) // 2
    figure = Figure(figsize=(11, 1.5 * rows + 0.6), layout="constrained")
    grid = np.atleast_2d(figure.subplots(rows, 2, squeeze=False))
    for axes in grid.ravel()[len(chosen) :]:
        axes.set_axis_off()
    for axes, (stack, mask) in zip(grid.ravel(), chosen, strict=False):
        _strip(axes, stack, mask, words, labels)
    handles = [
        Patch(facecolor=_SHADES[code], edgecolor="#888888", label=name)
        for code, name in ((_FOUND, "found"), (_MISSED, "missed"), (_INVENTED, "invented"), (_UNREAD, "reader unsure"))
    ]
    figure.legend(handles=handles, ncols=4, loc="outside upper center", frameon=False)
    figure.savefig(path, dpi=110)
    return [stack.name for stack, _ in chosen]


def _wrong(stack: LabelledStack, mask: Mask) -> Mask:
    wrong: Mask = (stack.states != UNKNOWN) & (mask != (stack.states == PRESENT))
    return wrong


def _strip(axes: Axes, stack: LabelledStack, mask: Mask, words: Vocabulary, labels: int) -> None:
    truth = stack.states == PRESENT
    codes = np.select(
        [stack.states == UNKNOWN, truth & mask, truth & ~mask, ~truth & mask],
        [_UNREAD, _FOUND, _MISSED, _INVENTED],
        _ABSENT,
    )
    mistakes = _wrong(stack, mask).sum(0)
    columns = [c for c in np.argsort(-mistakes, kind="stable")[:labels] if mistakes[c]]
    axes.set_title(f"{stack.name} ({stack.modality} {stack.plane}, {len(mask)} slices)", fontsize=8, loc="left")
    if not columns:
        axes.set_axis_off()
        return
    axes.imshow(
        codes[:, columns].T, cmap=ListedColormap(_SHADES), vmin=0, vmax=4, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(len(columns)), [words.labels[c].text for c in columns], fontsize=7)
    axes.set_xticks([])
