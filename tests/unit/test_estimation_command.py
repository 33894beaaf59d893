"""`sppo estimate`: what another estimator would change of a finished iteration, counted on prompts small enough to see."""

import io
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from flows.estimation import show_estimates
from sppo.branch import branch
from sppo.errors import RunError
from sppo.estimate import step
from sppo.hardware import Hardware
from sppo.last_start import remember_start
from sppo.recipe import Estimator, Recipe, load_recipe, overridden
from sppo.records import Comparison, Response, Target, to_table
from sppo.reestimate import Change, change, reestimate
from sppo.runs import Setup, read_iteration, start, write_iteration
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "deployments" / "recipes"

CYCLE = [0.0, 2.0, -0.5, -2.0, 0.0, 1.0, 0.5, -1.0, 0.0]
"""Pairwise .586 .450 .464, Bradley-Terry .711 .359 .430: the same best and worst, of another size."""
UPSET = [0.0, 1.0, 1.0, -1.0, 0.0, 9.0, -1.0, -9.0, 0.0]
"""y0 beats both by 1, y1 beats y2 by 9. Pairwise: y0 .654, y1 .590 wins; Bradley-Terry scores (4/3, 16/3, -20/3): y1 wins."""


def table_artifact(store: Store, stage: str, name: str, table: pa.Table, iteration: int) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        workspace.add_table(table, name)
        return Outcome(stage)

    return store.build(Step(Identity(stage, 1, {"iteration": iteration}, {}), run))


@pytest.fixture
def demo(tiny: Recipe, cpu: Hardware, store: Store) -> Recipe:
    """Run `demo`: two finished iterations of two prompts, with a value of its own."""
    recipe = start(store, "demo", overridden(tiny, ("generation.responses=3", "generation.engine=transformers")), lambda it: it)
    setup = Setup(run="demo", recipe=recipe, hardware=cpu, store=store)
    for iteration in (1, 2):
        ranked = to_table(Comparison, [Comparison("cycle", 3, CYCLE), Comparison("upset", 3, UPSET)])
        drawn = [Response(name, k, [k], f"{name} {k}", "stop", [0.0], 0) for name in ("cycle", "upset") for k in range(3)]
        artifacts = {
            "rank": table_artifact(store, "rank", "chunk-00000.parquet", ranked, iteration),
            "generate": table_artifact(store, "generate", "chunk-00000.parquet", to_table(Response, drawn), iteration),
            "train": table_artifact(store, "train", "x.parquet", ranked, iteration),
        }
        artifacts["estimate"] = store.build(step(recipe, artifacts["rank"], artifacts["generate"]))
        write_iteration(setup, iteration, artifacts, [], [])
    return recipe


def shown(store: Store, *rules: str, iteration: int | None = None, **options: object) -> str:
    out = io.StringIO()
    asked = {"temperature": None, "self_match": None, "side_by_side": False} | options
    show_estimates(Console(file=out, width=160, highlight=False), store, "demo", iteration, rules, **asked)  # type: ignore[arg-type]
    return out.getvalue()


def test_another_rule_is_compared_with_the_targets_that_the_run_was_trained_on(demo: Recipe, store: Store) -> None:
    asked = Estimator(rule="bradley_terry", self_match=True)
    found = reestimate(store, demo, read_iteration(store, "demo", 1), [asked])
    made = found.others[0].change
    assert (made.prompts, made.shared, made.came_in, made.fell_out) == (2, 2, 0, 0)
    assert (made.another_best, made.another_worst, made.another_pair) == (1, 0, 1)  # of `upset`
    # cycle: .710841 - .586113 = .124728. upset, sigmoid(1) = .731059, sigmoid(9) = .999877: pairwise
    # y0 (.5 + 2 * .731059) / 3 = .654039, y1 (.268941 + .5 + .999877) / 3 = .589606; Bradley-Terry: y0 - y1 = -4,
    # sigmoid(-4) = .017986, sigmoid(8) = .999665, y0 (.5 + .017986 + .999665) / 3 = .505884
    # y1 (.982014 + .5 + .999994) / 3 = .827336: the largest change, .237730
    assert made.largest == pytest.approx(0.237730, abs=1e-5)
    assert found.others[0].change.rms_before == pytest.approx(found.own.rms_after)


def test_leaving_out_the_self_match_chooses_the_same_and_asks_for_two_thirds_of_the_eta(demo: Recipe, store: Store) -> None:
    asked = Estimator(rule="pairwise", self_match=False)
    made = reestimate(store, demo, read_iteration(store, "demo", 1), [asked]).others[0].change
    assert (made.another_best, made.another_worst) == (0, 0)
    assert made.correlation == pytest.approx(1)
    assert made.comparable_eta(1000) == pytest.approx(1000 * 2 / 3)  # (K - 1) / K of K = 3


def targets(rows: list[tuple[str, int, float, str]]) -> pa.Table:
    return to_table(Target, [Target(name, k, win, role in ("best", "worst"), role) for name, k, win, role in rows])


def test_prompts_that_come_in_or_fall_out_are_counted_and_their_targets_are_not_compared() -> None:
    before = targets([("a", 0, 0.6, "best"), ("a", 1, 0.4, "worst"), ("b", 0, 0.9, "best"), ("b", 1, 0.1, "worst")])
    after = targets([("c", 0, 0.7, "best"), ("c", 1, 0.3, "worst"), ("a", 0, 0.45, "worst"), ("a", 1, 0.55, "best")])
    found = change(before, after)
    assert (found.prompts, found.came_in, found.fell_out, found.shared) == (2, 1, 1, 1)
    assert (found.another_best, found.another_worst, found.another_pair, found.responses) == (1, 1, 1, 4)
    assert (found.mean, found.rms, found.largest) == pytest.approx((0.15, 0.15, 0.15))
    assert found.correlation == pytest.approx(-1)
    assert found.rms_before == pytest.approx(math.sqrt((0.1**2 * 2 + 0.4**2 * 2) / 4))


def test_a_tie_of_all_has_no_correlation_and_no_comparable_eta() -> None:
    tied = targets([("a", 0, 0.5, "tied"), ("a", 1, 0.5, "tied")])
    found = change(targets([("a", 0, 0.6, "best"), ("a", 1, 0.4, "worst")]), tied)
    assert math.isnan(found.correlation)
    assert math.isnan(found.comparable_eta(1000))
    assert (found.prompts, found.fell_out, found.shared) == (0, 1, 0)
    assert isinstance(found, Change)


def test_without_options_every_other_rule_is_shown_beside_the_runs_own(demo: Recipe, store: Store) -> None:
    told = shown(store)
    assert "run demo, iteration 2: 2 prompts, 6 responses" in told
    assert "pairwise" in told.splitlines()[2]
    assert "bradley_terry" in told.splitlines()[2]
    assert "prob_mean" in told.splitlines()[2]
    assert "50.0 %" in told  # another best in one of two prompts


def test_what_is_asked_for_is_shown_alone(demo: Recipe, store: Store) -> None:
    told = shown(store, "bradley_terry", temperature=2.0, self_match=False)
    assert "bradley_terry, temperature 2, no self-match" in told
    assert "prob_mean" not in told
    assert "pairwise, temperature 2" in shown(store, temperature=2.0)  # the run's own rule, where none is given


def settings(line: str) -> tuple[list[str], tuple[str, ...]]:
    words = shlex.split(line.removeprefix("next"))
    return words, tuple(words[place + 1] for place, word in enumerate(words) if word == "--set")


def test_the_next_command_starts_a_run_with_the_runs_own_values_and_the_new_estimator(
    demo: Recipe, cpu: Hardware, store: Store
) -> None:
    remember_start(Setup(run="demo", recipe=demo, hardware=cpu, store=store), "8xa100", None, "a test")
    (line,) = [each for each in shown(store, "bradley_terry", iteration=1).splitlines() if each.startswith("next")]
    words, overrides = settings(line)
    assert words[1:5] == ["run", "tiny", "--run", "demo-bradley-terry"]
    assert words[words.index("--hardware") + 1] == "8xa100"
    made = load_recipe("tiny", RECIPES, overrides)
    assert made.estimator.rule == "bradley_terry"
    assert made.training.eta < demo.training.eta  # its targets are larger
    same = made.model_copy(update={"estimator": demo.estimator, "training": demo.training})
    assert same.generation.responses == 3
    assert same.model_copy(update={"generation": demo.generation}) == demo


def test_from_the_second_iteration_on_the_next_command_branches_and_can_be_given(demo: Recipe, store: Store) -> None:
    (line,) = [each for each in shown(store, "prob_mean", self_match=False).splitlines() if each.startswith("next")]
    words, overrides = settings(line)
    assert words[1:6] == ["branch", "demo", "--at", "1", "--recipe"]
    name = words[words.index("--run") + 1]
    branch(store, "demo", 1, load_recipe("tiny", RECIPES, overrides), name, lambda recipe: recipe)
    assert name == "demo-prob-mean-no-self-match"


def test_a_run_without_a_finished_iteration_says_how_to_see_how_far_it_is(tiny: Recipe, store: Store) -> None:
    start(store, "demo", tiny, lambda recipe: recipe)
    with pytest.raises(RunError, match=r"no finished iteration .*; expected one to estimate again: .* sppo status demo"):
        shown(store)


def test_the_command_answers_without_prefect_or_an_engine(demo: Recipe, store: Store) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['sppo', 'estimate', 'demo', '--store', {store.url!r}, '--compare']\n"
        "from flows.command_line import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "loaded = {'prefect', 'torch', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "eta for equal targets" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rule", "majority"], "'majority' is not one of 'pairwise'"),
        (["--temperature", "0"], "estimator: temperature is 0.0; expected more than 0"),
        (["7"], "run demo has no iteration 7"),
    ],
)
def test_bad_options_are_told_plainly(demo: Recipe, store: Store, arguments: list[str], told: str) -> None:
    command = [sys.executable, "-m", "flows.command_line", "estimate", "demo", "--store", store.url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
