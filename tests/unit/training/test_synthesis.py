"""Synthetic planes: exact labels, honest unknowns, the same from the same seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from labeler.preprocess import PreprocessSpec
from labeler.vocabulary import vocabulary
from tests.support import SHARED
from training.corpus import ABSENT, PRESENT, UNKNOWN
from training.labelmaps import read_bodies
from training.synthesis import Body, SynthesisConfig, Tissue, synthesise

WORDS = vocabulary()
SPEC = PreprocessSpec()
STRAIGHT = SynthesisConfig(tilt=0.0, size=0.0, warp=0.0, framed_by_body=1.0)


def a_body(**changes: object) -> Body:
    """A box of muscle, 200 mm long: a liver in its upper half (abdomen), an arm beside it."""
    ids = torch.zeros((60, 40, 50), dtype=torch.uint8)
    ids[10:40, 5:35, 2:48] = 1
    ids[15:30, 10:30, 25:45] = 2
    ids[48:56, 10:20, 2:48] = 3
    stations = torch.zeros(ids.shape, dtype=torch.int32)
    stations[:, :, 25:] = 1 << WORDS.index("abdomen")
    shows = torch.zeros((4, len(WORDS.labels)))
    shows[2, WORDS.index("liver")] = 1
    shows[3, WORDS.index("humerus")] = 1
    tissues = (Tissue(-1000, 0, (0, 0)), Tissue(50, 1, (0.2, 0.4)), Tissue(90, 1, (0.5, 0.9)), Tissue(700, 1, (0, 0.1)))
    places = {index: torch.nonzero(ids == index)[::7] for index in (2, 3)}
    values = {
        "name": "box",
        "ids": ids,
        "stations": stations,
        "mm": (4.0, 4.0, 4.0),
        "tissues": tissues,
        "shows": shows,
        "carried": shows.any(dim=0),
        "modalities": ("CT",),
        "places": places,
        "limbs": ((3,),),
        "field": (150.0, 300.0),
    }
    return Body(**{**values, **changes})  # type: ignore[arg-type]


def made(body: Body, count: int = 40, config: SynthesisConfig = STRAIGHT, seed: int = 0):
    return synthesise(body, count, WORDS, SPEC, config, torch.Generator().manual_seed(seed))


def test_a_limb_is_shown_alone():
    limb = torch.zeros((60, 40, 50), dtype=torch.uint8)
    limb[48:56, 10:20, 2:48] = 1
    body = a_body(limb=limb)
    arm = replace(STRAIGHT, limb_alone=1.0, without_limbs=0.0)
    batch = made(body, 60, arm)
    humerus, liver = WORDS.index("humerus"), WORDS.index("liver")
    alone = [i for i, shown in enumerate(batch.shown) if shown.states[humerus] == PRESENT]
    assert any(
        batch.shown[i].states[liver] == ABSENT and not ((batch.values[i] > 0) & (batch.values[i] < 200)).any()
        for i in alone
    )
    beside = made(body, 60, replace(arm, limb_alone=0.0))
    both = [s for s in beside.shown if s.states[humerus] == PRESENT and s.states[liver] == PRESENT]
    assert both


def test_labels_are_what_the_pixels_are():
    batch = made(a_body())
    liver, abdomen = WORDS.index("liver"), WORDS.index("abdomen")
    for values, shown in zip(batch.values, batch.shown, strict=True):
        pixels = int(((values > 75) & (values < 110)).sum())
        assert {PRESENT: pixels > 10, ABSENT: pixels < 120, UNKNOWN: True}[shown.states[liver]]
        if shown.states[liver] == PRESENT:
            assert shown.states[abdomen] in (PRESENT, UNKNOWN)


def test_what_the_map_does_not_carry_is_unknown_only_where_it_might_be():
    batch = made(a_body())
    spleen, brain = WORDS.index("spleen"), WORDS.index("brain")
    abdomen = WORDS.index("abdomen")
    for shown in batch.shown:
        assert shown.states[brain] == ABSENT
        assert shown.states[spleen] == (UNKNOWN if shown.states[abdomen] != ABSENT else ABSENT)


def test_limbs_beside_the_trunk_may_be_left_out_but_never_what_the_picture_is_about():
    arm = WORDS.index("humerus")
    both = made(a_body(), 60, SynthesisConfig(tilt=0, size=0, warp=0, without_limbs=1.0))
    about_arm = [s for s in both.shown if s.states[arm] == PRESENT]
    without = [s for s in both.shown if s.states[arm] == ABSENT]
    assert about_arm
    assert without


def test_the_ruler_follows_the_field_of_view():
    batch = made(a_body(), config=SynthesisConfig(framed_by_body=0.0))
    field = SPEC.ruler_mm * SPEC.size / batch.ruler
    assert (field >= 149).all()
    assert (field <= 301).all()


def test_mr_is_between_nought_and_one_and_ct_in_hounsfield_units():
    mr = made(a_body(modalities=("MR",)))
    assert 0 <= mr.values.min() <= mr.values.max() <= 1
    assert mr.values.max() > 0.3
    ct = made(a_body())
    assert ct.values.min() == pytest.approx(-1024, abs=1)
    assert {shown.modality for shown in mr.shown} == {"MR"}


def test_a_seed_makes_the_same_batch_again():
    one, two, other = made(a_body(), seed=4), made(a_body(), seed=4), made(a_body(), seed=5)
    assert torch.equal(one.values, two.values)
    assert all(np.array_equal(a.states, b.states) for a, b in zip(one.shown, two.shown, strict=True))
    assert not torch.equal(one.values, other.values)


@pytest.mark.shared
def test_whole_bodies_know_their_stations():
    folder = SHARED / "anatomy" / "labelmaps"
    bodies = {body.name: body for body in read_bodies(folder)}
    body = bodies["icrp110_af"]
    seen = {WORDS.stations[i] for i in range(len(WORDS.stations)) if bool((body.stations >> i & 1).any())}
    assert seen == set(WORDS.stations)
    for label in ("tibia", "fibula", "patella"):
        assert bool(body.shows[:, WORDS.index(label)].any())
