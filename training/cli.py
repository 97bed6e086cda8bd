"""Commands: `python -m training fit CONFIG.toml`, `export RUN BUNDLE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make a bundle: train, measure, export.", pretty_exceptions_enable=False)


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="TOML file; see training/recipes/.")],
    run: Annotated[Path, typer.Option(help="Folder for everything that this run leaves.")] = Path("runs/latest"),
) -> None:
    """Train; a killed run goes on where its last checkpoint was."""
    from training.config import read_config
    from training.sources import read_label_maps, read_stacks
    from training.train import fit as train

    settings = read_config(config)
    typer.echo(f"best: {train(settings, read_stacks(settings), run, read_label_maps(settings))}")


@app.command()
def export(
    config: Annotated[Path, typer.Argument(help="The TOML file of the run.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    bundle: Annotated[Path, typer.Argument(help="Folder to write the bundle to.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "0.1.0",
) -> None:
    """Calibrate, measure and write a bundle with manifest and model card."""
    from training.config import read_config
    from training.export import export as write
    from training.sources import read_stacks

    settings = read_config(config)
    typer.echo(f"{bundle}: {write(run, bundle, settings, read_stacks(settings), version)}")


@app.callback()
def main() -> None:
    """Make a bundle: train, measure, export."""
