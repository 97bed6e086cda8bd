"""Everything that a configuration names as training material, as one list of stacks."""

from __future__ import annotations

from pathlib import Path

from labeler.model import pick_device
from training.config import Config
from training.corpus import LabelledStack, check_split, read_anatomy
from training.hospital import read_hospital
from training.labelmaps import read_bodies
from training.synthesis import Body
from training.totalsegmentator import read_totalsegmentator


def read_stacks(config: Config) -> list[LabelledStack]:
    """All collections of `config.data`, each person in one split.

    Raises:
        ValueError: no collection is named, nothing was found in one, or a person stands in two splits.
    """
    data, spec = config.data, config.preprocess
    stacks: list[LabelledStack] = []
    if data.anatomy:
        stacks += read_anatomy(Path(data.anatomy), spec, Path(data.cache))
    if data.totalsegmentator:
        stacks += read_totalsegmentator(Path(data.totalsegmentator), spec)
    if data.hospital:
        stacks += read_hospital(Path(data.hospital), spec)
    if not stacks:
        raise ValueError("[data] names no collection, or nothing was found: set anatomy, totalsegmentator or hospital")
    check_split(stacks)
    return stacks


def read_label_maps(config: Config) -> list[Body]:
    """Bodies for synthesis; none where the configuration does not want any."""
    wanted = config.data.labelmaps and config.data.synthetic_share
    return read_bodies(Path(config.data.labelmaps), pick_device(config.train.device)) if wanted else []
