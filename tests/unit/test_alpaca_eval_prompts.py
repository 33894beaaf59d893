"""AlpacaEval's instructions as the policy reads them, the reference's answers, and the recipe that says so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sppo import policy as policies
from sppo.alpaca_eval import prompts
from sppo.alpaca_eval.prompts import PROMPTS_FILE, REFERENCE_FILE, instruction_id
from sppo.errors import EvaluationError, PolicyError, PromptError, RecipeError
from sppo.fingerprint import file_sha256
from sppo.generate import sampling_of
from sppo.policy import load_tokenizer
from sppo.recipe import Recipe, load_recipe
from sppo.recipe.alpaca_eval import RELEASED
from sppo.records import Prompt, Response, from_table
from sppo.resolve import resolve
from sppo.stages import plan_fingerprints, stage_identity
from sppo.store import Artifact, Store

RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"
SET = [
    {"dataset": "own", "instruction": text, "output": f"About {text}", "generator": "the-reference"}
    for text in ("What is a fox?", " Füchse 🦊? ", "Write </turn> and <eos>.", "1 + 1", "{{ 7 * 7 }}", "Why?")
]
TEMPLATE = "<bos><turn>user\\n{instruction}</turn>\\n<turn>assistant"
JUDGE = "judge: {kind: world-rule}"
DECODING = "temperature: 0.7, top_p: 0.9, max_tokens: 16"


def written(folder: Path, content: object = SET) -> str:
    """A recipe's `evaluation_set` for a file with this content."""
    path = folder / "set.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return f"evaluation_set: {{source: {path}, sha256: {file_sha256(path)}}}"


def recipe_with(*values: str, policy: Path | None = None) -> Recipe:
    source = () if policy is None else (f"policy.source={{kind: folder, path: {policy}}}",)
    return load_recipe("tiny", RECIPES, (*source, f"evaluation.alpaca_eval={{{', '.join((JUDGE, *values))}}}"))


def made(store: Store, recipe: Recipe) -> tuple[Artifact, Artifact, list[Prompt]]:
    base = store.build(policies.step(recipe))
    reference = store.build(prompts.reference_step(recipe))
    found = prompts.build(store, recipe, base, reference)
    return base, reference, list(from_table(Prompt, found.table(PROMPTS_FILE)))


def test_instructions_are_rendered_by_the_chat_template_in_the_sets_order_and_known_by_their_text(
    store: Store, random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = random_policy("llama")
    recipe = recipe_with(f"decoding: {{{DECODING}}}", "gamed_baselines: null", written(tmp_path), policy=folder)
    _, reference, rows = made(store, recipe)
    assert [row.prompt_id for row in rows] == [instruction_id(one["instruction"]) for one in SET]
    assert rows[1].messages == [{"role": "user", "content": " Füchse 🦊? "}]
    decode = load_tokenizer(folder).decode
    assert decode(rows[0].token_ids) == "<bos><turn>user\nWhat is a fox?</turn>\n<turn>assistant\n"
    assert rows[2].token_ids.count(3) == 1, "a typed </turn> is text, and the template's is the only one"
    answers = list(from_table(Response, reference.table(REFERENCE_FILE)))
    assert [(one.prompt_id, one.k, one.text) for one in answers][3] == (instruction_id("1 + 1"), 0, "About 1 + 1")


def test_a_template_of_ones_own_is_followed_to_the_letter(
    store: Store, random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = random_policy("llama")
    recipe = recipe_with(
        f'decoding: {{{DECODING}, template: "{TEMPLATE}"}}', "gamed_baselines: null", written(tmp_path), policy=folder
    )
    _, _, rows = made(store, recipe)
    decode = load_tokenizer(folder).decode
    texts = [decode(row.token_ids) for row in rows]
    assert texts[0] == "<bos><turn>user\nWhat is a fox?</turn>\n<turn>assistant"  # no newline at the end
    assert texts[1] == "<bos><turn>user\n Füchse 🦊? </turn>\n<turn>assistant"  # as alpaca_eval fills it in: not trimmed
    assert texts[4] == "<bos><turn>user\n{{ 7 * 7 }}</turn>\n<turn>assistant"
    assert [row.token_ids.count(0) for row in rows] == [1] * 6, "one BOS, the template's"
    assert rows[2].token_ids.count(3) == 1


def test_a_newline_at_a_templates_end_stays_as_in_the_one_released_for_mistral(random_policy: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(random_policy("llama"))
    prompts.follow(tokenizer, '<bos>[INST] "{instruction}" [/INST]\n')
    turns = [{"role": "user", "content": "a\n"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == '<bos>[INST] "a\n" [/INST]\n'


def test_a_template_made_for_another_policy_is_refused(random_policy: Callable[[str], Path]) -> None:
    with pytest.raises(PromptError, match=r"template '<\|im_start\|>user.* has no control token of this policy's tokenizer \("):
        prompts.follow(load_tokenizer(random_policy("llama")), "<|im_start|>user\n{instruction}<|im_end|>\n")


def test_an_answer_that_cannot_fit_is_refused_before_anything_is_trained(
    store: Store, random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = random_policy("llama")  # 512 positions
    decoding = "decoding: {temperature: 0.7, top_p: 0.9, max_tokens: 500}"
    recipe = recipe_with(decoding, "gamed_baselines: null", written(tmp_path), policy=folder)
    with pytest.raises(
        PolicyError, match=r"do not fit into the 512 positions .*; lower evaluation\.alpaca_eval\.decoding\.max_tokens"
    ):
        made(store, recipe)


def test_the_first_instructions_alone_are_asked_and_the_reference_does_not_change(
    store: Store, random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    values = (f"decoding: {{{DECODING}}}", "gamed_baselines: null", written(tmp_path))
    whole = recipe_with(*values, policy=random_policy("llama"))
    few = recipe_with(*values, "max_prompts: 5", policy=random_policy("llama"))
    assert prompts.reference_step(whole).identity.fingerprint == prompts.reference_step(few).identity.fingerprint
    assert [row.prompt_id for row in made(store, few)[2]] == [row.prompt_id for row in made(store, whole)[2]][:5]


def test_gamed_baselines_are_fetched_before_anything_is_drawn_and_others_ask_nothing_anew(
    store: Store, random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    values, folder = (f"decoding: {{{DECODING}}}", written(tmp_path)), random_policy("llama")
    path = tmp_path / "gamed.csv"
    path.write_text("index,preference,std_delta_len,instruction_difficulty\n0,0.25,-1.5,0.5\n5,,0.25,-2\n")
    with_gamed = recipe_with(*values, f"gamed_baselines: {{source: {path}, sha256: {file_sha256(path)}}}", policy=folder)
    without = recipe_with(*values, "gamed_baselines: null", policy=folder)
    base = store.build(policies.step(without))
    one, other = (store.build(prompts.reference_step(recipe)) for recipe in (with_gamed, without))
    assert one.reference != other.reference
    found = prompts.stored_baselines(one)
    assert found is not None
    assert found.positions.tolist() == [0, 5]
    assert prompts.stored_baselines(other) is None
    steps = [prompts.step(recipe, base, made) for recipe, made in ((with_gamed, one), (without, other))]
    assert steps[0].identity.fingerprint == steps[1].identity.fingerprint
    with pytest.raises(EvaluationError, match="have no difficulty for instruction 1 of the set, and for 4 in all"):
        prompts.build(store, with_gamed, base, one)
    path.write_text("index,preference\n")
    moved = recipe_with(*values, f"gamed_baselines: {{source: {path}, sha256: {file_sha256(path)}}}", policy=folder)
    with pytest.raises(EvaluationError, match=r"gamed\.csv holds no gamed baselines"):
        store.build(prompts.reference_step(moved))


def test_a_set_with_another_digest_is_refused(store: Store, tmp_path: Path) -> None:
    recipe = recipe_with(f"decoding: {{{DECODING}}}", "gamed_baselines: null", written(tmp_path))
    (tmp_path / "set.json").write_text("[]")
    with pytest.raises(EvaluationError, match=r"set\.json has the sha256 \w+; expected"):
        store.build(prompts.reference_step(recipe))


def test_the_draw_is_sampled_as_the_recipe_says_and_its_seeds_know_no_policy(
    store: Store, random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = recipe_with(f"decoding: {{{DECODING}}}", "gamed_baselines: null", written(tmp_path), policy=random_policy("llama"))
    base, reference, _ = made(store, recipe)
    draw = prompts.alpaca_draw(recipe, prompts.build(store, recipe, base, reference))
    sampling = sampling_of(recipe, draw)
    assert (draw.stage, draw.iteration) == ("alpaca-answer", None)
    assert (sampling.responses, sampling.temperature, sampling.top_p, sampling.max_tokens) == (1, 0.7, 0.9, 16)


# --- the recipe


def test_a_released_decoding_is_named_and_becomes_its_values() -> None:
    asked = recipe_with("decoding: sppo-gemma-2-9b").evaluation.alpaca_eval
    assert asked is not None
    assert asked.decoding == RELEASED["sppo-gemma-2-9b"]
    assert asked.decoding.template == "<bos><start_of_turn>user\n{instruction}<end_of_turn>\n<start_of_turn>model"
    assert (asked.decoding.temperature, asked.decoding.top_p, asked.decoding.max_tokens) == (0.7, 0.9, 2048)
    recipe = recipe_with("decoding: sppo-mistral-7b")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("decoding: sppo-llama-3-8b", "decoding: is 'sppo-llama-3-8b'; expected one of sppo-mistral-7b, sppo-gemma-2-9b, or"),
        (f"decoding: {{{DECODING}, responses: 4}}", "responses: is 4; AlpacaEval compares one answer an instruction"),
        (f"decoding: {{{DECODING}, template: hello}}", r"template: has \{instruction\} 0 times; expected it once"),
        (f"decoding: {{{DECODING}}}, order: alpaca_eval, average: logits", "there is nothing to average"),
        (
            f"decoding: {{{DECODING}}}, evaluation_set: {{source: x, sha256: {'a' * 64}}}",
            "gamed_baselines are AlpacaEval 2's own and evaluation_set is another",
        ),
        (f"decoding: {{{DECODING}}}, max_prompts: 4", "max_prompts is 4; expected 5 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(values: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_with(values)


def test_the_mean_of_orders_is_of_probabilities_for_a_served_model_and_of_logits_for_any_other() -> None:
    served = "judge: {kind: endpoint, source: {url: 'http://h/v1'}, model: m}"
    for judge, more, expected in (
        (served, "", "probabilities"),
        (JUDGE, "", "logits"),
        (served, ", average: logits", "logits"),
    ):
        asked = load_recipe(
            "tiny", RECIPES, (f"evaluation.alpaca_eval={{{judge}, decoding: {{{DECODING}}}{more}}}",)
        ).evaluation.alpaca_eval
        assert asked is not None
        assert asked.averaged == expected


def test_stages_of_alpaca_eval_are_planned_where_it_is_asked_for_alone() -> None:
    plain, asked = load_recipe("tiny", RECIPES), recipe_with(f"decoding: {{{DECODING}}}")
    before, after = plan_fingerprints(plain), plan_fingerprints(asked)
    added = ["alpaca-reference", "alpaca-prompts", "alpaca-answer", "alpaca-judge", "alpaca-eval"]
    assert [stage for stage in after if stage.startswith("alpaca-")] == added
    assert not [stage for stage in before if stage.startswith("alpaca-")]
    assert {stage: after[stage] for stage in before} == before
    hotter = plan_fingerprints(recipe_with("decoding: {temperature: 1.0, top_p: 0.9, max_tokens: 16}"))
    assert [stage for stage in added if hotter[stage] != after[stage]] == ["alpaca-answer", "alpaca-judge", "alpaca-eval"]


def test_a_judge_of_the_hub_is_pinned_as_the_run_starts(store: Store) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"

    def with_judge(revision: str) -> Recipe:
        source = f"{{kind: hub, model: someone/judge, revision: {revision}}}"
        judge = f"{{kind: pairrm, source: {source}, max_source_tokens: 64, max_candidate_tokens: 64}}"
        values = f"evaluation.alpaca_eval={{judge: {judge}, decoding: {{{DECODING}}}}}"
        return load_recipe("tiny", RECIPES, (values, "generation.engine=transformers"))

    assert resolve(with_judge(commit), store) == with_judge(commit)
    with pytest.raises(RecipeError, match=r"cannot look up revision 'main' of the model someone/judge"):
        resolve(with_judge("main"), store)


# --- what users have committed

FIXED = {
    "name": "fixed",
    "seed": 7,
    "iterations": 2,
    "policy": {"source": {"kind": "world"}, "system_role": "fold", "stop_tokens": [], "dtype": "float32"},
    "prompts": {
        "source": {"kind": "world", "train_prompts": 8, "test_prompts": 4},
        "max_prompt_tokens": 64,
        "unusable_rows": "refuse",
    },
    "generation": {"engine": "transformers", "responses": 3, "temperature": 1.0, "top_p": 0.9, "max_tokens": 16},
    "judge": {
        "kind": "pairrm",
        "source": {"kind": "folder", "path": "/judge"},
        "max_source_tokens": 64,
        "max_candidate_tokens": 48,
    },
    "estimator": {"rule": "pairwise", "self_match": True},
    "selection": {"responses": "extremes", "drop_ties": True},
    "training": {
        "loss": "sppo",
        "eta": 10,
        "learning_rate": 1e-4,
        "optimizer": "rmsprop",
        "schedule": "linear",
        "warmup_ratio": 0.1,
        "schedule_epochs": 1,
        "stop_epochs": 1,
        "global_batch": 8,
        "max_tokens": 64,
        "max_grad_norm": 1.0,
    },
    "evaluation": {
        "sampling": {"responses": 2, "temperature": 0.7, "top_p": 0.9, "max_tokens": 16},
        "judges": [{"kind": "world-rule"}],
        "max_prompts": 4,
        "resamples": 100,
    },
}


@pytest.mark.parametrize(
    ("stage", "more", "fingerprint"),
    [
        ("generate", {"iteration": 1}, "31130027d79fb01245c06d58b00681a250e7e56a98201bf65360bbb21ebb78ec"),
        ("sample", {}, "39fa7676f131a3569c5653dfcda618fd6ddf716be8c78ddffe772c50014e4885"),
        ("rank", {}, "50630855f9213aa2b9708861b00a4edb91ee99bfa59bfed5f193fcd904762fb7"),
        (
            "duel",
            {"evaluation.judges": [{"kind": "world-rule"}]},
            "868270731e4d2fbdfc0944852494bf7d1d265a7c4d1b41e68e410342d206a5cd",
        ),
    ],
)
def test_what_was_committed_before_alpaca_eval_came_keeps_its_fingerprint(
    stage: str, more: dict[str, object], fingerprint: str
) -> None:
    recipe = Recipe.model_validate_json(json.dumps(FIXED))
    inputs = {"policy": "a" * 64, "prompts": "b" * 64}
    assert stage_identity(stage, recipe, inputs, more).fingerprint == fingerprint
