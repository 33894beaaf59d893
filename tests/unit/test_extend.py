"""docs/extend.md, followed word by word in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sppo.configuration import parse_yaml, validate
from sppo.errors import RecipeError
from sppo.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def edit(package: Path, difference: str) -> None:
    """Applies a block of `--- file` headers and lines that stay, go or come; `@@` stands between two places of a file."""
    for part in re.split(r"^--- ", difference, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        for place in re.split(r"^@@\n", body, flags=re.MULTILINE):
            lines = place.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            text = (package / name).read_text(encoding="utf-8")
            assert text.count(before) == 1, f"docs/extend.md edits {name} where it no longer reads\n{before}"
            (package / name).write_text(text.replace(before, after), encoding="utf-8")


def run(package: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run([sys.executable, *arguments], cwd=package, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's judge in it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "sppo", folder / "sppo", ignore=shutil.ignore_patterns("__pycache__"))
    for difference in blocks("diff"):
        edit(folder, difference)
    for code in blocks("python"):
        name = code.splitlines()[0].removeprefix("# ")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code.partition("\n")[2], encoding="utf-8")
    return folder


def test_the_pages_judge_passes_the_pages_test(package: Path) -> None:
    run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_judges_brevity.py")


def test_the_pages_judge_works_in_a_recipe_and_costs_nothing_to_fetch(package: Path, tiny: Recipe) -> None:
    (entry,) = (text for text in blocks("yaml") if "brevity" in text)
    values = tiny.model_dump(mode="json") | parse_yaml(entry, "docs/extend.md", RecipeError)
    code = (
        "import json, sys, sppo.judges; from sppo.recipe import Recipe; from sppo.stages import recipe_part\n"
        f"assert sppo.__file__.startswith({str(package)!r}), sppo.__file__\n"
        "recipe = Recipe.model_validate_json(sys.argv[1])\n"
        "assert recipe.judge.members[1].judge.strength == 0.5\n"
        "assert recipe_part('rank', recipe)['judge']['members'][1]['judge'] == {'kind': 'brevity', 'strength': 0.5}\n"
        "assert sppo.judges.step(recipe.judge.members[1].judge, recipe) is None\n"
    )
    run(package, "-c", code, json.dumps(values))


@pytest.mark.parametrize("entry", [text for text in blocks("yaml") if "brevity" not in text])
def test_every_entry_of_the_page_is_a_judge(tiny: Recipe, entry: str) -> None:
    values = tiny.model_dump(mode="json") | parse_yaml(entry, "docs/extend.md", RecipeError)
    recipe = validate(Recipe, values, "docs/extend.md", RecipeError)
    assert validate(Recipe, recipe.model_dump(mode="json"), "again", RecipeError) == recipe
