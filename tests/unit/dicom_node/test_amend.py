"""A correction says what the person said, keeps what she did not touch, and tells who answers for it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.errors import ConfigurationError
from dicom_node.reports.amend import Amendment, Change, amended, parse_change, parse_verifier
from dicom_node.reports.report import Context, build, encode
from dicom_node.reports.word import Verifier
from labeler.sr import concept_of, read_report
from labeler.vocabulary import vocabulary
from tests.factories import a_series, an_answer

WORDS = vocabulary()
IMAGES = a_series("torso", 6, name="amend")
ANSWER = an_answer(IMAGES, lambda i: ("chest", "lung") if i < 3 else ("abdomen", "liver"))
REPORT = build(ANSWER, Context(IMAGES[0], "content", datetime(2026, 1, 2)))
WHO, WHEN = Verifier("Weber^Ruth", "General Hospital"), datetime(2026, 1, 3, 4, 5, 6)


def corrected(*changes: Change, comment: str = "") -> Dataset:
    said = read_report(REPORT, WORDS)
    assert said is not None
    sources = [item.source for item in ANSWER.slices]
    return amended(REPORT, said, sources, IMAGES[0], Amendment(changes, WHO, WHEN, comment), WORDS)


def labels(report: Dataset) -> list[set[str]]:
    said = read_report(report, WORDS)
    assert said is not None
    return [set(said.seen.get((uid, None), ())) for _, uid in said.images]


def titles(report: Dataset) -> list[str]:
    box = next(item for item in report.ContentSequence if concept_of(item) == "126010")
    groups = [group.ContentSequence for group in box.ContentSequence if group.ValueType == "CONTAINER"]
    return [str(item.TextValue) for group in groups for item in group if concept_of(item) == "112039"]


def test_images_say_what_the_person_said() -> None:
    made = corrected(Change("liver", False, 4, 5), Change("kidney", True, 5, 6))
    expected = [{"chest", "lung"}] * 3 + [{"abdomen"}, {"abdomen", "kidney"}, {"abdomen", "kidney", "liver"}]
    assert labels(made) == expected


def test_untouched_summaries_keep_their_certainty_and_changed_ones_claim_none() -> None:
    lines = titles(corrected(Change("liver", False, 4, 5)))
    assert "Lung: images 1-3 (3 of 6), best 1, certainty 90%" in lines
    assert "Liver: images 6 (1 of 6), best 6, said by a person" in lines
    assert not any(line.startswith("Liver") and "certainty" in line for line in lines)


def test_what_a_person_said_before_stays_said_by_a_person() -> None:
    first = corrected(Change("liver", False, 4, 5))
    said = read_report(first, WORDS)
    assert said is not None
    again = Amendment([Change("kidney", True)], WHO, WHEN)
    lines = titles(amended(first, said, [item.source for item in ANSWER.slices], IMAGES[0], again, WORDS))
    (liver,) = (line for line in lines if line.startswith("Liver"))
    assert liver == "Liver: images 6 (1 of 6), best 6, said by a person"
    assert sum(line.startswith("Kidney") for line in lines) == 1


def test_it_is_verified_final_and_names_its_predecessor() -> None:
    made = corrected(Change("liver", False), comment="resected")
    (observer,) = made.VerifyingObserverSequence
    assert (made.VerificationFlag, made.PreliminaryFlag, made.CompletionFlag) == ("VERIFIED", "FINAL", "COMPLETE")
    assert (observer.VerifyingObserverName, observer.VerifyingOrganization) == ("Weber^Ruth", "General Hospital")
    reference = made.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == REPORT.SOPInstanceUID != made.SOPInstanceUID
    assert made.SeriesInstanceUID == REPORT.SeriesInstanceUID
    told = " ".join(str(item.TextValue) for item in made.ContentSequence[-1].ContentSequence if "TextValue" in item)
    assert "removed liver in all images. resected" in told
    assert "CORRECTED AND VERIFIED BY A PERSON" in told
    assert "NOT VERIFIED" not in told


def test_the_same_correction_is_the_same_object_and_the_report_stays_as_it_is() -> None:
    before = encode(REPORT)
    assert encode(corrected(Change("liver", False))) == encode(corrected(Change("liver", False)))
    assert encode(REPORT) == before


@pytest.mark.parametrize(("offset", "told"), [("", "20260103150506"), ("+0900", "20260104000506")])
def test_it_tells_its_time_in_the_zone_of_the_report(offset: str, told: str) -> None:
    """A correction made in New York is later than the report, and looks so."""
    report, when = deepcopy(REPORT), datetime(2026, 1, 3, 10, 5, 6, tzinfo=timezone(timedelta(hours=-5)))
    report.TimezoneOffsetFromUTC = offset
    said = read_report(report, WORDS)
    assert said is not None
    sources = [item.source for item in ANSWER.slices]
    made = amended(report, said, sources, IMAGES[0], Amendment([Change("liver", False)], WHO, when), WORDS)
    assert made.ContentDate + made.ContentTime == f"{told}.000000"
    assert made.VerifyingObserverSequence[0].VerificationDateTime == when


def test_the_target_region_follows() -> None:
    made = corrected(Change("abdomen", False), Change("liver", False))
    regions = [i for i in made.ContentSequence[-1].ContentSequence if concept_of(i) == "123014"]
    assert [region.ConceptCodeSequence[0].CodeMeaning for region in regions] == ["Chest"]


def summary(report: Dataset) -> list[str]:
    box = report.ContentSequence[-1].ContentSequence
    return next(str(item.TextValue) for item in box if concept_of(item) == "121111").splitlines()


def test_the_header_is_compared_with_the_corrected_labels() -> None:
    assert "Header Body Part Examined: CHEST; pixels: CHESTABDOMEN -> agree" in summary(REPORT)
    lines = summary(corrected(Change("chest", False), Change("lung", False)))
    assert "Header Body Part Examined: CHEST; pixels: ABDOMEN -> DIFFER" in lines
    assert [line for line in lines if line.startswith("Header")] == [lines[2]]
    assert lines[1] == "Body stations: Abdomen"


def test_what_a_person_has_answered_is_no_longer_unsure() -> None:
    answer = replace(ANSWER, slices=tuple(replace(item, unsure=("heart", "kidney")) for item in ANSWER.slices))
    report = build(answer, Context(IMAGES[0], "content", datetime(2026, 1, 2)))
    said = read_report(report, WORDS)
    assert said is not None
    sources = [item.source for item in answer.slices]
    assert "Not sure: Heart, Kidney" in summary(report)
    for changes, told in (
        ([Change("kidney", True)], ["Not sure: Heart"]),
        ([Change("kidney", True), Change("heart", True)], []),
    ):
        made = amended(report, said, sources, IMAGES[0], Amendment(changes, WHO, WHEN), WORDS)
        assert [line for line in summary(made) if line.startswith("Not sure")] == told


def test_a_correction_without_a_label_asks_for_one() -> None:
    with pytest.raises(ConfigurationError, match="name at least one --add"):
        corrected()


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (Change("brain", True), Change("brain", False), "6 images from 1 to 6"),
        (Change("liver", False, 4, 5), Change("liver", True, 5, 6), "image 5"),
        (Change("liver", False), Change("liver", True, 1, 2), "2 images from 1 to 2"),
    ],
)
def test_nothing_is_added_and_removed_in_one_image(first: Change, second: Change, told: str) -> None:
    with pytest.raises(ConfigurationError, match=f"both added and removed in {told};"):
        corrected(first, second)


def test_one_label_may_go_from_some_images_and_come_to_others() -> None:
    made = corrected(Change("liver", False, 4, 5), Change("liver", True, 1, 2))
    assert ["liver" in shown for shown in labels(made)] == [True, True, False, False, False, True]


def test_a_correction_that_changes_nothing_is_said_to_be_one() -> None:
    with pytest.raises(ConfigurationError, match="nothing would change: removed heart in all images"):
        corrected(Change("heart", False))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.builds(Change, st.sampled_from(WORDS.names), st.booleans(), st.integers(1, 6), st.integers(1, 6)).filter(
            lambda change: (change.first or 0) <= (change.last or 0)
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda change: change.label,
    )
)
def test_whatever_is_changed_reading_gives_it_back(changes: list[Change]) -> None:
    expected = [set(item.present) for item in ANSWER.slices]
    for change in changes:
        for number, shown in enumerate(expected, start=1):
            if change.touches(number):
                (shown.add if change.present else shown.discard)(change.label)
    if expected == [set(item.present) for item in ANSWER.slices]:
        return
    assert labels(corrected(*changes)) == expected


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("gallbladder", Change("gallbladder", False)),
        ("liver:12", Change("liver", False, 12, 12)),
        ("liver:12-40", Change("liver", False, 12, 40)),
        ("liver:40-12", Change("liver", False, 12, 40)),
        ("Small intestine: 40-12", Change("small_intestine", False, 12, 40)),
        ("radius and ulna:5", Change("forearm_bones", False, 5, 5)),
        ("Upper limb", Change("upper_limb", False)),
    ],
)
def test_changes_as_people_write_them(text: str, change: Change) -> None:
    assert parse_change(text, WORDS, present=False) == change


@pytest.mark.parametrize("text", ["", "liver:", "liver:a-b", "12", "livr"])
def test_what_is_no_change_is_explained(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write LABEL|no label is called"):
        parse_change(text, WORDS, present=True)


@pytest.mark.parametrize("images", [(0, 3), (4, 200), (500, 600)])
def test_images_that_there_are_not_are_named(images: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match="numbered 1 to 6"):
        corrected(Change("kidney", True, *images))


@pytest.mark.parametrize(
    ("name", "organization"),
    [
        ("", "General Hospital"),
        (" ", "x"),
        ("^^", "x"),
        ("Doe^Jane", ""),
        ("A\\B", "x"),
        ("x" * 65, "x"),
        ("a^b^c^d^e^f", "x"),
    ],
)
def test_nobody_answers_for_nothing(name: str, organization: str) -> None:
    with pytest.raises(ConfigurationError, match="--by"):
        parse_verifier(name, organization)


def test_who_answers_is_named_without_blanks() -> None:
    assert parse_verifier(" Doe^Jane ", "General Hospital") == Verifier("Doe^Jane", "General Hospital")
