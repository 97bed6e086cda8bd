"""Stems: the shapes that CLIP asks for, and the same numbers with and without their batch norms."""

import pytest
import torch
from torch import nn

from labeler.stems import LITE_HALVINGS, LITES, ConvStem, LiteStem, Stem, fold_norms


def lived_in(stem: Stem) -> Stem:
    """With running means and spreads that are not those of a new layer."""
    random = torch.Generator().manual_seed(0)
    for module in stem.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=random) * 0.1
            module.running_var = torch.rand(module.num_features, generator=random) + 0.5
    return stem.eval()


@pytest.mark.parametrize("name", LITES)
@pytest.mark.parametrize("side", [64, 96])
def test_a_lite_stem_halves_a_picture_five_times(name: str, side: int):
    patches = LiteStem(name, 24)(torch.zeros(2, 3, side, side))
    assert patches.shape == (2, 24, side >> LITE_HALVINGS, side >> LITE_HALVINGS)


@pytest.mark.parametrize("stem", [LiteStem("efficientnet-lite0", 24), ConvStem((8, 16, 24), 24)])
def test_folded_norms_change_no_number(stem: Stem):
    stem = lived_in(stem)
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = stem(pictures)
        fold_norms(stem)
        after = stem(pictures)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in stem.modules())
    assert torch.allclose(before, after, atol=1e-4)
