"""All settings with their defaults and what they mean, made from the comments in `settings` itself.

python -m dicom_node.manual > docs/settings.md
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dicom_node.settings import Peer, Settings, Tls

_HEAD = """\
# Settings

Made from the code by `python -m dicom_node.manual`; a test fails when it is out of date.

One TOML file: the one given with `--config`, else named by `DICOM_NODE_CONFIG`, else `dicom-node.toml` in the working
folder, else `/etc/dicom-node/dicom-node.toml`. [`deploy/dicom-node.toml`](../deploy/dicom-node.toml) is one to begin
with, and `dicom-node config check` says what is wrong in yours. A setting of the whole node is overruled by a variable
of the environment, as `DICOM_NODE_PORT=11113`. Changed settings count after a restart.
"""
_TABLES: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The whole node", "Above the first table of the file.", Settings),
    ("`[[peers]]`", "One table for every scanner, archive and workstation.", Peer),
    ("`[tls]`", "", Tls),
)
_FIELD = re.compile(r"((?: {4}#: .*\n)+) {4}(\w+): ")


def manual() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *("\n".join(_chapter(*table)) for table in _TABLES)])


def described(model: type[BaseModel]) -> dict[str, str]:
    """What the comment above each setting says."""
    found = _FIELD.findall(inspect.getsource(model))
    return {name: " ".join(line.strip().removeprefix("#: ") for line in said.splitlines()) for said, name in found}


def _chapter(title: str, where: str, model: type[BaseModel]) -> Iterator[str]:
    says = described(model)
    intro = " ".join(filter(None, [where, inspect.cleandoc(model.__doc__ or "")]))
    yield f"## {title}\n\n{intro}\n\n| setting | unless set | what it is |\n| --- | --- | --- |"
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {_shown(field.default)} | {says[name].replace('|', chr(92) + '|')} |"
    yield ""


def _shown(value: Any) -> str:
    """A default as the file would say it."""
    if value is PydanticUndefined:
        return "must be set"
    if value is None or value == ():
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, frozenset):
        value = sorted(value)
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


if __name__ == "__main__":
    print(manual(), end="")
