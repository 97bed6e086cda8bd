"""Who stands behind the labels that an evidence sheet shows, and which of them are theirs. Pure."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from dicom_node.reports.amend import slices_of
from dicom_node.reports.bars import NOBODY, Correction
from dicom_node.reports.word import Verifier, Word, has_groups, kept_by, verifier_of, word_on
from labeler.result import SeriesLabels, SliceLabels
from labeler.sr import read_report
from labeler.vocabulary import Vocabulary

Places = dict[str, frozenset[int]]


def corrected_by(report: Dataset, before: Dataset | None, answer: SeriesLabels, words: Vocabulary) -> Correction:
    """Who has corrected and verified a report, when, and what changed against the report before."""
    by, when = verifier_of(report), moment_of(report)
    who = _named(by) if by else "a person"
    told = f"Corrected and verified by {who}" + f", {when}" * bool(when)
    said = read_report(before, words) if before is not None and has_groups(before) else None
    if said is None:
        return Correction((told,), True)
    earlier = slices_of([item.source for item in answer.slices], said, words)
    added, removed = _differing([item.present for item in earlier], answer.slices)
    return Correction((told,), True, added, removed)


def upheld_by(answer: SeriesLabels, people: Sequence[Word]) -> Correction:
    """Whose word holds on how many images, and where it differs from what the model said."""
    kept = kept_by(answer, people)
    if not kept:
        return NOBODY
    cuts = dict(answer.bundle.thresholds)
    modelled = [
        _above(item, answer.names, cuts) if word_on(str(item.source.sop_instance_uid), people) else item.present
        for item in answer.slices
    ]
    added, removed = _differing(modelled, answer.slices)
    images = len({item.source.sop_instance_uid for item in answer.slices})
    told = (f"{count} of {images} images as verified by {_named(word.by)}" for word, count in kept)
    return Correction(tuple(told), False, added, removed)


def moment_of(report: Dataset) -> str:
    """When a report was verified, to the minute; empty where it does not say so."""
    people = report.get("VerifyingObserverSequence") or [Dataset()]
    try:
        when = DT(str(people[0].get("VerificationDateTime") or ""))
    except ValueError:
        return ""
    zone = f"{when:%z}" if when else ""
    return f"{when:%Y-%m-%d %H:%M} {'UTC' if zone == '+0000' else zone}".strip() if when else ""


def _above(item: SliceLabels, names: Sequence[str], cuts: dict[str, float]) -> tuple[str, ...]:
    """What the model says of an image."""
    return tuple(name for name, p in zip(names, item.probabilities, strict=True) if p >= cuts.get(name, 2.0))


def _differing(earlier: Iterable[Sequence[str]], now: Iterable[SliceLabels]) -> tuple[Places, Places]:
    """Positions that gained, and that lost, each label."""
    added: dict[str, set[int]] = defaultdict(set)
    removed: dict[str, set[int]] = defaultdict(set)
    for place, (was, item) in enumerate(zip(earlier, now, strict=True)):
        for name in set(item.present) - set(was):
            added[name].add(place)
        for name in set(was) - set(item.present):
            removed[name].add(place)
    return _frozen(added), _frozen(removed)


def _frozen(found: dict[str, set[int]]) -> Places:
    return {name: frozenset(places) for name, places in found.items()}


def _named(by: Verifier) -> str:
    """A person and where she works, in the letters that the sheet has."""
    family, _, given = by.name.split("=")[0].partition("^")
    name = ", ".join(part for part in (family, given.split("^")[0]) if part)
    parts = (_spelled(name) or "a person whom the report names", _spelled(by.organization))
    return ", ".join(part for part in parts if part)


def _spelled(text: str) -> str:
    """The text without its accents, which the font of the sheet lacks; empty where that leaves too little."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return bare if bare.isascii() and bare.isprintable() else ""
