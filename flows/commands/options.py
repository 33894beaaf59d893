"""What several commands are told alike."""

from typing import Annotated

import typer

StoreUrl = Annotated[
    str, typer.Option("--store", envvar="SPPO_STORE", help="Where artifacts are kept: a folder, or s3://bucket/prefix.")
]
HardwareName = Annotated[str, typer.Option("--hardware", help="Name of a hardware file, or its path.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value in the recipe.")]
NoGate = Annotated[bool, typer.Option("--no-gate", help="Go on after an iteration that failed its gates.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or the path of a YAML file.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")]
