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

#: Exit code of what a monitor asks and gets no answer to; CRITICAL in Nagios's terms, as 1 is WARNING.
NO_ANSWER = 2

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

    if wanted.ledger_file is not None:
        _must_be_here(wanted.ledger_file)
    return Ledger(wanted.ledger_url)


def _must_be_here(file: Path) -> None:
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{file}: no node has run here yet. The settings come from {Chosen.config or 'the defaults'}; ask in the "
            "folder that the node runs in, or name its settings: dicom-node --config FILE ..."
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}; ask as the user that the node runs as") from error


def explained(command: Callable[..., Any]) -> Callable[..., Any]:
    """Our errors become one message and exit code 1."""
    return _told(command, 1)


def monitored(command: Callable[..., Any]) -> Callable[..., Any]:
    """Our errors become one message and an exit code that is not taken for an answer."""
    return _told(command, NO_ANSWER)


def _told(command: Callable[..., Any], code: int) -> Callable[..., Any]:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except NodeError as error:
            complaints.print(f"[red]{escape(str(error))}[/red]", highlight=False, soft_wrap=True)
            raise typer.Exit(code) from error

    return run
