"""What turns a picture into patches: convolutions in the place of CLIP's single large one.

On a few hundred volumes a convolutional stem learns where plain patches do not ("Early convolutions help transformers
see better", Xiao et al. 2021). `ConvStem` starts from nothing; `LiteStem` is EfficientNet-Lite (Tan & Le 2019, in
Google's variant without squeeze-excite), so that weights which have seen ImageNet can be its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; halves the picture."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, 2, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inside, outside, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Stem(nn.Module):
    """Pictures (n, 3, side, side) -> patches (n, hidden, side / 2^k, side / 2^k)."""

    def __init__(self, layers: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = layers
        self.projection = nn.Conv2d(width, hidden, 1)

    @property
    def weight(self) -> Tensor:
        """CLIPVisionEmbeddings asks its patch embedding for the precision of its weights."""
        return self.projection.weight

    def forward(self, pictures: Tensor) -> Tensor:
        patches: Tensor = self.projection(self.layers(pictures.contiguous(memory_format=torch.channels_last)))
        return patches


class ConvStem(Stem):
    """Residual blocks, one halving per width."""

    def __init__(self, widths: Sequence[int], hidden: int) -> None:
        first = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages = [Residual(a, b) for a, b in pairwise(widths)]
        super().__init__(nn.Sequential(first, *stages), widths[-1], hidden)


class SamePadded(nn.Conv2d):
    """A convolution that pads as TensorFlow does, so that its weights see what they were trained on."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        own = kernel // 2 if stride == 1 else 0
        super().__init__(inside, outside, kernel, stride, own, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            # what does not divide evenly goes to the right and below
            down, right = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:])
            x = nn.functional.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow (Sandler et al. 2018); a shortcut where nothing changes its shape."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inside * expand
        widen = [SamePadded(inside, wide, 1), _norm(wide), nn.ReLU6()] if expand > 1 else []
        filtering = [SamePadded(wide, wide, kernel, stride, wide), _norm(wide), nn.ReLU6()]
        self.body = nn.Sequential(*widen, *filtering, SamePadded(wide, outside, 1), _norm(outside))
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.body(x)
        return x + narrow if self.shortcut else narrow


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


#: (kernel, stride, expansion, width, repeats) of every stage of EfficientNet-Lite0.
_LITE0 = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)

#: Factors of width and depth.
LITES = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite1": (1.0, 1.1), "efficientnet-lite2": (1.1, 1.2)}

#: A picture's side is halved so often.
LITE_HALVINGS = 5


class LiteStem(Stem):
    """EfficientNet-Lite without its head; `name` is a key of `LITES`."""

    def __init__(self, name: str, hidden: int) -> None:
        wider, deeper = LITES[name]
        blocks: list[nn.Module] = []
        inside = 32
        for i, (kernel, stride, expand, width, repeats) in enumerate(_LITE0):
            outside = _rounded(width * wider)
            # the first and last stage are never repeated more often
            count = repeats if i in (0, len(_LITE0) - 1) else -int(-repeats * deeper // 1)
            for n in range(count):
                blocks.append(InvertedResidual(inside, outside, kernel, stride if n == 0 else 1, expand))
                inside = outside
        first = nn.Sequential(SamePadded(3, 32, 3, 2), _norm(32), nn.ReLU6())
        super().__init__(nn.Sequential(first, *blocks), inside, hidden)


def fold_norms(layers: nn.Module) -> None:
    """Merge every batch norm into the convolution before it: the same numbers, a third faster; for inference only."""
    children = list(layers.named_children())
    for (name, convolution), (next_name, norm) in pairwise(children):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(layers, name, fuse_conv_bn_eval(convolution, norm))
            setattr(layers, next_name, nn.Identity())
    for _, child in children:
        fold_norms(child)


def _rounded(width: float) -> int:
    """The nearest multiple of 8, never a tenth below."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near
