"""Commands: `python -m training fit CONFIG.toml`, `export CONFIG.toml RUN BUNDLE`, `evaluate CONFIG.toml [BUNDLE]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="The TOML file that names the collection.")],
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle folder; without one, the bundle of the package.")
    ] = None,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure there.")] = None,
) -> None:
    """Measure a bundle on a collection, through the path that serving takes."""
    import json
    from dataclasses import replace

    from labeler.label import Labeler
    from training.config import read_config
    from training.evaluate import evaluate_bundle, metrics_table
    from training.sources import read_stacks

    labeler = Labeler.load(bundle)
    settings = replace(read_config(config), preprocess=labeler.spec)
    stacks = [stack for stack in read_stacks(settings) if stack.split == split]
    if not stacks:
        raise typer.BadParameter(f"{config}: no volume of the split {split!r} there")
    metrics = evaluate_bundle(labeler, stacks)
    title = f"{labeler.info.name} {labeler.info.version}, {split}, {len(stacks)} stacks"
    Console().print(metrics_table(metrics, title))
    if json_file:
        json_file.write_text(json.dumps(metrics.to_json(), indent=1))


@app.command()
def experiments(
    config: Annotated[Path, typer.Argument(help="The TOML file of the full recipe.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")] = Path("runs/experiments"),
    seeds: Annotated[int, typer.Option(help="Trainings per row.")] = 3,
) -> None:
    """The paper's table: what each part of the recipe is worth."""
    from training.config import read_config
    from training.experiments import experiments as compare
    from training.sources import read_label_maps, read_stacks

    settings = read_config(config)
    typer.echo(compare(settings, read_stacks(settings), read_label_maps(settings), out, seeds))


@app.callback()
def main() -> None:
    """Make a bundle: train, measure, export."""
