"""What all commands share: the settings they read, where they write, and how errors look."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from dicom_node.desk.tables import fitted, page_width
from dicom_node.errors import ConfigurationError, NodeError
from dicom_node.settings import Settings, load_settings

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger

console = Console(width=page_width(sys.stdout.isatty(), os.environ))
complaints = Console(stderr=True)


def show(*parts: RenderableType) -> None:
    for part in parts:
        console.print(fitted(part, console.width) if isinstance(part, Table) else part)


class Chosen:
    """The file that `--config` named, or that was found."""

    config: Path | None = None


def settings() -> Settings:
    return load_settings(Chosen.config)


def kept_ledger(wanted: Settings) -> Ledger:
    """The ledger of a node that has run.

    Raises:
        ConfigurationError: there is none where these settings look; who only asks must not make one.
    """
    from dicom_node.ledger import Ledger

    file = wanted.ledger_file
    if file is not None and not file.exists():
        raise ConfigurationError(
            f"{file}: no node has run here yet. The settings come from {Chosen.config or 'the defaults'}; ask in the "
            "folder that the node runs in, or name its settings: dicom-node --config FILE ..."
        )
    return Ledger(wanted.ledger_url)


def explained(command: Callable[..., Any]) -> Callable[..., Any]:
    """Our errors become one message and exit code 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except NodeError as error:
            complaints.print(f"[red]{escape(str(error))}[/red]", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error

    return run
