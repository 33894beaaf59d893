"""Rank's identity, its checks before a judge is loaded, and its rows. Worker processes: tests/workers/test_rank.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sppo import rank
from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.judges.contest import Chunks, RankRun, answers_in
from sppo.launch import Place
from sppo.recipe import Recipe, WorldRuleJudge
from sppo.records import Comparison, Response, from_table, to_table
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace
from sppo.workers.rank import work
from sppo.world.language import rule_logit

MakePrompts = Callable[[list[str]], ArtifactFile]
MakeAnswers = Callable[..., Artifact]


@pytest.fixture
def by_rule(tiny: Recipe) -> Recipe:
    """The tiny recipe with K = 3 and the language's rule for a judge."""
    judge = WorldRuleJudge(kind="world-rule")
    return tiny.model_copy(update={"judge": judge, "generation": tiny.generation.model_copy(update={"responses": 3})})


def test_hardware_never_enters_the_identity(
    by_rule: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    prompts, responses = make_prompts(["a"]), make_answers({"a": ["x", "y", "z"]})
    other = cpu.model_copy(update={"rank": cpu.rank.model_copy(update={"processes": 2, "tokens_per_batch": 64})})
    first, second = (rank.step(by_rule, hardware, None, prompts, responses) for hardware in (cpu, other))
    assert first.identity.fingerprint == second.identity.fingerprint


def test_a_prompt_without_responses_is_named(
    store: Store, by_rule: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    step = rank.step(by_rule, cpu, None, make_prompts(["a", "b", "c"]), make_answers({"a": ["x", "y", "z"]}))
    with pytest.raises(
        JudgeError, match=r"2 prompts of train-1\.parquet have no responses in generate/.*, the first b; expected 3 each"
    ):
        store.build(step)


def test_another_k_than_the_recipes_is_named(
    store: Store, by_rule: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    responses = make_answers({"a": ["x", "y", "z"]}, {"b": ["x", "y"]})
    step = rank.step(by_rule, cpu, None, make_prompts(["a", "b"]), responses)
    with pytest.raises(JudgeError, match=r"chunk-00001\.parquet: prompt b has 2 responses; expected 3"):
        store.build(step)


def test_responses_to_another_portions_prompts_are_named(
    store: Store, by_rule: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    step = rank.step(by_rule, cpu, None, make_prompts(["a"]), make_answers({"a": ["x", "y", "z"], "q": ["x", "y", "z"]}))
    with pytest.raises(JudgeError, match="prompt q is not among the prompts"):
        store.build(step)


def test_a_prompt_in_two_chunks_is_named(
    store: Store, by_rule: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    chunk = {"a": ["x", "y", "z"]}
    step = rank.step(by_rule, cpu, None, make_prompts(["a"]), make_answers(chunk, chunk))
    with pytest.raises(JudgeError, match="prompt a stands in an earlier chunk too"):
        store.build(step)


def test_responses_are_read_by_number_and_a_gap_is_named(store: Store) -> None:
    def responses(*numbers: int) -> Artifact:
        rows = [Response("a", k, [1], f"answer {k}", "stop", [0.0], 0) for k in numbers]

        def run(workspace: Workspace) -> Outcome:
            workspace.add_table(to_table(Response, rows), "chunk-00000.parquet")
            return Outcome("responses")

        return store.build(Step(Identity("generate", 1, {"k": list(numbers)}, {}), run))

    assert answers_in(responses(2, 0, 1), "chunk-00000.parquet") == {"a": ["answer 0", "answer 1", "answer 2"]}
    with pytest.raises(JudgeError, match=r"prompt a has the responses \[0, 2\]; expected 0 to 1"):
        answers_in(responses(0, 2), "chunk-00000.parquet")
    with pytest.raises(JudgeError, match="prompt a has response 1 twice"):
        answers_in(responses(0, 1, 1), "chunk-00000.parquet")


def test_a_workers_chunk_is_a_matrix_of_logits_in_both_orders(
    store: Store, make_prompts: MakePrompts, make_answers: MakeAnswers, tmp_path: Path
) -> None:
    texts = ["The fox is red.", "fox fox", "fox fox"]
    fingerprint = "0" * 64
    run = RankRun(
        judge=WorldRuleJudge(kind="world-rule"),
        judge_artifact=None,
        prompts=make_prompts(["a"]).reference,
        device="cpu",
        tokens_per_batch=1,
        contests=(
            Chunks(
                stage="rank",
                fingerprint=fingerprint,
                responses=make_answers({"a": texts}).reference,
                against=None,
                names=("chunk-00000.parquet",),
            ),
        ),
        pairs=6,
    )
    work(Place(store=store.url, scratch=store.scratch, folder=tmp_path, index=0), run)
    with store.workspace("rank", fingerprint) as workspace:
        record = workspace.part("chunk-00000")
        assert record is not None
        # (0,1) (1,0) asked, (0,2) (2,0) the same texts again, (1,2) (2,1) identical
        assert record.counts == {"prompts": 1, "pairs": 6, "judged": 2, "identical": 2, "repeated": 2}
        import pyarrow.parquet as pq

        (row,) = from_table(Comparison, pq.read_table(workspace.part_path(record.files[0])))
    logit = rule_logit("About a?", texts[0], texts[1])
    expected = [[0, logit, logit], [-logit, 0, 0], [-logit, 0, 0]]
    assert (row.prompt_id, row.responses) == ("a", 3)
    np.testing.assert_allclose(np.reshape(row.logits, (3, 3)), expected, rtol=1e-6)
