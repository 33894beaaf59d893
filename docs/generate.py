"""Writes the pages of docs/ that follow from code: `make docs`. A test holds the committed pages to what this writes."""

from pathlib import Path

import numpy as np

from sppo import game
from sppo.chart import Curve, powers
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


ROCK_PAPER_SCISSORS = np.array([[0.5, 0.4, 0.9], [0.6, 0.5, 0.3], [0.1, 0.7, 0.5]])
"""P of rock, paper, scissors over each other, the edge of rock over scissors the largest."""
ROUNDS = tuple(sorted({round(2 ** (half / 2)) for half in range(29)}))


def game_figure() -> str:
    """docs/game.svg: how much can be won against the mean policy of T rounds of self-play."""
    preferences = ROCK_PAPER_SCISSORS
    logits = np.log(preferences / (1 - preferences))  # (K, K)
    rules = {
        "pairwise": game.pairwise(preferences),
        "bradley_terry": game.bradley_terry(logits),
        "bradley_terry, of draws": game.bradley_terry_of_draws(logits),
    }
    curves = []
    for name, rule in rules.items():
        means = [game.self_play(rule, 3, rounds, game.best_eta(3, rounds)).mean(axis=0) for rounds in ROUNDS]  # (K,) each
        curves.append(Curve(name, ROUNDS, [float(game.duality_gap(preferences, mean)) for mean in means]))
    bounds = [game.gap_bound(3, rounds, game.best_eta(3, rounds)) for rounds in ROUNDS]
    curves.append(Curve("bound of pairwise", ROUNDS, bounds, dashed=True))
    return powers("Duality gap of the mean policy, rock-paper-scissors", curves, "rounds T, eta = sqrt(8 ln 3 / T)") + "\n"


PAGES = {"recipes.md": recipes_page, "game.svg": game_figure}


def main() -> None:
    """Write every generated page."""
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
