"""From a folder of images to a bundle that serves, by the commands that a data scientist types."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labeler.bundle import default_bundle, read_manifest
from tests.learning import a_collection, a_plain_clip
from training.config import read_config

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


def python(*words: object, timeout: float = 240) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tiny(recipe: str, folder: Path, collection: Path, start: Path) -> Path:
    """A recipe as it ships, but for the images, the starting weights, and how long it runs."""
    text = (RECIPES / recipe).read_text()
    for key, value in {"anatomy": collection, "labelmaps": "", "cache": folder / "cache", "start": start}.items():
        text = re.sub(rf'^{key} = ".*"$', f'{key} = "{value}"', text, flags=re.MULTILINE)
    for key, value in {"steps": 6, "batch": 8, "warmup": 2, "evaluate_every": 3, "compile": "false"}.items():
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
    (folder / recipe).write_text(text)
    return folder / recipe


def test_the_pmc_msa_recipe_runs_from_checkpoint_to_served_bundle(tmp_path: Path):
    collection = a_collection(tmp_path / "images")
    config = tiny("pmc-msa.toml", tmp_path, collection, a_plain_clip(tmp_path / "clip", 224))
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    python("training", "fit", config, "--run", run)
    assert (run / "curves.png").stat().st_size > 1000
    python("training", "export", config, run, bundle, "--version", "0.0.1")
    python("training", "evaluate", config, bundle, "--json", tmp_path / "figures.json")
    assert set(json.loads((tmp_path / "figures.json").read_text())["micro"]) == {
        "CT organs", "CT stations", "MR organs", "MR stations",
    }  # fmt: skip
    volume = collection / "volumes" / "ct_4.nii.gz"
    python("labeler", "label", volume, "--modality", "CT", "--bundle", bundle, "--json", tmp_path / "labels.json")
    answer = json.loads((tmp_path / "labels.json").read_text())
    assert answer["bundle"]["name"] == "pmc-msa"
    assert len(answer["slices"]) == 8
    card = (bundle / "README.md").read_text()
    assert "fine-tuned from clip" in card
    assert str(tmp_path) not in card + (bundle / "manifest.json").read_text()


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*.toml")))
def test_every_recipe_reads(recipe: str):
    config = read_config(RECIPES / recipe)
    assert config.train.steps > 0
    assert config.preprocess.size % 32 == 0


@pytest.mark.parametrize("recipe", ["small.toml", "small-continued.toml"])
def test_the_recipes_of_the_package_prepare_as_its_bundle_does(recipe: str):
    assert read_config(RECIPES / recipe).preprocess == read_manifest(default_bundle()).preprocess
