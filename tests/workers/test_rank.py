"""Rank and duel with real worker processes: PairRM and the world's rule, one process or two, resumed, and failing."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from sppo import duel, judges, rank
from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.judges import Match
from sppo.progress import Progress, silent
from sppo.recipe import FolderModel, PairRMJudge, Recipe, WorldRuleJudge
from sppo.records import Comparison, Duel, Prompt, from_table, to_table
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace
from sppo.store.workspace import write_parquet
from sppo.world.language import rule_logit

MakePrompts = Callable[[list[str]], ArtifactFile]
MakeAnswers = Callable[..., Artifact]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_responses.parquet"
RULE = WorldRuleJudge(kind="world-rule")
ANSWERS = {name: [f"The {name} is red.", "fox", f"{name} {name}, in the wood"] for name in "abcdef"}
CHUNKS = [{name: ANSWERS[name] for name in names} for names in ("ab", "cd", "ef")]


def pairrm(folder: Path) -> PairRMJudge:
    source = FolderModel(kind="folder", path=str(folder))
    return PairRMJudge(kind="pairrm", source=source, max_source_tokens=64, max_candidate_tokens=48)


def judged_by(tiny: Recipe, judge: PairRMJudge | WorldRuleJudge, responses: int = 3) -> Recipe:
    evaluation = tiny.evaluation.model_copy(update={"judges": (judge, RULE)})
    generation = tiny.generation.model_copy(update={"responses": responses})
    return tiny.model_copy(update={"judge": judge, "generation": generation, "evaluation": evaluation})


def with_processes(cpu: Hardware, processes: int, tokens_per_batch: int = 512) -> Hardware:
    changes = {"processes": processes, "tokens_per_batch": tokens_per_batch}
    return cpu.model_copy(update={"rank": cpu.rank.model_copy(update=changes)})


def build_judge(store: Store, recipe: Recipe) -> Artifact:
    step = judges.step(recipe.judge, recipe)
    assert step is not None
    return store.build(step)


def test_two_processes_and_other_batches_rank_as_one_does(
    store: Store, tiny: Recipe, cpu: Hardware, random_judge: Path, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    recipe = judged_by(tiny, pairrm(random_judge))
    judge, prompts, responses = build_judge(store, recipe), make_prompts(list("abcdef")), make_answers(*CHUNKS)
    seen: list[Progress] = []
    ranked = store.build(rank.step(recipe, with_processes(cpu, 1), judge, prompts, responses), seen.append)
    assert ranked.file_names() == [*responses.file_names(), "preferences.json"]  # chunk by chunk, and what they say
    # 6 prompts x 3 x 2 ordered pairs, all texts of a prompt different
    assert ranked.manifest.counts == {"prompts": 6, "pairs": 36, "judged": 36, "identical": 0, "repeated": 0}
    assert (seen[-1].stage, seen[-1].done, seen[-1].total) == ("rank", 36, 36)
    first = [row.logits for row in from_table(Comparison, ranked.tables())]

    shutil.rmtree(Path(store.url) / "rank")
    again = store.build(rank.step(recipe, with_processes(cpu, 2, tokens_per_batch=64), judge, prompts, responses))
    second = [row.logits for row in from_table(Comparison, again.tables())]
    np.testing.assert_allclose(first, second, atol=1e-5)

    direct = judges.load(recipe.judge, random_judge, "cpu", 512)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    (logits,) = direct.judge([Match("c", [{"role": "user", "content": "About c?"}], ANSWERS["c"], pairs)], silent)
    matrix = np.reshape(first[2], (3, 3))  # (K, K) of prompt c
    np.testing.assert_allclose([matrix[pair] for pair in pairs], logits, atol=1e-5)


def test_a_chunk_that_is_committed_is_not_judged_again(
    store: Store, tiny: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    recipe = judged_by(tiny, RULE)
    step = rank.step(recipe, with_processes(cpu, 2), None, make_prompts(list("abcdef")), make_answers(*CHUNKS))
    with store.workspace("rank", step.identity.fingerprint) as workspace:  # what an attempt that died had committed
        rows = [Comparison(name, 3, [7.0] * 9) for name in "cd"]
        write_parquet(to_table(Comparison, rows), workspace.folder / "chunk-00001.parquet")
        workspace.commit_part("chunk-00001", [workspace.folder / "chunk-00001.parquet"], {"prompts": 2, "pairs": 12})
    seen: list[Progress] = []
    ranked = store.build(step, seen.append)
    rows = list(from_table(Comparison, ranked.tables()))
    assert [row.prompt_id for row in rows] == list("abcdef")
    assert rows[2].logits == rows[3].logits == [7.0] * 9
    assert rows[0].logits[1] == pytest.approx(rule_logit("About a?", *ANSWERS["a"][:2]))
    assert ranked.manifest.counts["pairs"] == 36
    assert not seen or seen[-1].total == 24  # two chunks were left


def test_a_logit_that_is_nan_ends_the_stage_in_plain_words_and_keeps_earlier_chunks(
    store: Store,
    tmp_path: Path,
    tiny: Recipe,
    cpu: Hardware,
    random_judge: Path,
    make_prompts: MakePrompts,
    make_answers: MakeAnswers,
) -> None:
    broken = Path(shutil.copytree(random_judge, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    word = judges.load(pairrm(broken), broken, "cpu", 512).tokenizer.encode("x~")[-1]  # type: ignore[attr-defined]
    weights["pretrained_model.embeddings.word_embeddings.weight"][word] = np.nan
    save_file(weights, broken / "model.safetensors")
    recipe = judged_by(tiny, pairrm(broken))
    judge, prompts = build_judge(store, recipe), make_prompts(list("ab"))
    responses = make_answers({"a": ["x", "y", "z"]}, {"b": ["x", "y~", "z"]})
    step = rank.step(recipe, with_processes(cpu, 1), judge, prompts, responses)
    with pytest.raises(JudgeError, match=rf"^judge logit for prompt b, pair \(0, 1\) is nan; .* weights of {judge.reference}"):
        store.build(step)
    with store.workspace("rank", step.identity.fingerprint) as workspace:
        assert workspace.parts() == ["chunk-00000"]


def test_duels_are_judged_in_both_orders_under_every_judge(
    store: Store,
    tiny: Recipe,
    cpu: Hardware,
    random_judge: Path,
    make_prompts: MakePrompts,
    make_answers: MakeAnswers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = judged_by(tiny, pairrm(random_judge))
    prompts = make_prompts(list("abcd"))  # d was not sampled
    new = make_answers({"a": ["a fox", "red"], "b": ["x", "y"]}, {"c": ["p", "q"]}, stage="sample")
    base = make_answers({"a": ["red"], "b": ["b1"], "c": ["c1"]}, stage="sample")
    between = make_answers({"c": ["r", "s"], "b": ["t", "u"], "a": ["v", "w"]}, stage="sample")
    both: list[Artifact | None] = [build_judge(store, recipe), None]
    found = duel.build(store, recipe, with_processes(cpu, 1), both, prompts, new, [base, between])
    assert [len(row) for row in found] == [2, 2]

    under_rule = {row.prompt_id: row for row in from_table(Duel, found[1][0].tables())}
    assert list(under_rule) == ["a", "b", "c"]
    assert (under_rule["a"].first, under_rule["a"].second) == (2, 1)
    logit = rule_logit("About a?", "a fox", "red")
    assert under_rule["a"].forward == pytest.approx([logit, 0.0])  # "red" against "red" is nought
    assert under_rule["a"].backward == pytest.approx([-logit, 0.0])
    # 3 prompts x 2 answers x 1 answer x 2 orders; "red" against "red" twice
    assert found[1][0].manifest.counts == {"prompts": 3, "pairs": 12, "judged": 10, "identical": 2, "repeated": 0}

    under_pairrm = {row.prompt_id: row for row in from_table(Duel, found[0][1].tables())}
    direct = judges.load(recipe.judge, random_judge, "cpu", 512)
    asked = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)]  # forward, then backward, row-major
    (logits,) = direct.judge([Match("c", [{"role": "user", "content": "About c?"}], ["p", "q", "r", "s"], asked)], silent)
    np.testing.assert_allclose(under_pairrm["c"].forward + under_pairrm["c"].backward, logits, atol=1e-5)

    with caplog.at_level(logging.INFO):
        duel.build(store, recipe, cpu, both, prompts, new, [base, between])
    assert sum("duel: nothing to do, committed" in line for line in caplog.messages) == 4


def test_judging_by_the_rule_loads_no_torch() -> None:
    code = (
        "import sys, sppo.workers.rank, sppo.judges.rule\n"
        "assert not {'torch', 'transformers', 'tokenizers', 'vllm'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not REAL.is_file(), reason="the real prompts are not on this machine")
def test_real_prompts_and_answers_are_ranked_with_every_pair_accounted_for(
    store: Store, tiny: Recipe, cpu: Hardware, random_judge: Path, make_answers: MakeAnswers
) -> None:
    prompts, chunks, identical = _real_prompts(store, 40)
    recipe = judged_by(tiny, pairrm(random_judge))
    judge = build_judge(store, recipe)
    ranked = store.build(rank.step(recipe, with_processes(cpu, 2, 1024), judge, prompts, make_answers(*chunks)))
    counts = ranked.manifest.counts
    assert ranked.file_names(".parquet") == ["chunk-00000.parquet", "chunk-00001.parquet"]  # 32 + 8 prompts
    assert (counts["prompts"], counts["pairs"]) == (40, 40 * 6)
    assert counts["identical"] == identical
    assert counts["judged"] + counts["identical"] + counts["repeated"] == counts["pairs"]
    logits = np.array([row.logits for row in from_table(Comparison, ranked.tables())])  # (N, K * K)
    assert logits.shape == (40, 9)
    assert np.isfinite(logits).all()


def _real_prompts(store: Store, count: int) -> tuple[ArtifactFile, list[dict[str, list[str]]], int]:
    """The first prompts with three policies' real answers, 32 a chunk, and how many ordered pairs are of the same text."""
    columns = ["SPPO-Gemma-2-9B-It-PairRM", "Mistral-7B-Instruct-v0.2", "gpt4_1106_preview"]
    table = pq.read_table(REAL, columns=["instruction", *columns]).slice(0, count).to_pylist()
    prompts = [
        Prompt(f"{index:03d}", [{"role": "user", "content": row["instruction"]}], [1]) for index, row in enumerate(table)
    ]
    answers = [(f"{index:03d}", [row[column] for column in columns]) for index, row in enumerate(table)]

    def run(workspace: Workspace) -> Outcome:
        workspace.add_table(to_table(Prompt, prompts), "train-1.parquet")
        return Outcome("prompts")

    split = store.build(Step(Identity("split", 1, {"real": count}, {}), run))
    same = sum(texts[i] == texts[j] for _, texts in answers for i in range(3) for j in range(3) if i != j)
    return split.file("train-1.parquet"), [dict(answers[:32]), dict(answers[32:])], same
