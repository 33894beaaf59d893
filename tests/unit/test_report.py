"""The numbers of a run, assembled from its index, and how they are told."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.plot import write_plot
from flows.presentation import next_commands, present, shown
from sppo.errors import RunError
from sppo.hardware import Hardware
from sppo.recipe import Recipe
from sppo.records import Prompt, Response, to_table
from sppo.report import (
    Answers,
    IterationReport,
    JudgeReport,
    RunReport,
    WinRate,
    as_markdown,
    as_text,
    assemble,
    seconds_rows,
    table_head,
    table_rows,
)
from sppo.runs import Setup, start, write_iteration
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace


def rate(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 2}


def report_json(iteration: int, means: list[float], independent: list[float], tokens: list[float]) -> str:
    judges = [
        {
            "judge": name,
            "independent": name != "pairrm",
            "against": [{"iteration": number, "win_rate": rate(mean)} for number, mean in enumerate(row)],
        }
        for name, row in (("pairrm", means), ("world-rule", independent))
    ]
    lengths = [{"iteration": number, "mean_tokens": mean, "cut_share": 0.25} for number, mean in enumerate(tokens)]
    return json.dumps({"iteration": iteration, "judges": judges, "lengths": lengths})


def artifact(store: Store, stage: str, name: str, files: dict[str, str]) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        for file, text in files.items():
            workspace.add_text(text, file)
        return Outcome(name)

    return store.build(Step(Identity(stage, 1, {"name": name}, {}), run))


def sample(store: Store, number: int) -> Artifact:
    """Answers of pi_number; only the second draw on the fox changes with the policy."""
    changed = f"on the fox, answer 1{f' of pi_{number}' * (number > 0)}"
    texts = [("fox", 0, "on the fox, answer 0"), ("fox", 1, changed), ("owl", 0, "on the owl")]
    rows = [Response(prompt_id, k, [1, 2], text, "stop", [0.0, 0.0], 0) for prompt_id, k, text in texts]

    def run(workspace: Workspace) -> Outcome:
        workspace.add_table(to_table(Response, rows), "chunk-00000.parquet")
        return Outcome("")

    return store.build(Step(Identity("sample", 1, {"policy": number}, {}), run))


def split(store: Store) -> Artifact:
    fox = Prompt("fox", [{"role": "user", "content": "Describe the fox."}], [1])
    owl = Prompt("owl", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The owl?"}], [1])

    def run(workspace: Workspace) -> Outcome:
        workspace.add_table(to_table(Prompt, [fox, owl]), "test.parquet")
        return Outcome("")

    return store.build(Step(Identity("split", 1, {}, {}), run))


@pytest.fixture
def finished(tiny: Recipe, cpu: Hardware, store: Store) -> Store:
    """A store with a run `demo` of two iterations, their numbers made up."""
    setup = Setup("demo", start(store, "demo", tiny, lambda recipe: recipe), cpu, store)
    prompts, samples = split(store), [sample(store, number) for number in range(3)]
    first = artifact(store, "evaluate", "1", {"report.json": report_json(1, [0.6], [0.58], [10.0, 12.5])})
    second = artifact(store, "evaluate", "2", {"report.json": report_json(2, [0.7, 0.61], [0.65, 0.55], [10.0, 12.5, 13.0])})
    write_iteration(setup, 1, {"split": prompts, "evaluate": first}, samples[:2], [])
    write_iteration(setup, 2, {"split": prompts, "evaluate": second}, samples, [])
    return store


def test_a_runs_report_takes_each_number_from_the_iteration_that_measured_it(finished: Store) -> None:
    report = assemble(finished, "demo")
    assert (report.run, report.recipe, report.base_mean_tokens) == ("demo", "tiny", 10.0)
    one, two = report.iterations
    assert [judge.judge for judge in two.judges] == ["pairrm", "world-rule"]
    assert [judge.independent for judge in two.judges] == [False, True]
    assert one.judges[0].against == (WinRate(0.6, 0.6 - 0.05, 0.6 + 0.05, 2),)
    assert [each.mean for each in two.judges[0].against] == [0.7, 0.61]  # against pi_0, then pi_1
    assert (one.mean_tokens, two.mean_tokens, two.cut_share) == (12.5, 13.0, 0.25)


def test_answers_of_the_first_draw_that_changed_stand_side_by_side(finished: Store) -> None:
    report = assemble(finished, "demo")
    assert report.answers == (
        Answers(
            "Describe the fox.", 1, ("on the fox, answer 1", "on the fox, answer 1 of pi_1", "on the fox, answer 1 of pi_2")
        ),
        Answers("system: Be brief.\nuser: The owl?", 0, ("on the owl", "on the owl", "on the owl")),
    )


def test_a_stages_seconds_count_once_where_its_artifact_was_first_used(finished: Store) -> None:
    one, two = assemble(finished, "demo").iterations
    assert {"split", "evaluate"} <= set(one.seconds)
    assert "split" not in two.seconds  # iteration 1 made it
    assert "evaluate" in two.seconds


def test_a_run_without_a_finished_iteration_has_no_report(tiny: Recipe, store: Store) -> None:
    start(store, "demo", tiny, lambda recipe: recipe)
    with pytest.raises(RunError, match="run demo has no iteration 1"):
        assemble(store, "demo")


def test_a_prompt_of_several_turns_is_shown_with_its_roles() -> None:
    assert as_text([{"role": "user", "content": "Hi"}]) == "Hi"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert as_text(turns) == "user: Hi\nassistant: Yes?"


def win(mean: float) -> WinRate:
    return WinRate(mean, mean - 0.03, mean + 0.03, 96)


REPORT = RunReport(
    run="demo",
    recipe="tiny",
    base_mean_tokens=10.0,
    iterations=(
        IterationReport(
            1, (JudgeReport("pairrm", False, (win(0.6),)), JudgeReport("rule", True, (win(0.58),))), 12.5, 0.0, {"train": 2.25}
        ),
        IterationReport(
            2,
            (JudgeReport("pairrm", False, (win(0.7), win(0.61))), JudgeReport("rule", True, (win(0.65), win(0.55)))),
            13.0,
            0.0,
            {"rank": 1.0, "train": 2.0},
        ),
    ),
    answers=(Answers("Say [bold]hi[/bold].", 0, ("[red]hi[/red]", "[link=https://example.org]x", "\x1b[31mred\x07")),),
)


def test_the_table_has_a_row_for_each_policy_and_a_column_for_each_independent_judge() -> None:
    head = ["iteration", "pairrm, against base", "against previous", "rule, against base", "mean tokens"]
    assert table_head(REPORT) == head
    assert table_rows(REPORT) == [
        ["0 (base)", "", "", "", "10.0"],
        ["1", "0.600 [0.570, 0.630]", "0.600", "0.580 [0.550, 0.610]", "12.5"],
        ["2", "0.700 [0.670, 0.730]", "0.610", "0.650 [0.620, 0.680]", "13.0"],
    ]
    assert seconds_rows(REPORT) == [["rank", "", "1.0"], ["train", "2.2", "2.0"]]  # 2.25 rounds to even
    assert "| 2 | 0.700 [0.670, 0.730] | 0.610 | 0.650 [0.620, 0.680] | 13.0 |\n" in as_markdown(REPORT)


def test_gates_have_a_column_where_there_are_any() -> None:
    first, second = REPORT.iterations
    gated = replace(REPORT, iterations=(replace(first, gates="overruled"), replace(second, gates="passed")))
    assert table_head(gated)[-1] == "gates"
    assert [row[-1] for row in table_rows(gated)] == ["", "overruled", "passed"]


def test_model_text_is_shown_as_text_without_markup_or_control_characters(tmp_path: Path) -> None:
    written = StringIO()
    present(Console(file=written, width=120, force_terminal=True, highlight=False), REPORT, tmp_path / "x.png", [])
    screen = written.getvalue()
    for kept in ("[bold]hi[/bold]", "[red]hi[/red]", "[link=https://example.org]x", "�[31mred�"):
        assert kept in screen
    assert "\x07" not in screen
    assert shown("a" * 500).plain == "a" * 399 + "…"


def test_two_judges_fit_into_eighty_columns(tmp_path: Path) -> None:
    written = StringIO()
    present(Console(file=written, width=80, highlight=False), REPORT, tmp_path / "x.png", [])
    assert "0.700 [0.670, 0.730]     0.610  0.650 [0.620, 0.680]    13.0" in written.getvalue()


def test_the_next_commands_can_be_typed_as_they_stand(tmp_path: Path) -> None:
    commands = next_commands(REPORT, Store(str(tmp_path / "my store")), "tiny", "cpu", ["judge={kind: world-rule}"])
    at = f"--store '{tmp_path}/my store'"
    assert commands[0] == f"sppo status demo {at}"
    assert commands[-1] == (
        f"sppo run tiny {at} --hardware cpu --run demo-all --set 'judge={{kind: world-rule}}' --set selection.responses=all"
    )


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    path = write_plot(REPORT, tmp_path / "plots" / "demo.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
