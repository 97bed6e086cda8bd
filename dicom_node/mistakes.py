"""Pure: what is wrong in a settings file, each with its line, why, and what would be right."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

Location = tuple[int | str, ...]

_TABLE = re.compile(r"\s*\[\[?\s*[\w.-]+\s*\]")
_PASSWORD = re.compile(r"://[^/]*@")


def explained(problems: Sequence[Any], path: Path | None, text: str, known: Mapping[str, Sequence[str]]) -> str:
    """One line for each of pydantic's problems with these settings.

    Args:
        known: the settings that there are, by table; those outside of any under "".
    """
    lines = []
    for problem in problems:
        location = problem["loc"]
        where = f"{path}:{line_of(text, location)}" if path else "environment"
        variable = f"DICOM_NODE_{str(location[0]).upper()}" if location else ""
        if variable and variable in os.environ:
            where = f"environment variable {variable}"
        lines.append(f"{where}: {_named(location, text)}: {_reason(problem, location, known)}")
    return "\n".join(lines)


def no_settings(names: Sequence[str]) -> list[str]:
    """Variables of the environment that read as settings of ours and are none, each with what may be meant."""
    ours = {f"DICOM_NODE_{name.upper()}" for name in names}
    strange = sorted({name for name in os.environ if name.upper().startswith("DICOM_NODE_")} - ours)
    near = {name: get_close_matches(name.upper(), ours, 1) for name in strange if name.upper() not in ours}
    return [f"{name} is no setting{f', {meant[0]} is' if meant else ''}" for name, meant in near.items()]


def _named(location: Location, text: str) -> str:
    """The setting as people call it: a peer by its name or AE title, and no place within a list."""
    match location:
        case ("peers", int(index), *rest):
            parts = [f"peer {_peer(text, index)}", *rest[:1]]
        case _:
            parts = list(location)
    return ".".join(str(part) for part in parts) or "settings"


def _peer(text: str, index: int) -> str:
    try:
        peer = tomllib.loads(text)["peers"][index]
        return repr(peer.get("name") or peer["ae_title"])
    except (LookupError, AttributeError, TypeError):
        return str(index + 1)


def _reason(problem: Any, location: Location, known: Mapping[str, Sequence[str]]) -> str:
    if problem["type"] == "extra_forbidden":
        table = str(location[0]) if len(location) > 1 else ""
        if table in known and location[-1] in known[""]:
            return "no such setting in this table, it is the whole node's: write it above the first [[peers]] or [tls]"
        return f"no such setting; known: {', '.join(known.get(table, known['']))}"
    if location == ("peers",) and problem["type"] == "tuple_type":
        return "write [[peers]], with two brackets, before every peer"
    if problem["type"] in ("frozen_set_type", "tuple_type"):
        return f'write a list, as {location[-1]} = ["..."] (got {problem.get("input")!r})'
    got = problem.get("input")
    shown = f" (got {_PASSWORD.sub('://...@', repr(got))})" if isinstance(got, str | int | float) else ""
    return f"{problem['msg'].removeprefix('Value error, ')}{shown}"


def line_of(text: str, location: Location) -> int:
    """Line of a setting in the TOML text, counted from 1; of its table where the setting itself is not written."""
    lines = text.splitlines()
    start = 0
    for position, part in enumerate(location):
        if isinstance(part, int):
            continue
        which = location[position + 1] if position + 1 < len(location) else 0
        tables = [i for i, line in enumerate(lines) if re.match(rf"\s*\[\[?\s*{re.escape(part)}\s*\]", line)]
        if tables:
            start = tables[min(which, len(tables) - 1) if isinstance(which, int) else 0]
            continue
        key = re.compile(rf"\s*{re.escape(part)}\s*=")
        end = next((i for i in range(start + bool(position), len(lines)) if _TABLE.match(lines[i])), len(lines))
        start = next((i for i in range(start, end) if key.match(lines[i])), start)
    return start + 1
