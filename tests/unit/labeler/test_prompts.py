"""Sentences: canonical, complete, and hashed."""

from random import Random

from labeler.prompts import (
    LABEL_TEMPLATES,
    MODALITIES,
    PLANES,
    canonical,
    label_prompts,
    prompts_sha256,
    random_caption,
    random_label_prompt,
)
from labeler.vocabulary import vocabulary


def test_canonical_text_is_lower_case_single_spaced_without_point():
    assert canonical("  Axial   CT of the URINARY_bladder. ") == "axial ct of the urinary bladder"


def test_every_label_has_an_ensemble_in_every_modality_and_plane():
    for label in vocabulary().labels:
        for modality in MODALITIES:
            for plane in PLANES:
                prompts = label_prompts(label, modality, plane)
                assert len(prompts) == len(set(prompts)) == len(LABEL_TEMPLATES)
                assert all(label.text in prompt and prompt == canonical(prompt) for prompt in prompts)


def test_training_speaks_the_words_of_serving():
    liver, random = vocabulary()["liver"], Random(3)
    served = set(label_prompts(liver, "CT", "axial"))
    drawn = {random_label_prompt(liver, "CT", "axial", random) for _ in range(400)}
    assert served <= drawn


def test_a_caption_names_what_it_was_given():
    words, random = vocabulary(), Random(1)
    text = random_caption([words["chest"]], [words["heart"]], "MR", "coronal", random)
    assert any(word in text for word in ("chest", "thorax"))
    assert any(word in text for word in ("heart", "cardiac chambers"))


def test_the_hash_is_of_every_sentence(monkeypatch):
    before = prompts_sha256()
    prompts_sha256.cache_clear()
    monkeypatch.setattr("labeler.prompts.LABEL_TEMPLATES", ("the {label}",))
    changed = prompts_sha256()
    prompts_sha256.cache_clear()
    assert changed != before
