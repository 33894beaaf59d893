"""Writes the pages of docs/ that follow from code: `make docs`. A test holds the committed pages to what this writes."""

from pathlib import Path

from sppo.hardware import hardware_names, load_hardware
from sppo.recipe import load_recipe, recipe_names
from sppo.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(inner, dict) for inner in value):
            for position, inner in enumerate(value):
                flat |= _flat(inner, f"{prefix}{key}.{position}.")
        else:
            flat[f"{prefix}{key}"] = "" if value in ([], (), None) else f"`{value}`".replace("|", "\\|")
    return flat


def _table(columns: dict[str, dict[str, str]]) -> str:
    names = list(columns)
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for key in keys:
        cells = [columns[name].get(key, "") for name in names]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def recipes_page() -> str:
    """docs/recipes.md: every value of every recipe and hardware file, and what each stage reads."""
    recipes = {
        name: _flat(load_recipe(name, RECIPES).model_dump(mode="json", exclude={"name"})) for name in recipe_names(RECIPES)
    }
    hardware = {
        name: _flat(load_hardware(name, HARDWARE).model_dump(mode="json", exclude={"name"}))
        for name in hardware_names(HARDWARE)
    }
    stages = {stage.name: stage for stage in STAGES.values()}
    rows = [
        f"| {name} | {', '.join(f'`{path}`' for path in stage.reads)} | {', '.join(stage.after)} |"
        for name, stage in stages.items()
    ]
    return "\n".join(
        [
            "# Recipes and hardware",
            "",
            "Written by `make docs` from `deployments/` and `sppo/stages.py`.",
            "",
            "A recipe says what is computed; changing a value recomputes the stages that read it and, where their content",
            "changes, those after them. `sppo recipe diff A B` prints which.",
            "",
            _table(recipes),
            "",
            "## Hardware",
            "",
            "Hardware says where it runs and never changes what is computed, so it is in no fingerprint.",
            "",
            _table(hardware),
            "",
            "## What each stage reads",
            "",
            "| stage | of the recipe | after |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


PAGES = {"recipes.md": recipes_page}


def main() -> None:
    """Write every generated page."""
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
