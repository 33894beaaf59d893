"""What the preferences say: each number on verdicts small enough to count by hand."""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from flows.preferences import preference_table, show_preferences
from sppo import rank
from sppo.errors import JudgeError, RunError
from sppo.hardware import Hardware
from sppo.preferences import Preferences, Verdicts, drawn, preferences, read_verdicts, to_json
from sppo.preferences.pairs import calibration, slope
from sppo.recipe import Recipe, WorldRuleJudge
from sppo.records import Comparison, to_table
from sppo.store import Artifact, ArtifactFile, Store
from sppo.summary import chart_of
from sppo.world.language import answer, run_instructions

NAN = float("nan")


def verdicts(
    logits: Mapping[str, Sequence[Sequence[float]]],
    texts: Mapping[str, Sequence[str]] | None = None,
    members: Mapping[str, Sequence[Sequence[Sequence[float]]]] | None = None,
    label: Callable[[str, str, str], float] | None = None,
) -> list[Verdicts]:
    """Of matrices by prompt; without texts, answers of different letters and equal length."""
    rows = [
        Comparison(
            name,
            len(matrix),
            np.ravel(matrix).tolist(),
            [] if members is None else [np.ravel(member).tolist() for member in members[name]],
        )
        for name, matrix in logits.items()
    ]
    default = {name: [chr(97 + place) for place in range(len(matrix))] for name, matrix in logits.items()}
    return read_verdicts(to_table(Comparison, rows), texts or default, label)


def margins(*ahead: tuple[int, int, float], count: int = 3, shift: float = 0.0) -> list[list[float]]:
    """L_ij = m_ij + shift, for (i, j, m_ij)."""
    matrix = np.full((count, count), shift)
    np.fill_diagonal(matrix, 0)
    for i, j, margin in ahead:
        matrix[i, j] += margin
        matrix[j, i] -= margin
    return matrix.tolist()


CYCLE = margins((0, 1, 2), (1, 2, 1), (2, 0, 0.5), shift=0.6)
"""The worked example of the docs, with .6 for the answer that is shown first."""


def test_position_bias_is_what_both_orders_add_up_to() -> None:
    found = preferences(verdicts({"a": CYCLE})).position
    assert found is not None
    # L01 + L10 = 2.6 - 1.4 = 1.2, and so for each pair
    assert (found.bias.mean, found.bias.median, found.bias.p95) == pytest.approx((1.2, 1.2, 1.2))
    assert found.first_logit == pytest.approx(0.6)
    # only L20 = 1.1 and L02 = .1 have the same sign: both orders name the first
    assert found.order_flips == pytest.approx(1 / 3)
    assert found.first_of_flips == 1


def test_a_judge_without_position_bias_has_none_whatever_it_prefers() -> None:
    found = preferences(verdicts({"a": margins((0, 1, 2), (1, 2, 1), (2, 0, 0.5))})).position
    assert found is not None
    assert (found.bias.mean, found.first_logit, found.order_flips, found.first_of_flips) == (0, 0, 0, None)
    assert found.first_wins.counts[12] == 3  # the middle one of 25 parts: 0.48 to 0.52


def test_the_worked_cycle_is_one_cyclic_triple_and_has_no_condorcet_winner() -> None:
    found = preferences(verdicts({"a": CYCLE})).transitivity
    assert found is not None
    assert (found.triples, found.cyclic_triples, found.no_condorcet_winner, found.condorcet_cycle) == (1, 1, 1, 1)


def test_margins_are_log_odds_with_the_order_averaged_out() -> None:
    found = preferences(verdicts({"a": CYCLE})).margins
    assert found is not None
    assert (found.size.mean, found.size.median, found.ties) == pytest.approx((3.5 / 3, 1.0, 0))
    # sigmoid(2) = .881, sigmoid(1) = .731, sigmoid(.5) = .622; 25 parts of [.5, 1] are .02 wide
    assert [place for place, count in enumerate(found.sureness.counts) if count] == [6, 11, 19]


def test_the_game_of_the_worked_cycle() -> None:
    found = preferences(verdicts({"a": CYCLE})).game
    assert found is not None
    # rates .586 .450 .464; the lottery weighs each by the edge between the other two: .2311, .1225, .3808 of .7343
    assert found.exploitability.mean == pytest.approx(0.0861, abs=1e-4)
    assert found.lottery_wins == pytest.approx((0.2311 * 0.5861 + 0.1225 * 0.4501 + 0.3808 * 0.4639) / 0.7343, abs=2e-4)
    assert (found.mixed, found.support, found.best_outside) == (1, (0, 0, 1), 0)
    assert found.certificate < 1e-12


def test_a_tie_leaves_no_condorcet_winner_but_is_no_cycle() -> None:
    found = preferences(verdicts({"a": margins((0, 1, 1), (1, 2, 1))})).transitivity  # 0 = 2
    assert found is not None
    assert (found.triples, found.cyclic_triples, found.no_condorcet_winner, found.condorcet_cycle) == (0, None, 1, 0)


def test_copies_of_the_best_do_not_keep_it_from_winning() -> None:
    report = preferences(verdicts({"a": margins((0, 2, 1), (1, 2, 1))}, {"a": ["x", "x", "y"]}))
    assert report.transitivity is not None
    assert report.game is not None
    assert (report.transitivity.no_condorcet_winner, report.transitivity.triples) == (0, 0)
    assert (report.game.mixed, report.game.best_outside) == (0, 0)
    assert (report.counts.pairs, report.counts.pairs_identical) == (3, 1)


def test_a_pair_without_a_verdict_is_counted_and_its_matrix_left_out() -> None:
    gap = margins((0, 1, 1), (1, 2, 1), (0, 2, 1))
    gap[2][0] = NAN
    logits = {"whole": margins((0, 1, 1), (1, 2, 1), (0, 2, 1)), "gap": gap, "same": margins()}
    report = preferences(verdicts(logits, {"whole": list("abc"), "gap": list("abc"), "same": ["x"] * 3}))
    counts = report.counts
    assert (counts.prompts, counts.responses, counts.pairs) == (3, 9, 9)
    assert (counts.pairs_identical, counts.prompts_identical) == (3, 1)
    assert (counts.pairs_unjudged, counts.prompts_incomplete) == (1, 1)
    assert report.margins is not None
    assert report.margins.size.mean == 1  # of five pairs
    assert report.transitivity is not None
    assert report.game is not None
    assert report.transitivity.prompts == report.game.prompts == 1


def test_nothing_judged_is_nothing_said() -> None:
    report = preferences(verdicts({"a": margins()}, {"a": ["x"] * 3}))
    assert (report.position, report.margins, report.transitivity, report.length, report.calibration, report.game) == (None,) * 6
    assert report.metrics() == {}
    assert drawn(report) is None


def test_fair_coins_make_a_quarter_of_triples_cyclic_and_a_score_none() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(2000, 4))
    coins = {str(row): draw.normal(size=(4, 4)).tolist() for row in range(2000)}
    scored = {str(row): (each[:, None] - each[None]).tolist() for row, each in enumerate(scores)}
    found = [preferences(verdicts(logits)).transitivity for logits in (coins, scored)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].cyclic_triples == pytest.approx(0.25, abs=0.02)  # 8000 triples, two of eight ways
    assert (found[1].cyclic_triples, found[1].no_condorcet_winner) == (0, 0)


def test_a_slope_and_its_error_over_prompts() -> None:
    # b = (1 * 2 + 2 * 1) / (1 + 4) = .8; residuals 1.2 and -.6, scores 1.2 and -1.2; sqrt(2 / 1 * 2.88) / 5 = .48
    assert slope(np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([0, 1])) == pytest.approx((0.8, 0.48))
    # the same pairs of one prompt: 1.2 - 1.2 = 0 in all, and one prompt tells nothing of the error
    assert slope(np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([0, 0])) == pytest.approx((0.8, 0))


def test_length_bias_is_a_slope_and_a_share_whichever_answer_stands_first() -> None:
    short, long, longer = "x", "y" * 101, "z" * 201
    logits = {
        "a": margins((0, 1, 2), count=2),  # 100 more win by 2
        "b": margins((0, 1, -1), count=2),  # 200 more win by 1, standing second
        "c": margins((0, 1, 1), count=2),  # equal length
        "d": margins((0, 1, 0), count=2),  # 100 more tie
    }
    texts = {"a": [long, short], "b": [short, longer], "c": ["p", "q"], "d": [short, long]}
    found = preferences(verdicts(logits, texts)).length
    assert found is not None
    assert (found.pairs, found.equal_length) == (3, 0.25)
    assert found.longer_wins == pytest.approx((1 + 1 + 0.5) / 3)
    assert found.slope_per_100_characters == pytest.approx((1 * 2 + 2 * 1 + 1 * 0) / (1 + 4 + 1))
    # residuals 2 - 2/3, 1 - 4/3, 0 - 2/3: squares 1.7778 + .1111 + .4444 = 2.3333 of 4 + 1
    assert found.explained == pytest.approx(1 - 2.3333 / 5, abs=1e-4)


def test_judges_of_an_ensemble_are_compared_two_by_two() -> None:
    one = margins((0, 1, 2), (1, 2, 1), (0, 2, 1))
    other = margins((0, 1, 1), (1, 2, -1), (0, 2, 2))
    none = margins((0, 1, NAN), (1, 2, NAN), (0, 2, 1))
    found = preferences(verdicts({"a": one}, members={"a": [one, other, none]})).agreement
    assert [each.judges for each in found] == [(0, 1), (0, 2), (1, 2)]
    # same verdict on 2 of 3, chance 1/2: (2/3 - 1/2) / (1/2); correlation (2 - 1 + 2) / sqrt(6 * 6)
    assert (found[0].pairs, found[0].same_verdict) == (3, pytest.approx(2 / 3))
    assert found[0].kappa == pytest.approx(1 / 3)
    assert found[0].correlation == pytest.approx(0.5)
    assert (found[1].pairs, found[1].same_verdict, found[1].kappa) == (1, 1, 1)


def test_members_are_read_prompt_by_prompt_also_when_k_differs() -> None:
    two, three = margins((0, 1, 1), count=2), margins((0, 1, 2), (1, 2, 3), (0, 2, 4))
    logits = {"a": three, "b": two, "c": three}
    members = {name: [np.multiply(matrix, 10).tolist(), matrix] for name, matrix in logits.items()}
    groups = verdicts(logits, members=members)
    assert [group.logits.shape for group in groups] == [(1, 2, 2), (2, 3, 3)]
    for group in groups:
        np.testing.assert_array_equal(group.members, [10 * group.logits, group.logits])
    assert preferences(groups).counts.pairs == 7


def test_calibration_compares_what_it_says_with_what_is() -> None:
    said, truth = np.array([0.9, 0.9, 0.2, 0.5]), np.array([1.0, 0.0, 0.0, NAN])
    found = calibration(said, truth)
    assert found is not None
    # turned to P >= 1/2: .9 right, .9 wrong, .8 right; parts of .05: .9 is in the ninth (.9 to .95), .8 in the seventh
    assert (found.pairs, found.accuracy) == (3, pytest.approx(2 / 3))
    assert [(each.pairs, each.mean) for each in found.right_by_sureness] == [(1, 1), (2, 0.5)]
    assert found.error == pytest.approx((1 * abs(1 - 0.8) + 2 * abs(0.5 - 0.9)) / 3)
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.04) / 3)
    assert found.brier_of_labels == 0
    assert calibration(said, np.full(4, NAN)) is None


def test_a_judge_that_says_the_truth_is_calibrated_and_has_the_least_brier_score() -> None:
    truth = np.array([0.75, 0.3, 0.5])
    found = calibration(truth, truth)
    assert found is not None
    assert (found.accuracy, found.error) == (1, pytest.approx(0, abs=1e-12))  # the tie in truth is not counted
    assert found.brier == found.brier_of_labels == pytest.approx((0.75 * 0.25 + 0.3 * 0.7 + 0.25) / 3)


def test_labels_are_asked_for_once_a_pair_and_hold_both_ways() -> None:
    asked: list[tuple[str, str, str]] = []

    def label(prompt_id: str, first: str, second: str) -> float:
        asked.append((prompt_id, first, second))
        return 0.8

    (group,) = verdicts({"a": margins((0, 1, 1), count=2)}, label=label)
    assert asked == [("a", "a", "b")]
    np.testing.assert_allclose(group.labels[0], [[NAN, 0.8], [0.2, NAN]])


def test_chunks_together_say_what_the_whole_says() -> None:
    draw = np.random.default_rng(0)
    logits = {str(row): draw.normal(size=(3, 3)).tolist() for row in range(40)}
    texts = {name: ["x" * int(size) for size in draw.integers(1, 500, 3)] for name in logits}
    names = list(logits)
    chunks = [verdicts({name: logits[name] for name in part}, texts) for part in (names[:7], names[7:])]
    assert to_json(preferences(chunks[0] + chunks[1])) == to_json(preferences(verdicts(logits, texts)))


def test_an_infinite_logit_is_named() -> None:
    bad = margins((0, 1, 1))
    bad[0][2] = float("inf")
    with pytest.raises(JudgeError, match=r"^judge logit for prompt b, pair \(0, 2\) is inf; .* rank again"):
        verdicts({"a": margins(), "b": bad})


def test_comparisons_that_do_not_fit_are_refused() -> None:
    with pytest.raises(JudgeError, match="prompt a was ranked with 3 responses and has 2: rank again"):
        verdicts({"a": margins()}, {"a": ["x", "y"]})
    with pytest.raises(JudgeError, match="8 logits and 0 of 0 members for 1 prompts; expected K x K each, 9"):
        read_verdicts(to_table(Comparison, [Comparison("a", 3, [0.0] * 8)]), {"a": ["x", "y", "z"]})


def test_twenty_thousand_prompts_of_five_are_reported_in_seconds() -> None:
    logits = np.random.default_rng(0).normal(size=(20_000, 5, 5))
    groups = [
        Verdicts(
            logits,
            np.empty((0, 20_000, 5, 5)),
            np.random.default_rng(1).integers(1, 3000, (20_000, 5)),
            np.broadcast_to(np.eye(5, dtype=bool), logits.shape),
            np.full(logits.shape, NAN),
        )
    ]
    began = time.process_time()
    report = preferences(groups)
    assert time.process_time() - began < 3  # 0.2 s on an idle core
    assert report.counts.pairs == 200_000


@pytest.fixture
def ranked(
    store: Store,
    tiny: Recipe,
    cpu: Hardware,
    make_prompts: Callable[[list[str]], ArtifactFile],
    make_answers: Callable[..., Artifact],
) -> Artifact:
    """Ranked by the world's rule."""
    draw = random.Random(0)
    asked = run_instructions()[:12]
    answers = {f"p{place}": [answer(each, 0.6, draw) for _ in range(4)] for place, each in enumerate(asked)}
    recipe = tiny.model_copy(
        update={
            "judge": WorldRuleJudge(kind="world-rule"),
            "generation": tiny.generation.model_copy(update={"responses": 4}),
        }
    )
    chunks = [{name: answers[name] for name in list(answers)[start : start + 5]} for start in (0, 5, 10)]
    return store.build(rank.step(recipe, cpu, None, make_prompts(list(answers)), make_answers(*chunks)))


def test_ranking_by_the_rule_says_that_the_judge_is_right_and_minds_no_order(ranked: Artifact) -> None:
    metrics = ranked.manifest.metrics
    assert (metrics["position_bias"], metrics["order_flips"]) == (0, 0)
    assert metrics["judge_accuracy"] == 1
    assert metrics["calibration_error"] < 1e-6  # logits are kept as float32
    assert metrics.keys() >= {"cyclic_triples", "no_condorcet_winner", "longer_wins", "exploitability"}
    report = Preferences.model_validate_json(ranked.text("preferences.json"))
    assert (report.counts.prompts, report.counts.pairs) == (12, 72)
    assert report.game is not None
    assert report.game.certificate <= 1e-9


def test_the_report_holds_numbers_and_names_alone(ranked: Artifact) -> None:
    def leaves(value: object) -> list[object]:
        if isinstance(value, dict):
            return [leaf for inner in value.values() for leaf in leaves(inner)]
        return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]

    assert {type(leaf) for leaf in leaves(json.loads(ranked.text("preferences.json")))} <= {int, float, type(None)}


def test_the_artifact_has_a_picture_of_four_panels(ranked: Artifact) -> None:
    svg = chart_of(ranked)
    assert svg is not None
    texts = [text.text for text in ElementTree.fromstring(svg).findall(".//{http://www.w3.org/2000/svg}text")]
    for title in ("What the order does", "How often the longer answer wins", "How often the judge is right"):
        assert title in texts


def test_the_command_tells_each_number_with_its_meaning(store: Store, ranked: Artifact) -> None:
    console = Console(file=StringIO(), width=140)
    show_preferences(console, store, ranked.reference, None)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for name in ("position bias", "cyclic triples", "longer answer wins", "calibration error", "exploitability of pi_t"):
        assert name in said
    assert "12 x 4" in said
    assert "→" not in said.partition("order: does the place decide?")[2].partition("margins")[0]  # the rule minds no order


def test_advice_is_given_where_a_number_looks_bad() -> None:
    console = Console(file=StringIO(), width=140)
    console.print(preference_table(preferences(verdicts({"a": CYCLE}))))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "prefer a judge that flips less" in " ".join(said.split())  # a third of the pairs flips
    assert "estimator.rule: pairwise" in " ".join(said.split())  # all triples are cyclic


def test_an_artifact_without_a_report_is_named_with_what_to_do(store: Store, make_answers: Callable[..., Artifact]) -> None:
    made = make_answers({"a": ["x", "y"]})
    with pytest.raises(RunError, match=rf"{made.name} has no preferences.json; .* ranks its responses again"):
        show_preferences(Console(file=StringIO()), store, made.reference, None)
