"""A model card's text: the published card's front matter to the letter, and a body that runs nothing and hides nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from sppo.card import Card, Comparison, Comparisons, Dataset, LeftOut, Metadata, Metric, Score, Scores, Source, render
from sppo.card.contents import File, Made, Portion, Trained
from sppo.card.front_matter import front_matter
from sppo.card.leaderboard import measured, published
from sppo.card.limits import limits
from sppo.card.rendering import body, cell, iteration_table
from sppo.card.scores import merged, parse_scores
from sppo.card.shown import public_values
from sppo.checks import CheckReport
from sppo.checks.report import DivergenceChecks, DuelChecks, JudgeChecks
from sppo.errors import CardError
from sppo.gates import Decision, Verdict
from sppo.markdown import escaped
from sppo.portuguese.tasks import TASKS
from sppo.recipe import Recipe, load_recipe, overridden
from sppo.report import IterationReport, JudgeReport, RunReport, WinRate, table_head, table_rows
from sppo.statistics import Interval

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT.parent / "shared" / "data" / "open_pt_llm_leaderboard.json"
ITER2 = "UCLA-AGI/Gemma-2-9B-It-SPPO-Iter2"
LEADERBOARD = "https://huggingface.co/spaces/eduagarcia/open_pt_llm_leaderboard?query=UCLA-AGI/Gemma-2-9B-It-SPPO-Iter2"
PUBLISHED = """
language:
- en
license: gemma
datasets:
- openbmb/UltraFeedback
pipeline_tag: text-generation
model-index:
- name: Gemma-2-9B-It-SPPO-Iter2
"""
ENTRIES = [
    ("ENEM Challenge (No Images)", "eduagarcia/enem_challenge", "train", 3, "acc", "accuracy", 73.69),
    ("BLUEX (No Images)", "eduagarcia-temp/BLUEX_without_images", "train", 3, "acc", "accuracy", 63.0),
    ("OAB Exams", "eduagarcia/oab_exams", "train", 3, "acc", "accuracy", 53.12),
    ("Assin2 RTE", "assin2", "test", 15, "f1_macro", "f1-macro", 94.07),
    ("Assin2 STS", "eduagarcia/portuguese_benchmark", "test", 15, "pearson", "pearson", 78.28),
    # the values of the last four are placeholders: no copy of the card that could be read goes so far
    ("FaQuAD NLI", "ruanchaves/faquad-nli", "test", 15, "f1_macro", "f1-macro", 50.06),
    ("HateBR Binary", "ruanchaves/hatebr", "test", 25, "f1_macro", "f1-macro", 50.07),
    ("PT Hate Speech Binary", "hate_speech_portuguese", "test", 25, "f1_macro", "f1-macro", 50.08),
    ("tweetSentBR", "eduagarcia/tweetsentbr_fewshot", "test", 25, "f1_macro", "f1-macro", 50.09),
]
"""Of the published card, by hand: dataset's name and type, split, shots, the metric's type and name, value in percent."""


def published_card() -> dict[str, Any]:
    """The front matter of the published card, revision 34bbd8c."""
    values: dict[str, Any] = yaml.safe_load(PUBLISHED)
    values["model-index"][0]["results"] = [
        {
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"name": name, "type": kind, "split": split, "args": {"num_few_shot": shots}},
            "metrics": [{"type": metric, "value": value, "name": metric_name}],
            "source": {"url": LEADERBOARD, "name": "Open Portuguese LLM Leaderboard"},
        }
        for name, kind, split, shots, metric, metric_name, value in ENTRIES
    ]
    return values


def between(value: float) -> Interval:
    return Interval(value, value - 0.01, value + 0.01, 96)


def test_a_card_says_what_changed_in_the_answers_and_what_the_gates_said(card: Card) -> None:
    policies = ({"characters": between(80), "loops": between(0.02)}, {"characters": between(99), "loops": between(0.07)})
    duel = DuelChecks(against=0, win_rate=between(0.7), equal_length=between(0.64), matched=0.5)
    found = CheckReport(
        iteration=1,
        policies=policies,
        judges=(JudgeChecks(judge="pairrm", independent=False, against=(duel,)),),
        matrices={},
        divergences=(
            DivergenceChecks(
                source=0,
                log_ratio=between(1.5),
                log_ratio_error=0.1,
                low_variance=between(1.4),
                low_variance_error=0.1,
                per_token=between(0.1),
            ),
        ),
    )
    decision = Decision(
        gate="loops", passed=False, numbers={}, bound=0.01, p_value=0.001, reason="loops: 7.0 %, past the bound of <b>1</b> %"
    )
    verdict = Verdict(iteration=1, level=0.05, decisions=(decision,))
    first, second = card.report.iterations
    gated = replace(card.report, iterations=(replace(first, gates="passed"), replace(second, gates="overruled")))
    text = body(replace(card, checks=found, verdict=verdict, report=gated))
    assert "| held-out answers | base policy | iteration 1 |\n" in text
    assert "| end in a loop | 2.0 % [1.0, 3.0] | 7.0 % [6.0, 8.0] |\n" in text
    assert "| won against the one before at equal length, pairrm |  | 64.0 % [63.0, 65.0] |\n" in text
    assert "| KL divergence from the base policy, nats an answer |  | 1.50 [1.49, 1.51] |\n" in text
    assert "They were overruled.\n" in text
    assert "| loops | failed | loops: 7.0 %, past the bound of &#60;b&#62;1&#60;/b&#62; % |\n" in text
    assert "not corrected for length" not in text
    rows = iteration_table(replace(card, report=gated)).splitlines()
    assert [row.split(" | ")[-1] for row in (rows[0], *rows[3:])] == ["gates |", "passed |", "overruled |"]


def win(mean: float) -> WinRate:
    return WinRate(mean, mean - 0.03, mean + 0.03, 96)


def report() -> RunReport:
    first = (JudgeReport("pairrm", False, (win(0.6),)), JudgeReport("world-rule", True, (win(0.58),)))
    second = (JudgeReport("pairrm", False, (win(0.7), win(0.61))), JudgeReport("world-rule", True, (win(0.65), win(0.55))))
    iterations = (IterationReport(1, first, 12.5, 0.0, {}), IterationReport(2, second, 13.0, 0.0, {}))
    return RunReport("demo", "tiny", 10.0, iterations, ())


@pytest.fixture
def card(tiny: Recipe) -> Card:
    made = Made("train/" + "a" * 64, "b" * 64, ("policy policy/cccccccc",), "", "0.1.0", "2026-01-02T03:04:05+00:00")
    return Card(
        name="demo-iteration-2",
        repo=None,
        run="demo",
        iteration=2,
        recipe=tiny,
        metadata=Metadata(),
        report=report(),
        report_json="{}\n",
        mean_tokens=(Interval(10.0, 9.5, 10.5, 96), Interval(12.5, 12.0, 13.0, 96), Interval(13.0, 12.4, 13.6, 96)),
        scores=Scores(scores=()),
        checks=None,
        verdict=None,
        comparisons=Comparisons(),
        portions=(Portion("iteration 1", 256, "1" * 64), Portion("held out", 96, "0" * 64)),
        source_digests={},
        judge_digest="d" * 64,
        trained=(Trained(1, 256, 512, 43872, 48), Trained(2, 256, 512, 45711, 48)),
        hardware="cpu",
        versions={"sppo": "0.1.0"},
        weights=made,
        files=(File("model.safetensors", 4484048, "e" * 64),),
        lineage=(made,),
    )


def by_name(name: str) -> str:
    return next(task.name for task in TASKS.values() if task.card_name == name)


def with_scores(card: Card, *scores: Score, **more: Any) -> Card:
    return replace(card, scores=Scores(scores=scores, **more))


# front matter


def test_given_the_published_scores_the_front_matter_is_the_published_one(card: Card) -> None:
    scores = [published(TASKS[by_name(entry[0])], 2, entry[-1], ITER2) for entry in ENTRIES]
    metadata = Metadata("gemma", "google/gemma-2-9b-it", ("openbmb/UltraFeedback",), ("en",))
    ours = front_matter(with_scores(replace(card, name="Gemma-2-9B-It-SPPO-Iter2", repo=ITER2, metadata=metadata), *scores))
    more = {"base_model": "google/gemma-2-9b-it", "library_name": "transformers", "tags": ["sppo"]}
    assert yaml.safe_load(ours.to_yaml()) == published_card() | more


def test_the_published_entries_are_those_of_the_facts() -> None:
    if not FACTS.exists():
        pytest.skip("the facts are not beside the project")
    facts = json.loads(FACTS.read_text(encoding="utf-8"))["tasks"].values()
    told = [(t["card_name"], t["card_dataset_type"], t["split"], t["num_fewshot"], t["metric"]) for t in facts]
    assert told == [entry[:5] for entry in ENTRIES]


def test_the_published_entries_are_nine_for_huggingface_hub_too() -> None:
    whole = ModelCardData(**published_card())
    assert len(whole.eval_results or []) == 9
    assert whole.to_dict()["model-index"] == published_card()["model-index"]


def test_a_score_of_our_own_names_our_own_file_as_its_source(card: Card) -> None:
    # 0.7369 of 1427 questions, by our own evaluation: 73.69 %, and no word of the leaderboard
    score = measured(TASKS[by_name("OAB Exams")], 2, Interval(0.736932, 0.71, 0.76, 1427), "f" * 64)
    [entry] = front_matter(with_scores(replace(card, repo="me/mine"), score)).to_dict()["model-index"][0]["results"]
    assert entry["metrics"] == [{"type": "acc", "value": 73.69, "name": "accuracy"}]
    url = "https://huggingface.co/me/mine/blob/main/evaluation/scores.json"
    assert entry["source"] == {"url": url, "name": "evaluation of this run"}
    assert "source" not in front_matter(with_scores(card, score)).to_dict()["model-index"][0]["results"][0]


def test_only_benchmark_scores_of_the_cards_own_policy_are_indexed(card: Card) -> None:
    rate = Score.measured(2, "AlpacaEval 2", "win rate", Interval(44.6, 41.0, 48.0, 805), unit="%")
    task = TASKS[by_name("OAB Exams")]
    scores = [rate, *(measured(task, policy, Interval(0.5, 0.4, 0.6, 100)) for policy in range(3))]
    assert len(front_matter(with_scores(card, *scores)).eval_results or []) == 1
    assert "model-index" not in front_matter(with_scores(card, rate)).to_dict()


def benchmark(name: str, metric: str = "acc", config: str | None = None, source: str | None = None) -> Score:
    return Score(
        policy=2,
        group="g",
        name=f"{name} {metric}",
        value=50.0,
        low=40.0,
        high=60.0,
        n=10,
        dataset=Dataset(name=name, type="owner/rows", split="test", config=config),
        metric=Metric(type=metric, name=metric),
        source=Source(name=source, url="https://example.org") if source else None,
    )


def test_huggingface_hub_merges_what_we_refuse(card: Card) -> None:
    results = [EvalResult("t", "owner/rows", name, "acc", 50.0, dataset_split="test") for name in ("one", "two")]
    assert len(eval_results_to_model_index("m", results)[0]["results"]) == 1  # so `two` would be called `one`
    with pytest.raises(ValueError, match=r"g, one acc and g, two acc have dataset type 'owner/rows' .* give one of them"):
        Scores(scores=(benchmark("one"), benchmark("two")))
    with pytest.raises(ValueError, match="readers would merge them"):
        Scores(scores=(benchmark("one"), benchmark("one", "f1", source="a leaderboard")))
    Scores(scores=(benchmark("one"), benchmark("two", config="two")))  # a config of its own keeps it apart
    both = with_scores(card, benchmark("one"), benchmark("one", "f1"))
    [entry] = front_matter(both).to_dict()["model-index"][0]["results"]
    assert [metric["type"] for metric in entry["metrics"]] == ["acc", "f1"]  # two metrics of one task belong together


def test_the_whole_card_passes_through_huggingface_hub_unchanged(card: Card, tmp_path: Path) -> None:
    whole = with_scores(card, benchmark("a\n---\n# b: [c]"), notes={"g": {"judge": "x"}})
    text = render(replace(whole, metadata=Metadata("gemma", "google/gemma-2-9b-it", ("a/b",), ("en", "pt"))))
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.content == text
    front = yaml.safe_load(text.split("\n---\n\n<!--")[0].removeprefix("---\n"))
    assert loaded.data.to_dict() == front == ModelCardData(**front).to_dict()
    assert front["base_model"] == "google/gemma-2-9b-it"


# body


def test_the_iteration_table_says_what_the_runs_report_says_with_intervals_and_n(card: Card) -> None:
    lines = [line.strip("| ").split(" | ") for line in iteration_table(card).splitlines()]
    assert lines[0] == table_head(report())
    assert lines[3] == [
        "1",
        "0.600 [0.570, 0.630], n = 96",
        "0.600 [0.570, 0.630], n = 96",
        "0.580 [0.550, 0.610], n = 96",
        "12.5 [12.0, 13.0], n = 96",
    ]
    for ours, theirs in zip(iteration_table(card).splitlines()[2:], table_rows(report()), strict=True):
        cells = [each.strip() for each in ours.strip("|").split("|")]
        assert all(cell.startswith(told) for cell, told in zip(cells, theirs, strict=True))


def test_scores_that_are_no_benchmarks_are_columns_where_they_were_measured(card: Card) -> None:
    scores = [
        Score.measured(0, "AlpacaEval 2", "length-controlled win rate", Interval(45.08, 42.4, 47.9, 805), unit="%"),
        Score.measured(2, "AlpacaEval 2", "length-controlled win rate", Interval(50.93, 48.1, 53.7, 805), unit="%"),
        Score.measured(2, "AlpacaEval 2", "characters", Interval(1759.2, 1700.0, 1820.0, 805), decimals=0),
    ]
    head, _, base, one, two = iteration_table(with_scores(card, *scores)).splitlines()
    assert head.endswith("| AlpacaEval 2, length-controlled win rate | AlpacaEval 2, characters |")
    assert base.endswith("| 45.08 % [42.40, 47.90], n = 805 |  |")
    assert one.endswith("n = 96 |  |  |")
    assert two.endswith("| 50.93 % [48.10, 53.70], n = 805 | 1759 [1700, 1820], n = 805 |")


def test_notes_of_anything_but_a_benchmark_stand_below_the_iterations(card: Card) -> None:
    text = body(replace(card, scores=Scores(scores=(), notes={"Gates": {"judge_alone": "passed", "overridden": "no"}})))
    below = text.partition("## Iterations")[2].partition("## Training")[0]
    assert "Gates:\n\n|  |  |\n| --- | --- |\n| judge alone | passed |\n| overridden | no |\n" in below


def test_benchmarks_are_rows_with_a_column_a_policy_and_how_they_were_measured(card: Card) -> None:
    task = TASKS[by_name("Assin2 STS")]
    scores = [measured(task, policy, Interval(0.7 + policy / 100, 0.6, 0.8, 2448), "f" * 64) for policy in (0, 2)]
    text = body(with_scores(card, *scores, notes={"Open Portuguese LLM Leaderboard": {"new_tokens": "32"}}))
    assert "### Open Portuguese LLM Leaderboard\n\n|  | metric | base | iteration 2 | rows, sha256 |\n" in text
    row = "| Assin2 STS | pearson | 70.00 % [60.00, 80.00], n = 2448 | 72.00 % [60.00, 80.00], n = 2448 | " + "f" * 64
    assert row in text
    assert "| new tokens | 32 |" in text


def test_a_published_score_says_that_its_interval_was_not(card: Card) -> None:
    score = published(TASKS[by_name("OAB Exams")], 2, 53.12, ITER2)
    assert cell(score) == "53.12 %, as published without interval and n"
    assert any("Copied as published, and not measured here" in line for line in limits(with_scores(card, score)))


def test_every_value_of_the_recipe_that_trains_is_there(card: Card) -> None:
    gemma = load_recipe("gemma-2-9b-it", ROOT / "deployments" / "recipes")
    text = body(replace(card, recipe=gemma, report=_judged_by(report(), "pairrm")))
    for row in (
        "| training.eta | 1000.0 |",
        "| beta = 1 / eta | 0.001 |",
        "| training.learning rate | 5e-07 |",
        "| training.global batch | 64 |",
        "| training.stop epochs | 1 |",
        "| policy.stop tokens | &#60;end&#95;of&#95;turn&#62; |",
        "| estimator.rule | pairwise |",
        "| generation.top p | 0.9 |",
        "| evaluation.sampling.max tokens | 2048 |",
        "| judge.source.model | llm-blender/PairRM |",
        "| prompts.source.dataset | snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset |",
        "| prompts.source.revision | main |",
        f"| iteration 1 | 256 | {'1' * 64} |",
        "| 2 | 256 | 512 | 45,711 | 48 |",
        f"| model.safetensors | 4,484,048 | {'e' * 64} |",
        f"| train/{'a' * 64} | {'b' * 64} | policy policy/cccccccc |",
    ):
        assert row in text, row


def _judged_by(whole: RunReport, *names: str) -> RunReport:
    iterations = [replace(each, judges=tuple(j for j in each.judges if j.judge in names)) for each in whole.iterations]
    return replace(whole, iterations=tuple(iterations))


NASTY = "<script>alert(1)</script> [x](javascript:alert(1)) ![p](http://t.example/x.png) | `c` **b** # h\n\n- l \u202e"


def test_no_text_of_others_is_left_for_a_browser_to_run(card: Card) -> None:
    judges = tuple(
        replace(each, judges=(replace(each.judges[0], judge=NASTY), *each.judges[1:])) for each in card.report.iterations
    )
    task = {"dataset": Dataset(name=NASTY, type=NASTY), "metric": Metric(type=NASTY, name=NASTY)}
    scores = [
        Score(policy=2, group=NASTY, name="a" + NASTY, value=1, low=0, high=2, n=3, unit=NASTY),
        Score(policy=2, group=NASTY, name=NASTY, value=1, low=0, high=2, n=3, **task),
    ]
    whole = with_scores(card, *scores, notes={NASTY: {NASTY: NASTY}}, versions={NASTY: NASTY})
    whole = replace(
        whole,
        name=NASTY,
        report=replace(card.report, iterations=judges),
        metadata=Metadata(NASTY, NASTY, (NASTY,), (NASTY,)),
        files=(File(NASTY, 1, "e" * 64),),
        lineage=(replace(card.weights, made_from=(NASTY,), source=NASTY),),
        hardware=NASTY,
        versions={NASTY: NASTY},
        comparisons=Comparisons(
            comparisons=(Comparison.of((2, 0, NASTY, "a"), Interval(1, 0, 2, 3), 0.5, unit=NASTY),),
            left_out=(LeftOut(against=0, what=NASTY, why=NASTY),),
        ),
    )
    text = body(whole)
    assert escaped(NASTY, 400) in text
    for live in ("<script", "](javascript", "![", "http://t.example", "\u202e", "**b**", "\n- l"):
        assert live not in text, live
    ours = {"<!--", "[arXiv:2405.00675](https://arxiv.org/abs/2405.00675)"}
    assert re.findall(r"<(?!br>|wbr>)\S*|\[[^]]*\]\([^)]*\)", text) == sorted(ours)
    assert render(whole).startswith("---\nbase_model: ")
    assert ModelCard(render(whole)).text.lstrip("\n") == text


def test_a_card_tells_no_path_server_or_key_of_who_ran_it(tiny: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "secret place" / "judge"
    served = {"kind": "endpoint", "model": "big", "source": {"url": "http://inner.host/v1", "api_key_env": "MY_KEY"}}
    changed = overridden(tiny, (f"judge={json.dumps(served)}", f"policy.source={{kind: folder, path: '{path}'}}"))
    values = public_values(changed.model_dump(mode="json"))
    assert values["judge.model"] == "big"
    assert values["policy.source.path"] == "judge"
    told = "\n".join(values.values())
    assert not any(secret in told for secret in ("secret place", "inner.host", "MY_KEY"))


def test_what_the_numbers_do_not_show_is_said_of_this_card(card: Card) -> None:
    lines = list(limits(card))
    assert lines[0].startswith("pairrm is the judge that training followed")
    assert "Not followed by training: world-rule." in lines[1]
    assert any("the mean went from 10.0 to 13.0 tokens" in line for line in lines)
    assert any(line.startswith("No benchmark was run on this policy") for line in lines)
    controlled = Score.measured(2, "AlpacaEval 2", "length-controlled win rate", Interval(50, 48, 52, 805))
    assert not any("not corrected for length" in line for line in limits(with_scores(card, controlled)))
    assert not any("No benchmark" in line for line in limits(with_scores(card, controlled)))


# scores


def test_scores_are_read_as_they_were_written() -> None:
    scores = Scores(
        scores=(measured(TASKS[by_name("OAB Exams")], 1, Interval(0.5, 0.4, 0.6, 2195), "f" * 64), benchmark("one")),
        notes={"g": {"judge": "x"}},
        versions={"lm-eval": "0.4.13"},
    )
    assert parse_scores(scores.to_json(), "scores.json") == scores


def test_of_two_evaluations_the_later_ones_score_counts() -> None:
    first = Scores(scores=(benchmark("one"),), notes={"g": {"judge": "old"}})
    again = benchmark("one").model_copy(update={"value": 51.0})
    later = Scores(scores=(again,), notes={"g": {"judge": "new"}})
    assert merged([first, later]) == Scores(scores=(again,), notes={"g": {"judge": "new"}})


GOOD = {"policy": 1, "group": "g", "name": "s", "value": 1.0, "low": 0.5, "high": 1.5, "n": 4}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n": None}, r"x: scores\.0: g, s: low, high and n are \(0\.5, 1\.5, None\); expected all three"),
        ({"low": None, "high": None, "n": None}, "or none of them and a source that published the value"),
        ({"low": 2.0}, r"the interval goes from 2 to 1\.5; swap them"),
        ({"dataset": {"name": "a", "type": "b"}}, "a dataset and a metric go together"),
        ({"value": "NaN"}, r"value.* is 'NaN'"),
        ({"meaning": 42}, r"unknown key 'scores\.0\.meaning'"),
        ({"source": {"name": "a", "url": "javascript:alert(1)"}}, r"source\.url is 'javascript:alert\(1\)'"),
    ],
    ids=str,
)
def test_a_score_that_says_too_little_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    row = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(CardError, match=told):
        parse_scores(json.dumps({"scores": [row]}), "x")


@pytest.mark.parametrize(
    ("content", "told"), [("[]", "x holds a list; expected an object"), ("{", "x is not JSON: "), ("{}", "'scores' is missing")]
)
def test_a_file_that_holds_no_scores_is_refused(content: str, told: str) -> None:
    with pytest.raises(CardError, match=told):
        parse_scores(content, "x")


def test_a_score_stands_once() -> None:
    with pytest.raises(CardError, match="pi_1 has g, s twice"):
        parse_scores(json.dumps({"scores": [GOOD, GOOD]}), "x")
