"""A bundle whose parts disagree refuses to load, and any Hugging Face CLIP loads zero-shot."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from labeler.bundle import MANIFEST, default_bundle, file_sha256
from labeler.errors import BundleMismatch, BundleMissing, DeviceMissing, InputError
from labeler.label import Labeler
from labeler.model import load_encoders, pick_device
from labeler.slices import Series, Source, make_plane, make_series
from tests.learning import a_plain_clip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_bundle(), tmp_path / "bundle"))


def a_stack(images: int = 3) -> Series:
    random = np.random.default_rng(0)
    pixels = [random.normal(0, 300, (64, 64)).astype(np.float32) for _ in range(images)]
    return make_series(
        "CT", [make_plane(p, (1, 0, 0), (0, 1, 0), (0, 0, 5 * k), Source(k), 160) for k, p in enumerate(pixels)]
    )


def test_the_shipped_bundle_loads_and_answers():
    labeler = Labeler.load()
    answer = labeler.label(a_stack())
    assert labeler.info.calibrated
    assert len(answer.slices) == 3
    assert set(answer.to_json()) >= {"modality", "plane", "slices", "stations", "organs", "bundle"}


def test_the_same_series_gets_the_same_answer():
    labeler = Labeler.load()
    assert labeler.label(a_stack()) == labeler.label(a_stack())


def test_the_shipped_bundle_fits_into_the_package():
    assert sum(path.stat().st_size for path in default_bundle().iterdir()) <= 30 << 20


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json"])
def test_a_changed_file_is_refused(bundle: Path, name: str):
    raw = bytearray((bundle / name).read_bytes())
    raw[-2] ^= 1
    (bundle / name).write_bytes(raw)
    with pytest.raises(BundleMismatch, match=re.escape(name)):
        Labeler.load(bundle)


def test_a_lost_file_is_named(bundle: Path):
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleMismatch, match=r"tokenizer\.json"):
        Labeler.load(bundle)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vocabulary_sha256": "0" * 64}, "other vocabulary"),
        ({"prompts_sha256": "0" * 64}, "other prompts"),
        ({"scale": [1.0]}, "one number per label"),
        ({"format": 99}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"files": {"../../etc/passwd": "0"}}, "outside the bundle"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle: Path, change: dict, complaint: str):
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(BundleMismatch, match=complaint):
        Labeler.load(bundle)


def test_nothing_there_is_said_plainly(tmp_path: Path):
    with pytest.raises(BundleMissing, match="no such folder"):
        Labeler.load(tmp_path / "nowhere")
    with pytest.raises(BundleMissing, match="no CLIP checkpoint"):
        Labeler.load(tmp_path)


@pytest.fixture(scope="module")
def plain_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_plain_clip(tmp_path_factory.mktemp("clip"))


def test_any_hugging_face_clip_labels_zero_shot(plain_clip: Path):
    labeler = Labeler.load(plain_clip)
    answer = labeler.label(a_stack())
    assert not answer.bundle.calibrated
    assert answer.bundle.weights_sha256 == file_sha256(plain_clip / "model.safetensors")
    assert all(0 <= p <= 1 for item in answer.slices for p in item.probabilities)


def test_our_loader_computes_what_transformers_computes(plain_clip: Path):
    """The weights land where transformers puts them: same picture, same embedding."""
    encoders = Labeler.load(plain_clip).scorer.encoders
    pictures = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    theirs = CLIPModel.from_pretrained(plain_clip).eval()
    with torch.inference_mode():
        features = theirs.get_image_features(encoders.pixels(pictures)).pooler_output
    expected = torch.nn.functional.normalize(features, dim=-1).numpy()
    assert np.allclose(encoders.images(pictures), expected, atol=1e-6)


@pytest.mark.parametrize("setting", [{}, {"do_rescale": False}, {"do_normalize": False}], ids=str)
def test_the_quick_way_to_tensors_is_the_processor_s(plain_clip: Path, setting: dict[str, bool]):
    encoders = load_encoders(plain_clip)
    for name, value in setting.items():
        setattr(encoders.processor, name, value)
    pictures = np.random.default_rng(2).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    theirs = encoders.processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last")
    assert torch.allclose(encoders.pixels(pictures), theirs["pixel_values"], atol=1e-4)


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_there_is_explained(device: str) -> None:
    with pytest.raises(DeviceMissing, match=rf'device = "{device}": PyTorch cannot use it \(.+\); set it to "auto"'):
        pick_device(device)
    assert pick_device("cpu").type == "cpu"


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    for nowhere in (tmp_path / "nobody", "./nobody", "one/two/three"):
        with pytest.raises(BundleMissing, match="no such folder"):
            load_encoders(nowhere)
    (tmp_path / "file").touch()
    with pytest.raises(BundleMissing, match="is a file; a bundle is a folder"):
        load_encoders(tmp_path / "file")


def test_inputs_that_are_not_there_are_explained(tmp_path: Path):
    labeler = Labeler.load()
    with pytest.raises(InputError, match="no such file"):
        labeler.read(tmp_path / "absent")
    (tmp_path / "x.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="--modality"):
        labeler.read(tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="not a readable NIfTI"):
        labeler.read(tmp_path / "x.nii.gz", "CT")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="empty"):
        labeler.read(tmp_path / "folder")
