"""What the commands show that start nothing: recipes, hardware, an artifact's lineage, a store's speed."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flows.preparation import RECIPES
from sppo.difference import flattened, recipe_differences
from sppo.hardware import Hardware
from sppo.lineage import Origin, outside_sources, recipe_values
from sppo.recipe import Recipe, load_recipe, recipe_names
from sppo.stages import STAGES, plan_fingerprints
from sppo.store.speed import StoreSpeed

SHOWN_DIGITS = 12
SHOWN_COUNTS = 3


def recipe_list() -> RenderableType:
    """Each known recipe, with its policy and judge."""
    table = _table("recipe", "policy", "judge", "iterations", "eta")
    for name in recipe_names(RECIPES):
        recipe = load_recipe(name, RECIPES)
        policy = getattr(recipe.policy.source, "model", recipe.policy.source.kind)
        judge = f"{recipe.judge.kind}"
        table.add_row(name, policy, judge, str(recipe.iterations), f"{recipe.training.eta:g}")
    return table


def recipe_table(recipe: Recipe) -> RenderableType:
    """Every value of a recipe, grouped as in its file."""
    table = _table("", "value")
    for group, value in recipe.model_dump(mode="json").items():
        values = flattened(value)
        if list(values) == [""]:
            table.add_row(Text(group, "bold"), _value(value))
            continue
        table.add_row(Text(group, "bold"), "")
        for path, inner in values.items():
            table.add_row(f"  {path}", _value(inner))
    return _titled(f"recipe {recipe.name}: what will be computed", table)


def stage_plan(recipe: Recipe) -> RenderableType:
    """The fingerprint each stage has before anything has run, and what it reads."""
    table = _table("stage", "plan", "after", "reads")
    for name, fingerprint in plan_fingerprints(recipe).items():
        stage = STAGES[name]
        table.add_row(name, fingerprint[:SHOWN_DIGITS], " ".join(stage.after), " ".join(stage.reads))
    return _titled("stages: equal plans compute the same", table)


def recipe_difference(one: Recipe, other: Recipe) -> RenderableType:
    """What differs between two recipes."""
    table = _table("value", one.name, other.name)
    for path, (before, after) in recipe_differences(one, other).items():
        if path != "name":
            table.add_row(path, _value(before), _value(after))
    return _titled("what differs", table)


def recomputed_stages(one: Recipe, other: Recipe) -> RenderableType:
    """Which stages the difference makes new, and which are shared."""
    before, after = plan_fingerprints(one), plan_fingerprints(other)
    changed = [stage for stage in before if before[stage] != after[stage]]
    shared = [stage for stage in before if before[stage] == after[stage]]
    return Text(f"recomputed  {' '.join(changed) or 'nothing'}\nshared      {' '.join(shared) or 'nothing'}")


def hardware_values(hardware: Hardware) -> RenderableType:
    """Every value of a hardware file."""
    table = _table("", "value")
    for path, value in flattened(hardware.model_dump(mode="json")).items():
        table.add_row(path, _value(value))
    return _titled(f"hardware {hardware.name}: where it runs; changes no result and no fingerprint", table)


def lineage_tree(origin: Origin, with_recipe: bool = False) -> RenderableType:
    """An artifact and all that it was made from; what several were made from is shown once."""
    tree = Tree(_origin_words("", origin, with_recipe), guide_style="dim")
    _grow(tree, origin, {origin.reference}, with_recipe)
    return tree


def _grow(tree: Tree, origin: Origin, shown: set[str], with_recipe: bool) -> None:
    for role, source in origin.made_from.items():
        if source.reference in shown and not source.outside:
            tree.add(Text.assemble((f"{role} ", "dim"), _short(source.reference), (" (shown above)", "dim")))
            continue
        shown.add(source.reference)
        _grow(tree.add(_origin_words(role, source, with_recipe)), source, shown, with_recipe)
    if origin.manifest is not None:
        for path, words in outside_sources(origin.manifest).items():
            tree.add(Text.assemble((f"{path} ", "dim"), words))


def _origin_words(role: str, origin: Origin, with_recipe: bool) -> Text:
    head = Text.assemble((f"{role} " if role else "", "dim"), (_short(origin.reference), "bold"))
    if origin.outside:
        return head
    manifest = origin.manifest
    if manifest is None:
        return Text.assemble(head, ("  not in the store any more", "red"))
    counts = "".join(f", {count} {name}" for name, count in list(manifest.counts.items())[:SHOWN_COUNTS])
    said = f"  {manifest.created[:19].replace('T', ' ')} UTC, {manifest.seconds:.1f} s, sppo {manifest.code_version}{counts}"
    values = [f"\n  {path} = {value}" for path, value in recipe_values(manifest).items()] if with_recipe else []
    return Text.assemble(head, said, ("".join(values), "dim"))


def _short(reference: str) -> str:
    stage, slash, fingerprint = reference.partition("/")
    return f"{stage}{slash}{fingerprint[:SHOWN_DIGITS]}"


def speed_table(url: str, speed: StoreSpeed) -> RenderableType:
    """What a store was measured at."""
    load = speed.load
    small = f"{load.small_files} files of {load.small_bytes / 1e3:.0f} kB"
    table = _table("", "rate", "of")
    for name, rate, of in (
        ("large file up", f"{speed.large_put_mb_s:.0f} MB/s", f"{load.large_bytes / 1e6:.0f} MB"),
        ("large file down", f"{speed.large_get_mb_s:.0f} MB/s", f"{load.large_bytes / 1e6:.0f} MB"),
        ("small files up", f"{speed.small_put_files_s:.0f} files/s", small),
        ("small files down", f"{speed.small_get_files_s:.0f} files/s", small),
        ("records created", f"{speed.creates_s:.0f} /s", f"{load.records}, one after the other"),
        ("objects looked up", f"{speed.lookups_s:.0f} /s", f"{load.lookups}, many at a time"),
        ("opened, checked", f"{speed.preflight_s:.2f} s", "that it is writable and creates once"),
    ):
        table.add_row(name, rate, of)
    return _titled(f"store {url}: every byte hashed on the way", table)


def _value(value: object) -> Text:
    if isinstance(value, list):
        return Text(" ".join(str(each) for each in value) or "-")
    if isinstance(value, bool):
        return Text("true" if value else "false")
    return Text("-" if value is None else str(value))


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(title, "bold"), table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table
