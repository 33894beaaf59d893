"""A card as Markdown: front matter, then numbers with interval and n, and no text that a reader's browser would run.

Everything that a person or a model could have written goes through `escaped`; the only live links are our own words.
"""

from collections.abc import Iterable, Mapping, Sequence

from sppo.card.comparisons import Comparison
from sppo.card.contents import Card, Made
from sppo.card.front_matter import COMPARISONS_PATH, SCORES_PATH, front_matter
from sppo.card.limits import limits
from sppo.card.scores import Score
from sppo.card.shown import public_values
from sppo.check_tables import GATE_HEAD, check_head, check_rows, gate_rows
from sppo.markdown import escaped, table
from sppo.report import WinRate, table_head

LETTERS = 400
"""Of a value that are shown."""
MARK = "<!-- written by sppo card -->"
"""Tells a card of ours from a README that someone wrote."""
PAPER = "[arXiv:2405.00675](https://arxiv.org/abs/2405.00675)"


def render(card: Card) -> str:
    """README.md: front matter and body. A pure function of the card."""
    return f"---\n{front_matter(card).to_yaml()}\n---\n\n{body(card)}"


def body(card: Card) -> str:
    """The whole card but its front matter."""
    sections = {
        "Iterations": iteration_table(card) + "\n" + _said_of_iterations(card),
        "Checks": check_tables(card),
        "Benchmarks": benchmark_tables(card),
        "Changes since earlier policies": comparison_table(card),
        "Training": _training(card),
        "Prompts": _prompts(card),
        "Judge": _judges(card),
        "Decoding": _decoding(card),
        "Versions": _pairs({**card.versions, **card.scores.versions}),
        "Lineage": _lineage(card),
        "Files": table(["file", "bytes", "sha256"], [[escaped(f.name, 200), f"{f.size:,}", f.sha256] for f in card.files]),
        "What these numbers do not show": "".join(f"- {_text(line)}\n" for line in limits(card)),
    }
    parts = [f"{MARK}\n", f"# {_text(card.name)}\n", _opening(card)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n".join(parts)


def iteration_table(card: Card) -> str:
    """One row a policy, the base policy first: the columns of the run's own report, then the scores that are no benchmark's."""
    columns = list(dict.fromkeys((score.group, score.name) for score in card.scores.scores if score.dataset is None))
    head = [*table_head(card.report), *(f"{group}, {name}" for group, name in columns)]
    by_place = {(score.policy, score.group, score.name): score for score in card.scores.scores}
    rows = []
    gated = any(each.gates for each in card.report.iterations)
    gates = [[each] * gated for each in ("", *(each.gates for each in card.report.iterations))]
    for policy, rates in enumerate(_rates(card)):
        tokens = card.mean_tokens[policy]
        more = [cell(by_place.get((policy, *column))) for column in columns]
        name = str(policy) if policy else "0 (base)"
        length = f"{tokens.value:.1f} [{tokens.low:.1f}, {tokens.high:.1f}], n = {tokens.n}"
        rows.append([name, *rates, length, *gates[policy], *more])
    return table([_text(name) for name in head], rows)


def _rates(card: Card) -> list[list[str]]:
    """Win rates by policy: against base and previous under the judge, against base under each independent one."""
    rows = [[""] * (1 + len(card.report.iterations[-1].judges))]
    for each in card.report.iterations:
        main, *independent = each.judges
        rows.append([_rate(main.against[0]), _rate(main.against[-1]), *(_rate(judge.against[0]) for judge in independent)])
    return rows


def _rate(rate: WinRate) -> str:
    return f"{rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}], n = {rate.prompts}"


def cell(score: Score | None) -> str:
    """A score with its interval and n; empty for one that was not measured."""
    if score is None:
        return ""
    value = f"{score.value:.{score.decimals}f}{' ' * bool(score.unit)}{_text(score.unit)}"
    if score.low is None or score.high is None:
        return f"{value}, as published without interval and n"
    return f"{value} [{score.low:.{score.decimals}f}, {score.high:.{score.decimals}f}], n = {score.n}"


def check_tables(card: Card) -> str:
    """What changed in the held-out answers, and what the gates said of it."""
    if card.checks is None:
        return ""
    n = card.checks.policies[-1]["characters"].n
    said = f"Of {n} held-out prompts, 95 % intervals over prompts.\n"
    gates = ""
    if card.verdict is not None:
        overruled = "They were overruled.\n\n" if card.report.iterations[-1].gates == "overruled" else ""
        found = table(GATE_HEAD, _cells(gate_rows(card.verdict)))
        gates = f"\nThe gates that it had to pass before another iteration:\n\n{overruled}{found}"
    rows = [[_text(words), *numbers] for words, *numbers in check_rows(card.checks)]
    return f"{said}\n{table(check_head(card.checks), rows)}{gates}"


def _cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[_text(cell) for cell in row] for row in rows]


def benchmark_tables(card: Card) -> str:
    """A table for each group of benchmark scores: one row a task, one column a policy; below it how it was measured."""
    found = [score for score in card.scores.scores if score.dataset is not None]
    return "\n".join(_benchmark(card, group, found) for group in dict.fromkeys(score.group for score in found))


def _benchmark(card: Card, group: str, found: Sequence[Score]) -> str:
    scores = {(score.name, score.policy): score for score in found if score.group == group}
    policies = sorted({policy for _, policy in scores})
    head = ["", "metric", *(_policy(policy) for policy in policies), "rows, sha256"]
    rows = []
    for name in dict.fromkeys(name for name, _ in scores):
        own = [scores.get((name, policy)) for policy in policies]
        one = next(score for score in own if score)
        digest = one.dataset.sha256 if one.dataset and one.dataset.sha256 else ""
        rows.append([_text(name), _text(one.metric.name if one.metric else ""), *(cell(score) for score in own), digest])
    notes = card.scores.notes.get(group, {})
    return f"### {_text(group)}\n\n{table(head, rows)}{_after(notes)}{_published(scores.values())}"


def comparison_table(card: Card) -> str:
    """One row a score of this policy and an earlier policy, both on the same questions; what could not be compared below."""
    found = card.comparisons.comparisons
    left_out = "".join(
        f"\nNot compared with {_policy(each.against)}: {_text(each.what)}, {_text(each.why)}.\n"
        for each in card.comparisons.left_out
    )
    if not found:
        return left_out.lstrip()
    head = ["", "since", "difference", "test", "p", "p, adjusted"]
    said = (
        "This policy less the earlier one, on the questions that both answered. p is the chance of a difference as large if "
        f"there were none; adjusted by Holm for being one of the {len(found)} in this table: where that is above 0.05, chance "
        f"alone may explain what is seen. The numbers themselves: `{COMPARISONS_PATH}`.\n"
    )
    return f"{said}\n{table(head, [_comparison_cells(each) for each in found])}{left_out}"


def _comparison_cells(one: Comparison) -> list[str]:
    unit = f" {_text(one.unit)}" if one.unit else ""
    difference, low, high = (f"{value:+.{one.decimals}f}" for value in (one.difference, one.low, one.high))
    sides = "" if one.only_policy is None else f", {one.only_policy} gained and {one.only_against} lost"
    return [
        _text(f"{one.group}, {one.name}"),
        _policy(one.against),
        f"{difference}{unit} [{low}, {high}], n = {one.n}",
        _text(one.test) + sides,
        f"{one.p:.2g}",
        f"{one.adjusted_p:.2g}",
    ]


def _policy(number: int) -> str:
    return f"iteration {number}" if number else "base"


def _published(scores: Iterable[Score]) -> str:
    sources = {score.source.name: score.source.url for score in scores if score.source}
    return "".join(f"\nPublished by {_text(name)}: {_text(url)}\n" for name, url in sources.items())


def _after(notes: Mapping[str, str]) -> str:
    return f"\n{_pairs(notes)}" if notes else ""


def _opening(card: Card) -> str:
    base = card.metadata.base_model or "its base policy"
    said = (
        f"Iteration {card.iteration} of Self-Play Preference Optimization ({PAPER}) from {_text(base)}: run {_text(card.run)}, "
        f"recipe {_text(card.recipe.name)}. Every number below is read from an artifact of that run, unless it names another "
        "source; `[low, high]` is its 95 % interval, over the n prompts or questions behind it.\n"
    )
    facts = {
        "base model": card.metadata.base_model or "not on the hub",
        "license": card.metadata.license or "none was given; that of the base model applies to what is made from it",
        "prompts from": ", ".join(card.metadata.datasets) or "no dataset of the hub",
        "weights": f"{card.weights.reference}, content digest {card.weights.digest}",
    }
    return f"{said}\n{_pairs(facts)}"


def _said_of_iterations(card: Card) -> str:
    judge = card.report.iterations[-1].judges[0].judge
    said = f"Win rates on held-out prompts, in [0, 1]; 0.5 is a tie. `against previous` is judged by {_text(judge)} too.\n"
    benchmarks = {score.group for score in card.scores.scores if score.dataset is not None}
    notes = {group: values for group, values in card.scores.notes.items() if group not in benchmarks}
    measured = [f"\n{_text(group)}:\n{_after(values)}" for group, values in notes.items()]
    return said + "".join(measured) + f"\nThe numbers themselves: `evaluation/report.json`{_and_scores(card)}.\n"


def _and_scores(card: Card) -> str:
    return f" and `{SCORES_PATH}`" if card.scores.scores else ""


def _training(card: Card) -> str:
    recipe = card.recipe
    values = recipe.model_dump(mode="json", include={"training", "estimator", "selection", "seed"})
    values |= {"policy": recipe.model_dump(mode="json")["policy"]}
    shown = {path: value for path, value in public_values(values).items() if not path.startswith("policy.source")}
    shown |= {"beta = 1 / eta": f"{1 / recipe.training.eta:g}", "hardware": card.hardware or "not recorded"}
    rows = [
        [str(each.iteration), *(f"{count:,}" for count in (each.prompts, each.responses, each.tokens, each.steps))]
        for each in card.trained
    ]
    head = ["iteration", "prompts", "responses", "tokens", "steps"]
    return f"{_pairs(shown)}\nWhat each iteration has trained on:\n\n{table(head, rows)}"


def _prompts(card: Card) -> str:
    source = public_values(card.recipe.part("prompts"))
    digests = {f"sha256 of {role}": digest for role, digest in card.source_digests.items()}
    rows = [[_text(each.name), f"{each.prompts:,}", each.sha256] for each in card.portions]
    return f"{_pairs({**source, **digests})}\n{table(['portion', 'prompts', 'sha256 of its file'], rows)}"


def _judges(card: Card) -> str:
    judge = public_values(card.recipe.part("judge"))
    shown = {**judge, "weights, content digest": card.judge_digest or "it has none"}
    measured = {f"evaluation.{path}": text for path, text in public_values(_evaluation(card, "judges")).items()}
    return f"{_pairs(shown)}\nHeld-out win rates are by:\n\n{_pairs(measured)}"


def _decoding(card: Card) -> str:
    generation = public_values(card.recipe.part("generation"))
    sampling = {f"evaluation.{path}": text for path, text in public_values(_evaluation(card, "sampling")).items()}
    more = {f"evaluation.{path}": text for path, text in public_values(_evaluation(card, "max_prompts", "resamples")).items()}
    return _pairs({**generation, **sampling, **more})


def _evaluation(card: Card, *names: str) -> dict[str, object]:
    return card.recipe.evaluation.model_dump(mode="json", include=set(names))


def _lineage(card: Card) -> str:
    return table(
        ["artifact", "content digest", "made from", "source", "sppo", "created"],
        [[_text(cell) for cell in _lineage_cells(made)] for made in card.lineage],
    )


def _lineage_cells(made: Made) -> list[str]:
    return [made.reference, made.digest, ", ".join(made.made_from), made.source, made.code_version, made.created]


def _pairs(values: Mapping[str, str]) -> str:
    return table(["", ""], [[_text(name.replace("_", " ")), _text(value)] for name, value in values.items()])


def _text(value: str) -> str:
    return escaped(value, LETTERS)
