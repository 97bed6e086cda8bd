"""Sentences claim what they say, and matching follows the claims."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from labeler.vocabulary import vocabulary
from training.captions import Sentence, Shown, caption, label_sentences, matches
from training.corpus import ABSENT, PRESENT, UNKNOWN

WORDS = vocabulary()


def image(present: tuple[str, ...] = (), unknown: tuple[str, ...] = (), modality="CT", plane="axial") -> Shown:
    states = np.full(len(WORDS.labels), ABSENT, np.int8)
    states[[WORDS.index(name) for name in present]] = PRESENT
    states[[WORDS.index(name) for name in unknown]] = UNKNOWN
    return Shown(modality, plane, states)


def claims(*names: str, **kind) -> Sentence:
    return Sentence("", tuple(WORDS.index(name) for name in names), **kind)


def test_an_image_matches_when_all_claims_hold():
    images = [image(("liver", "spleen")), image(("liver",)), image(("liver",), unknown=("spleen",))]
    assert matches(images, [claims("liver", "spleen")])[:, 0].tolist() == [PRESENT, ABSENT, UNKNOWN]


def test_one_false_claim_outweighs_an_unknown_one():
    assert matches([image(unknown=("spleen",))], [claims("liver", "spleen")])[0, 0] == ABSENT


def test_a_sentence_about_another_modality_or_plane_does_not_match():
    ct = image(("liver",))
    wrong = [claims("liver", modality="MR"), claims("liver", plane="coronal")]
    assert matches([ct], wrong)[0].tolist() == [ABSENT, ABSENT]
    assert matches([ct], wrong, mismatch=UNKNOWN)[0].tolist() == [UNKNOWN, UNKNOWN]
    assert matches([ct], [claims("liver", modality="CT", plane="axial")])[0, 0] == PRESENT


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_a_caption_is_always_true_of_its_own_image(seed, stations, augment):
    random = Random(seed)
    present = tuple(random.sample(WORDS.names, random.randint(1, 12)))
    shown = image(present, modality=random.choice(["CT", "MR"]), plane=random.choice(["axial", "coronal"]))
    told = caption(shown, WORDS, random, stations=stations, augment=augment)
    assert matches([shown], [told])[0, 0] == PRESENT
    if not stations:
        assert all(WORDS.labels[index].kind == "organ" for index in told.labels)


def test_every_label_is_asked_about_for_every_modality_of_the_batch():
    batch = [image(("liver",)), image(("brain",), modality="MR", plane="sagittal")]
    asked = label_sentences(batch, WORDS, Random(0))
    assert len(asked) == 2 * len(WORDS.labels)
    found = matches(batch, asked, mismatch=UNKNOWN)
    assert (found[0, len(WORDS.labels) :] == UNKNOWN).all()
    liver = next(i for i, s in enumerate(asked) if s.modality == "CT" and s.labels == (WORDS.index("liver"),))
    assert found[0, liver] == PRESENT
