"""Stations follow one another along the body; what one slice leaves open, its neighbours and that order settle.

Going up an axial stack, a stretch of stations is left and the next one entered, and none comes back. A hidden Markov
model says so: its states are the stretches that one slice can show (none, one station, two neighbours), its evidence
the slice's own logits, its steps the longer the likelier. Forward-backward (Rabiner 1989) gives each slice the
probability of every station given the whole stack. Arms and shoulders lie beside the trunk and stay out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.calibration import Logits, probabilities

Floats = NDArray[np.float64]
Places = NDArray[np.int_]

#: From head to foot. Stacks run from foot to head (`labeler.slices`).
CHAIN = ("head", "neck", "chest", "abdomen", "pelvis", "thigh", "knee", "lower_leg", "foot")

#: Images closer than this along the stack, as phases, echoes and b-values are, show one place, mm.
_ONE_PLACE = 0.1
#: Probabilities stay this far from 0 and 1: a whole stack may be wrong together.
_MARGIN = 1e-3


@dataclass(frozen=True)
class BodyOrder:
    """How much the order of the body is believed; part of a bundle, since thresholds are chosen after it."""

    #: Way along the body on which one stretch of stations gives way to the next, on average, mm.
    length_mm: float = 120.0
    #: Slices closer than this tell the same thing twice and count for less, mm.
    independent_mm: float = 10.0
    #: Weight of a slice's own evidence: its errors are its neighbours' too.
    trust: float = 0.6
    #: Share of the events that go against the order: bent knees, stacks put together, wrong headers.
    exception: float = 0.005
    #: How likely a slice is to show none of the stations, against each of the other states.
    nothing: float = 0.05
    #: Weight of what the order says beside what smoothing says.
    share: float = 0.5

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ordered(logits: Logits, positions: Sequence[float], order: BodyOrder) -> Logits:
    """Logits (n, stations of the chain) given the whole axial stack; images of one place speak with one voice.

    Args:
        logits: of the same stations, calibrated, not smoothed, in stack order; three places or more.
        positions: (n,) mm along the stack, growing towards the head.
    """
    places = places_of(positions)
    first, counts = np.unique(places, return_index=True, return_counts=True)[1:]
    gaps = np.diff(np.asarray(positions, float)[first])
    weight = order.trust * min(1.0, float(np.median(gaps)) / order.independent_mm)
    stretches = _stretches()
    together: Logits = (np.add.reduceat(logits, first) / counts[:, None]).astype(np.float32)
    evidence = _evidence(together, stretches, weight)
    evidence[:, -1] *= order.nothing
    p = np.clip(_posterior(evidence, gaps, order) @ stretches, _MARGIN, 1 - _MARGIN)
    settled: Logits = np.log(p / (1 - p)).astype(np.float32)
    return settled[places]


def places_of(positions: Sequence[float]) -> Places:
    """(n,) which place each image shows, counted from 0 along the stack."""
    steps = np.diff(np.asarray(positions, float)) >= _ONE_PLACE
    places: Places = np.concatenate([[0], np.cumsum(steps)])
    return places


def _stretches() -> Floats:
    """(states, stations), 1 where a state shows a station: each alone, each with the next one down, none."""
    alone = np.eye(len(CHAIN))
    return np.concatenate([alone, alone[:-1] + alone[1:], np.zeros((1, len(CHAIN)))])


def _evidence(logits: Logits, stretches: Floats, weight: float) -> Floats:
    """(n, states) likelihood of each state, up to a factor a slice."""
    p = np.clip(probabilities(logits).astype(float), 3e-4, 1 - 3e-4)
    told = weight * (np.log(p) @ stretches.T + np.log(1 - p) @ (1 - stretches).T)
    likelihood: Floats = np.exp(told - told.max(axis=1, keepdims=True))
    return likelihood


def _posterior(evidence: Floats, gaps: Floats, order: BodyOrder) -> Floats:
    """(n, states) probability of each state given all slices, by forward-backward."""
    steps = {gap: _steps(gap, order) for gap in set(gaps.round(2).tolist())}
    between = [steps[gap] for gap in gaps.round(2).tolist()]
    forward = [evidence[0]]
    for step, told in zip(between, evidence[1:], strict=True):
        forward.append(_normalised((forward[-1] @ step) * told))
    backward = [np.ones(evidence.shape[1])]
    for step, told in zip(reversed(between), reversed(evidence[1:]), strict=True):
        backward.append(_normalised(step @ (told * backward[-1])))
    both: Floats = np.stack(forward) * np.stack(backward[::-1])
    both /= both.sum(axis=1, keepdims=True)
    return both


def _normalised(values: Floats) -> Floats:
    shares: Floats = values / values.sum()
    return shares


def _steps(gap: float, order: BodyOrder) -> Floats:
    """(states, states) probability of the next slice's state, `gap` mm further up.

    Every station entered or left on the way is one event; events come as a Poisson process of the way.
    """
    way = gap / order.length_mm
    stations = range(len(CHAIN))
    ends = [(i, i + 1) for i in stations] + [(i, i + 2) for i in stations[:-1]]
    table = np.full((len(ends) + 1, len(ends) + 1), 0.1 * way)
    table[-1, -1] = 1.0
    for i, (first, last) in enumerate(ends):
        for j, (above, below) in enumerate(ends):
            events = (first - above) + (last - below)
            table[i, j] = way**events / factorial(events) if above <= first and below <= last else 0.0
    table += order.exception * way
    shares: Floats = table / table.sum(axis=1, keepdims=True)
    return shares
