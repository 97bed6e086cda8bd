"""From a seed: what scanners send, and which blow falls when. Pure; the same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum


class Course(StrEnum):
    """How a study comes."""

    PLAIN = "one association"
    SPLIT = "split over three associations"
    INTERLEAVED = "interleaved with another study"
    LATE = "images after the report"
    TWICE = "every image twice"
    TWO_SERIES = "two series"
    OTHER_BYTES = "a UID again with other bytes"
    CAPTURE = "a screen capture, not to be labelled"
    TWO_PATIENTS = "two patients under one UID, to be laid aside"


#: What the node must make of a study that comes like that, where it is not one report per series.
UNLABELLED, ASIDE = frozenset({Course.CAPTURE}), frozenset({Course.TWO_PATIENTS})


class Means(StrEnum):
    """What is done."""

    KILL = "kill -9"
    FAULT = "kill -9 at the moment"
    PAUSE = "SIGSTOP past the lease"
    SILENCE = "network silent"
    TEAR = "network torn"
    FILL = "disk"
    STEP = "clock"


@dataclass(frozen=True)
class Scan:
    """One study.

    Attributes:
        series: images of each of its series.
        after: blows that fall before it is sent.
    """

    number: int
    course: Course
    series: tuple[int, ...]
    after: int


@dataclass(frozen=True)
class Blow:
    """One thing that goes wrong.

    Attributes:
        peace: seconds that pass before it.
        lasts: seconds until it is over: the server comes back, the process goes on, the cable is mended.
    """

    means: Means
    at: str
    peace: float
    lasts: float

    def __str__(self) -> str:
        return f"{self.means}: {self.at}"


@dataclass(frozen=True)
class Plan:
    seed: int
    scans: tuple[Scan, ...]
    blows: tuple[Blow, ...]


#: Processes of the node; `up` is the supervisor, with which all the others end, and `label2` a second worker beside it.
PROCESSES = ("receive", "watch", "label", "label2", "deliver", "up")
#: Moments between two steps that belong together; see `struck`.
MOMENTS = (
    "receive: named, not written",
    "receive: on the disk, not in the ledger",
    "receive: in the ledger, not answered",
    "watch: complete, not rung",
    "watch: rung, not noted",
    "label: in the model",
    "label: report made, not written",
    "label: report written, not settled",
    "label: settled, nobody told",
    "deliver: PACS has answered, not noted",
)
_SERVERS = ("broker", "pacs")
_WIRES = ("scanner", "pacs", "broker")
_STEPS = ("an hour ahead", "two hours back")
_FILLS = ("below the reserve", "full")


def blow_kinds(*, database: bool, small_disk: bool) -> tuple[tuple[Means, str], ...]:
    """All blows there are where the ledger is on a database server, and where the disk is one that we may fill."""
    servers = (*_SERVERS, *(("database",) if database else ()))
    wires = (*_WIRES, *(("database",) if database else ()))
    return (
        *((Means.KILL, name) for name in (*PROCESSES, *servers, "everything")),
        *((Means.FAULT, moment) for moment in MOMENTS),
        *((Means.PAUSE, name) for name in ("receive", "watch", "label", "label2", "deliver", *_SERVERS)),
        *((Means.SILENCE, wire) for wire in wires),
        *((Means.TEAR, wire) for wire in wires),
        *((Means.FILL, how) for how in (_FILLS if small_disk else _FILLS[1:])),
        *((Means.STEP, how) for how in _STEPS),
    )


def drawn(
    seed: int,
    studies: int,
    blows: int,
    kinds: Sequence[tuple[Means, str]],
    lease_seconds: float,
    without: Set[str] = frozenset(),
) -> Plan:
    """The plan of a seed: all kinds of blows as evenly as their number allows, in random order.

    Args:
        without: means that are left out, by name.
    """
    chance = random.Random(seed)
    wanted = [kind for kind in kinds if kind[0] not in without]
    return Plan(seed, tuple(_scans(chance, studies, blows)), tuple(_blows(chance, blows, wanted, lease_seconds)))


def _scans(chance: random.Random, studies: int, blows: int) -> Iterator[Scan]:
    courses: list[Course] = []
    while len(courses) < studies:
        deck = list(Course)
        chance.shuffle(deck)
        courses += deck
    for number, course in enumerate(courses[:studies]):
        two = course in (Course.TWO_SERIES, Course.TWO_PATIENTS)
        series = tuple(chance.randint(3, 6) for _ in range(2 if two else 1))
        yield Scan(number, course, series, number * blows // studies)


def _blows(
    chance: random.Random, blows: int, kinds: Sequence[tuple[Means, str]], lease_seconds: float
) -> Iterator[Blow]:
    deck: list[tuple[Means, str]] = []
    for _ in range(blows):
        if not deck:
            deck = list(kinds)
            chance.shuffle(deck)
        means, at = deck.pop()
        shortest, longest = {
            Means.PAUSE: (1.2 * lease_seconds, 1.6 * lease_seconds),
            Means.SILENCE: (1.0, 10.0),
        }.get(means, (0.2, 3.0))
        yield Blow(means, at, chance.uniform(0.2, 1.5), chance.uniform(shortest, longest))
