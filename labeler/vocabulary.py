"""The labels: body stations and organs, their words, codes and hierarchy (`vocabulary.toml`)."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal

Kind = Literal["station", "organ"]


@dataclass(frozen=True)
class Code:
    """A coded concept (PS3.3 Section 8): value, scheme designator, meaning of at most 64 characters."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One thing that an image can show.

    `stations` names the stations in which an organ can be seen (empty for a station);
    `body_part_examined` is a station's term of PS3.16 Annex L (empty for an organ).
    """

    name: str
    kind: Kind
    text: str
    synonyms: tuple[str, ...]
    code: Code
    sided: bool
    stations: tuple[str, ...] = ()
    body_part_examined: str = ""


@dataclass(frozen=True)
class Region:
    """Stations that the standard names together, as chest + abdomen + pelvis (PS3.16 CID 4031)."""

    stations: frozenset[str]
    code: Code
    body_part_examined: str


@dataclass(frozen=True)
class Vocabulary:
    """All labels in the order of the model's outputs: stations first, then organs."""

    version: str
    labels: tuple[Label, ...]
    regions: tuple[Region, ...]
    sha256: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def stations(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels if label.kind == "station")

    @property
    def organs(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels if label.kind == "organ")

    def __getitem__(self, name: str) -> Label:
        return self.labels[self.index(name)]

    def called(self, words: str) -> Label | None:
        """The label of that name, or that people call so; None where none is, or several are."""
        wanted = _plain(words)
        for names in (lambda x: (x.name,), lambda x: (x.text,), lambda x: x.synonyms):
            found = [label for label in self.labels if wanted in map(_plain, names(label))]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def index(self, name: str) -> int:
        """Position of a label in the model's outputs; KeyError for an unknown name."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(f"no label {name!r} in the vocabulary {self.version}") from None

    def homes(self) -> Iterator[tuple[int, list[int]]]:
        """Per organ its index and those of the stations in which it lies."""
        for column, label in enumerate(self.labels):
            if label.kind == "organ":
                yield column, [self.index(name) for name in label.stations]

    def of_code(self, scheme: str, value: str, kind: Kind) -> Label | None:
        """The label of that kind with this code, retired codes included; None when there is none."""
        value = _RETIRED.get((scheme, value), value)
        wanted = (value, "SCT" if scheme in ("SCT", "SRT", "99SDM") else scheme)
        return next((x for x in self.labels if x.kind == kind and (x.code.value, x.code.scheme) == wanted), None)

    def region(self, stations: Iterable[str]) -> Region | None:
        """The one term for a set of stations: the station itself, the standard's combination, or None."""
        wanted = frozenset(stations)
        if len(wanted) == 1:
            label = self[next(iter(wanted))]
            return Region(wanted, label.code, label.body_part_examined)
        return next((region for region in self.regions if region.stations == wanted), None)


def _plain(words: str) -> str:
    return " ".join(words.replace("_", " ").casefold().split())


#: Codes that older objects carry, and what replaced them (PS3.16 CID 4031).
_RETIRED = {("SCT", "51185008"): "816094009", ("SCT", "113345001"): "818981001", ("SCT", "12921003"): "816092008"}


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary that ships with this package."""
    raw = files(__package__).joinpath("vocabulary.toml").read_bytes()
    return parse(raw)


def parse(raw: bytes) -> Vocabulary:
    """Read a vocabulary; ValueError when a name repeats or an organ lies in an unknown station."""
    table = tomllib.loads(raw.decode())
    labels = tuple(_label("station", row) for row in table["station"]) + tuple(
        _label("organ", row) for row in table["organ"]
    )
    regions = tuple(
        Region(frozenset(row["stations"]), Code(*row["code"]), row["body_part_examined"])
        for row in table["combination"]
    )
    _check(labels, regions)
    return Vocabulary(table["version"], labels, regions, hashlib.sha256(raw).hexdigest())


def _label(kind: Kind, row: dict[str, Any]) -> Label:
    return Label(
        name=row["name"],
        kind=kind,
        text=row["text"],
        synonyms=tuple(row["synonyms"]),
        code=Code(*row["code"]),
        sided=row["sided"],
        stations=tuple(row.get("stations", ())),
        body_part_examined=row.get("body_part_examined", ""),
    )


def _check(labels: tuple[Label, ...], regions: tuple[Region, ...]) -> None:
    names = [label.name for label in labels]
    if len(set(names)) != len(names):
        raise ValueError("a label name stands twice in the vocabulary")
    stations = {label.name for label in labels if label.kind == "station"}
    for label in labels:
        if label.kind == "organ" and (not label.stations or not stations.issuperset(label.stations)):
            raise ValueError(f"organ {label.name}: every organ lies in at least one known station")
    for region in regions:
        if not stations.issuperset(region.stations):
            raise ValueError(f"combination {sorted(region.stations)}: unknown station")
