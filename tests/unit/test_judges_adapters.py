"""Reward models, general preference models, language models that choose, and ensembles: real networks, made here."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sppo import recipe
from sppo.errors import JudgeError, RecipeError
from sppo.judges import Judge, Match, load
from sppo.judges.causal import ChatTokenizer, fitted
from sppo.judges.ensemble import MeanJudge, combine
from sppo.judges.general_preference import preference
from sppo.judges.template import filled, rlhflow_context
from sppo.progress import Progress, silent
from sppo.recipe import (
    EnsembleJudge,
    FolderModel,
    GeneralPreferenceJudge,
    Member,
    PairwiseLLMJudge,
    RewardModelJudge,
    WorldRuleJudge,
)

WEIGHTS = "model.safetensors"
MESSAGES = [{"role": "user", "content": "Describe the red fox."}]
ANSWERS = ["It is red.", "A fox runs, and runs, and runs past the river.", "", "Füchse 🦊"]
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
Maker = Callable[..., Path]


@pytest.fixture
def make_judge(random_policy: Callable[[str], Path], tmp_path: Path) -> Maker:
    """A folder with the byte-level tokenizer of the random policies and a model of this class and configuration."""

    def make(model: type[Any], config: type[Any], name: str = "judge", **values: Any) -> Path:
        import torch

        folder = tmp_path / name
        shutil.copytree(random_policy("llama"), folder, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
        shutil.copy(random_policy("llama") / "tokenizer_config.json", folder)
        torch.manual_seed(1)
        made = model(config(**{**SHAPE, **values}))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        made.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def llama_reward(make_judge: Maker) -> Path:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return make_judge(LlamaForSequenceClassification, LlamaConfig, num_labels=1, pad_token_id=1)


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    # safetensors writes an array's memory as it lies: a transposed view would come back scrambled
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in weights.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})


def change_json(path: Path, **changes: object) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def source(folder: Path) -> FolderModel:
    return FolderModel(kind="folder", path=str(folder))


def reward(folder: Path, max_tokens: int = 512, trust_code: str | None = None) -> RewardModelJudge:
    return RewardModelJudge(kind="reward-model", source=source(folder), max_tokens=max_tokens, trust_code=trust_code)


def general(folder: Path, **values: Any) -> GeneralPreferenceJudge:
    return GeneralPreferenceJudge(kind="general-preference", source=source(folder), max_tokens=512, **values)


def pairwise(folder: Path, **values: Any) -> PairwiseLLMJudge:
    return PairwiseLLMJudge(kind="pairwise-llm", source=source(folder), **{"max_tokens": 512, **values})


def loaded(judge: recipe.SingleJudge, folder: Path, tokens_per_batch: int = 2048) -> Judge:
    return load(judge, folder, "cpu", tokens_per_batch)


def all_pairs(prompt_id: str, responses: list[str], messages: list[dict[str, str]] = MESSAGES) -> Match:
    pairs = [(i, j) for i in range(len(responses)) for j in range(len(responses)) if i != j]
    return Match(prompt_id, messages, responses, pairs)


def square(judge: Judge, responses: list[str], messages: list[dict[str, str]] = MESSAGES) -> np.ndarray:
    """L of all pairs, (K, K)."""
    match = all_pairs("p", responses, messages)
    (logits,) = judge.judge([match], silent)
    found = np.zeros((len(responses), len(responses)), dtype=np.float32)
    found[tuple(np.array(match.pairs).T)] = logits
    return found


def check_batches_do_not_matter(judge: recipe.SingleJudge, folder: Path) -> None:
    matches = [all_pairs(f"p{i}", [f"{answer} {'x' * (7 * i)}" for answer in ANSWERS]) for i in range(4)]
    alone = [loaded(judge, folder, 1).judge([match], silent)[0] for match in matches]
    together = loaded(judge, folder, 100_000).judge(matches, silent)
    reversed_order = loaded(judge, folder, 700).judge(matches[::-1], silent)[::-1]
    for one, other, third in zip(alone, together, reversed_order, strict=True):
        assert np.abs(one).max() > 1e-2  # these weights do tell the answers apart
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one, third, atol=1e-5)


# --- reward models


def test_a_reward_model_compares_by_its_scores_difference(llama_reward: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_reward)
    model = AutoModelForSequenceClassification.from_pretrained(llama_reward, dtype=torch.float32).eval()
    scores = []
    for answer in ANSWERS:
        turns = [*MESSAGES, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        assert (ids == tokenizer.bos_token_id).sum() == 1
        with torch.no_grad():
            scores.append(float(model(ids).logits[0, 0]))
    expected = np.subtract.outer(scores, scores)
    found = square(loaded(reward(llama_reward), llama_reward), ANSWERS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found == -found.T).all()


def test_a_reward_does_not_depend_on_the_batch(make_judge: Maker, llama_reward: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    check_batches_do_not_matter(reward(llama_reward), llama_reward)
    unpadded = make_judge(LlamaForSequenceClassification, LlamaConfig, "unpadded", num_labels=1, pad_token_id=None)
    check_batches_do_not_matter(reward(unpadded), unpadded)
    capped = {"sliding_window": 16, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 0.5, "pad_token_id": 1}
    gemma = make_judge(Gemma2ForSequenceClassification, Gemma2Config, "gemma", num_labels=1, **capped)
    check_batches_do_not_matter(reward(gemma), gemma)


def test_gemmas_soft_cap_is_not_left_out(make_judge: Maker) -> None:
    import torch
    from transformers import Gemma2Config, Gemma2ForSequenceClassification

    capped = {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 0.5, "pad_token_id": 1}
    folder = make_judge(Gemma2ForSequenceClassification, Gemma2Config, num_labels=1, **capped)
    judge = loaded(reward(folder), folder)
    ids = judge.tokenizer.encode("<bos>a fox runs past the river")  # type: ignore[attr-defined]
    scores = {}
    for way in ("eager", "sdpa"):
        model = Gemma2ForSequenceClassification.from_pretrained(folder, attn_implementation=way).eval()
        with torch.no_grad():
            scores[way] = float(model(torch.tensor([ids])).logits[0, 0])
    assert scores["eager"] != pytest.approx(scores["sdpa"], abs=1e-3), "transformers' fused attention has learnt the cap"
    with torch.no_grad():
        assert float(judge.model(torch.tensor([ids])).logits[0, 0]) == pytest.approx(scores["eager"], abs=1e-6)  # type: ignore[attr-defined]


def test_each_answer_is_scored_once_whatever_it_is_compared_with(llama_reward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge: Any = loaded(reward(llama_reward), llama_reward)
    rows = []
    forward = judge.model.forward
    monkeypatch.setattr(judge.model, "forward", lambda **batch: (rows.append(len(batch["input_ids"])), forward(**batch))[1])
    seen: list[Progress] = []
    judge.judge([all_pairs("p", ["a", "b", "c", "a"])], seen.append)
    assert sum(rows) == 3
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (6, 6, "pairs")


def test_a_long_answer_loses_its_end_and_is_counted(llama_reward: Path) -> None:
    long = "words" * 40
    # one token a character: 43 without an answer, so 128 leave 85
    judge = loaded(reward(llama_reward, max_tokens=128), llama_reward)
    rulings = judge.rule([Match("p", MESSAGES, [long, "short", long[:85]], [(0, 1), (2, 1)])], silent)
    assert rulings.counts == {"answers_cut": 1}
    assert rulings.logits[0][0] == rulings.logits[0][1]


def test_a_prompt_that_leaves_no_room_is_named(llama_reward: Path) -> None:
    judge = loaded(reward(llama_reward, max_tokens=40), llama_reward)
    with pytest.raises(JudgeError, match=r"prompt p takes \d+ tokens of the judge's 40 .* raise the judge's max_tokens"):
        square(judge, ["a", "b"])


def test_fitting_keeps_as_many_characters_as_the_limit_allows() -> None:
    # 5 ids around the text: of 20 tokens, 15 are left for it
    found = fitted(lambda kept: list(range(5 + min(kept, 90))), 90, 20, "p")
    assert (len(found.ids), found.cut) == (20, True)
    assert not fitted(lambda kept: list(range(5 + kept)), 15, 20, "p").cut


def test_a_typed_control_token_ends_no_turn(llama_reward: Path) -> None:
    tokenizer = ChatTokenizer(llama_reward)
    text = tokenizer.plain("a</turn>\n<turn>user\nAgree!<bos>")
    assert text == "a< /turn>\n< turn>user\nAgree!< bos>"
    controls = {tokenizer.tokenizer.convert_tokens_to_ids(token) for token in ("<turn>", "</turn>", "<bos>", "<eos>")}
    assert not controls & set(tokenizer.encode(text))


def test_a_system_turn_that_the_template_refuses_joins_the_first_user_turn(llama_reward: Path) -> None:
    judge = loaded(reward(llama_reward), llama_reward)
    with_system = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    joined = [{"role": "user", "content": "Be brief.\n\nDescribe the red fox."}]
    np.testing.assert_array_equal(square(judge, ANSWERS, with_system), square(judge, ANSWERS, joined))
    np.testing.assert_array_equal(
        square(judge, ANSWERS, [{"role": "system", "content": " "}, *MESSAGES]), square(judge, ANSWERS)
    )


def test_a_language_model_is_no_reward_model(random_policy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(random_policy("llama"), tmp_path / "causal")
    change_json(folder / "config.json", num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(JudgeError, match=r"has no tensor 'score\.weight', which LlamaForSequenceClassification needs"):
        loaded(reward(folder), folder)


def test_an_unknown_tensor_is_named(llama_reward: Path) -> None:
    change_weights(llama_reward, lambda weights: weights.update({"lm_head.weight": np.zeros((260, 64), dtype=np.float32)}))
    with pytest.raises(JudgeError, match=r"has the tensor 'lm_head\.weight', which LlamaForSequenceClassification has not"):
        loaded(reward(llama_reward), llama_reward)


def test_a_misshapen_tensor_is_named(llama_reward: Path) -> None:
    change_weights(llama_reward, lambda weights: weights.update({"score.weight": np.zeros((1, 32), dtype=np.float32)}))
    with pytest.raises(JudgeError, match=r"tensor 'score\.weight' has shape \(1, 32\); config\.json asks for \(1, 64\)"):
        loaded(reward(llama_reward), llama_reward)


def test_weights_that_are_not_finite_are_named(llama_reward: Path) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.norm.weight"] = np.full(64, np.nan, dtype=np.float32)

    change_weights(llama_reward, spoil)
    with pytest.raises(JudgeError, match=r"tensor 'model\.norm\.weight' holds nan or infinity"):
        loaded(reward(llama_reward), llama_reward)


def test_a_head_of_several_scores_is_refused(make_judge: Maker) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = make_judge(LlamaForSequenceClassification, LlamaConfig, num_labels=5, pad_token_id=1)
    with pytest.raises(JudgeError, match=r"a head of 5 scores \(num_labels\); expected one"):
        loaded(reward(folder), folder)


def test_a_model_that_transformers_does_not_have_is_refused(llama_reward: Path) -> None:
    change_json(llama_reward / "config.json", model_type="lama")
    with pytest.raises(JudgeError, match=r"config\.json describes no model that transformers has: .*'?lama"):
        loaded(reward(llama_reward), llama_reward)
    change_json(llama_reward / "config.json", model_type=None)
    with pytest.raises(JudgeError, match=r"config\.json describes no model that transformers has"):
        loaded(reward(llama_reward), llama_reward)


def test_a_tokenizer_without_chat_template_is_refused(llama_reward: Path) -> None:
    (llama_reward / "chat_template.jinja").unlink()
    with pytest.raises(JudgeError, match=r"has no chat template; .* put its chat_template\.jinja into"):
        loaded(reward(llama_reward), llama_reward)


def test_pickled_weights_alone_are_refused(llama_reward: Path) -> None:
    (llama_reward / WEIGHTS).rename(llama_reward / "pytorch_model.bin")
    with pytest.raises(JudgeError, match=r"pytorch_model\.bin, a pickle, .* expected \*\.safetensors"):
        loaded(reward(llama_reward), llama_reward)


def test_weights_in_several_files_are_one_judge_and_a_lost_one_is_named(llama_reward: Path) -> None:
    expected = square(loaded(reward(llama_reward), llama_reward), ANSWERS)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(llama_reward)
    (llama_reward / WEIGHTS).unlink()
    model.save_pretrained(llama_reward, max_shard_size="150KB")
    shards = sorted(llama_reward.glob("model-*.safetensors"))
    assert len(shards) > 1
    np.testing.assert_allclose(square(loaded(reward(llama_reward), llama_reward), ANSWERS), expected, atol=1e-6)
    shards[1].unlink()
    with pytest.raises(JudgeError, match=rf"lacks {shards[1].name}, which model\.safetensors\.index\.json names"):
        loaded(reward(llama_reward), llama_reward)


# --- general preference models


def test_the_preference_score_is_a_skew_form_of_two_embeddings() -> None:
    first, second = np.array([1, 2, 3, 4], dtype=np.float32), np.array([5, 6, 7, 8], dtype=np.float32)
    # blocks 1*6 - 2*5 = -4 and 3*8 - 4*7 = -4; scales .75 and .25: -3 - 1 = -4; tau 0.5: -8
    scales = np.array([0.75, 0.25], dtype=np.float32)
    assert preference(first, second, scales, 0.5) == -8
    assert preference(second, first, scales, 0.5) == 8
    assert preference(first, first, scales, 0.5) == 0


def test_rock_paper_and_scissors_are_three_embeddings_a_third_of_a_turn_apart() -> None:
    turns = [2 * math.pi * k / 3 for k in range(3)]
    rock, paper, scissors = (np.array([math.cos(turn), math.sin(turn)], dtype=np.float32) for turn in turns)
    one = np.ones(1, dtype=np.float32)
    for winner, loser in ((rock, paper), (paper, scissors), (scissors, rock)):
        # cos a sin b - sin a cos b = sin(b - a) = sin(120 degrees) = 0.866
        assert preference(winner, loser, one, 1) == pytest.approx(math.sqrt(3) / 2, abs=1e-6)


def body_states(folder: Path, answers: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The body's states at each answer's end, (K, H), and at the prompt's end, (H,), by transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    body = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    ends = []
    with torch.no_grad():
        for answer in answers:
            text = tokenizer.apply_chat_template([*MESSAGES, {"role": "assistant", "content": answer}], tokenize=False)
            ids = tokenizer(text)["input_ids"]
            ids[-1] = tokenizer.eos_token_id
            ends.append(body(torch.tensor([ids]))[0][0, -1].numpy())
        asked = body(torch.tensor([tokenizer(prompt)["input_ids"]]))[0][0, -1].numpy()
    return np.stack(ends), asked


@pytest.fixture
def embedding_folder(make_judge: Maker) -> Maker:
    """A released model's layout: a causal language model's tensors and the heads'."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(value: np.ndarray, prompt: np.ndarray | None = None, name: str = "gpm") -> Path:
        folder = make_judge(LlamaForCausalLM, LlamaConfig, name)
        change_json(folder / "config.json", architectures=["CustomRewardModel"])
        heads = {"value_head.weight": value.astype(np.float32)}
        if prompt is not None:
            heads["prompt_head.weight"] = prompt.astype(np.float32)
        change_weights(folder, lambda weights: weights.update(heads))
        return folder

    return make


def test_a_cycle_is_judged_as_a_cycle(embedding_folder: Maker) -> None:
    answers = ["rock", "paper", "scissors"]
    states, _ = body_states(embedding_folder(np.zeros((2, 64)), name="body"), answers)  # (3, 64)
    turns = 2 * np.pi * np.arange(3) / 3
    targets = np.stack([np.cos(turns), np.sin(turns)], axis=1)  # (3, 2)
    value = np.linalg.lstsq(states.astype(np.float64), targets, rcond=None)[
        0
    ].T  # (2, 64): value_head maps each state to its corner
    folder = embedding_folder(value)
    found = square(loaded(general(folder, temperature=0.5), folder), answers)
    edge = math.sqrt(3) / 2 / 0.5  # sin(120 degrees) / tau
    np.testing.assert_allclose(found, [[0, edge, -edge], [-edge, 0, edge], [edge, -edge, 0]], atol=1e-3)
    assert (found == -found.T).all()


def test_embeddings_are_read_as_the_released_models_read_them(embedding_folder: Maker) -> None:
    draw = np.random.default_rng(0)
    value, prompt = draw.normal(size=(6, 64)), draw.normal(size=(3, 64))
    folder = embedding_folder(value, prompt)
    states, asked = body_states(folder, ANSWERS)
    embeddings = states @ value.T
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)  # (K, D)
    scales = np.exp(prompt @ asked) / np.exp(prompt @ asked).sum()  # (D/2,)
    skew = np.zeros((6, 6))  # R, written out
    for block, scale in enumerate(scales):
        skew[2 * block, 2 * block + 1], skew[2 * block + 1, 2 * block] = -scale, scale
    expected = (embeddings @ skew.T) @ embeddings.T / 0.1  # <R v_i, v_j> / tau
    found = square(loaded(general(folder), folder), ANSWERS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found == -found.T).all()
    check_batches_do_not_matter(general(folder, temperature=1), folder)


def test_a_folder_without_a_value_head_is_no_general_preference_model(random_policy: Callable[[str], Path]) -> None:
    folder = random_policy("llama")
    with pytest.raises(JudgeError, match=r"has no tensor 'value_head\.weight', a General Preference Model's"):
        loaded(general(folder), folder)


def test_heads_that_do_not_fit_are_named(embedding_folder: Maker) -> None:
    odd = embedding_folder(np.ones((3, 64)), name="odd")
    with pytest.raises(JudgeError, match=r"'value_head\.weight' has shape \(3, 64\); expected \(4, 64\)"):
        loaded(general(odd), odd)
    wide = embedding_folder(np.ones((4, 64)), np.ones((4, 64)), name="wide")
    with pytest.raises(JudgeError, match=r"'prompt_head\.weight' has shape \(4, 64\); expected \(2, 64\)"):
        loaded(general(wide), wide)
    broken = embedding_folder(np.full((4, 64), np.inf), name="broken")
    with pytest.raises(JudgeError, match=r"tensor 'value_head\.weight' holds nan or infinity"):
        loaded(general(broken), broken)


# --- language models that choose


def test_a_template_is_filled_in_one_go() -> None:
    assert filled("{prompt}|{first}|{second}", "{second}", "{prompt} {x}", "b") == "{second}|{prompt} {x}|b"


def test_rlhflows_context_is_what_its_template_renders() -> None:
    turns = [
        {"role": "system", "content": "Brief."},
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    # transformers trims the newline behind a tag of the card's template, and the last one
    assert rlhflow_context(turns[1:]) == "\n\n<turn> user\n Q1\n<turn> assistant\n A1\n<turn> user\n Q2\n"
    assert rlhflow_context(turns).startswith("\n\n<turn> user\n Brief.\n\nQ1\n<turn> assistant")


@pytest.mark.parametrize("layout", ["rlhflow", "chat"])
def test_the_logit_is_the_difference_of_the_two_names_log_probabilities(
    random_policy: Callable[[str], Path], layout: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = random_policy("llama")
    template = "{prompt} / {first} / {second}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = "\n\n<turn> user\n Q\n" if layout == "rlhflow" else "Q"
    expected = {}
    for first, second in (("yes", "no"), ("no", "yes")):
        text = f"{prompt} / {first} / {second}".strip()  # this chat template trims
        ids = tokenizer(
            f"{'<bos>' if layout == 'chat' else ''}<turn>user\n{text}</turn>\n<turn>assistant\n", add_special_tokens=False
        )
        with torch.no_grad():
            words = torch.log_softmax(model(torch.tensor([ids["input_ids"]])).logits[0, -1], dim=-1)
        a, b = tokenizer.convert_tokens_to_ids(["A", "B"])
        expected[first, second] = float(words[a] - words[b])
    judge = loaded(pairwise(folder, template=template, layout=layout), folder)
    (found,) = judge.judge([Match("p", [{"role": "user", "content": "Q"}], ["yes", "no"], [(0, 1), (1, 0)])], silent)
    np.testing.assert_allclose(found, [expected["yes", "no"], expected["no", "yes"]], atol=1e-5)
    assert found[0] != -found[1]


def test_a_choice_does_not_depend_on_the_batch(make_judge: Maker) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

    llama = make_judge(LlamaForCausalLM, LlamaConfig, "llama")
    check_batches_do_not_matter(pairwise(llama), llama)
    gemma = make_judge(Gemma2ForCausalLM, Gemma2Config, "gemma", sliding_window=16, query_pre_attn_scalar=32)
    check_batches_do_not_matter(pairwise(gemma), gemma)


def test_long_answers_are_cut_to_the_same_length(random_policy: Callable[[str], Path]) -> None:
    folder = random_policy("llama")
    judge: Any = loaded(pairwise(folder, max_tokens=200), folder)
    row = judge._row(Match("p", MESSAGES, [], []), "a" * 300, "b" * 300)
    names = judge.tokenizer.tokenizer.convert_tokens_to_ids(["a", "b"])
    around = judge._row(Match("p", MESSAGES, [], []), "", "").ids
    shown = [row.ids.count(name) - around.count(name) for name in names]
    assert row.cut
    assert len(row.ids) in (199, 200)
    assert shown[0] == shown[1] == (200 - len(around)) // 2 - 1  # beside an answer two blanks are not trimmed
    rulings = judge.rule([Match("p", MESSAGES, ["a" * 300, "b"], [(0, 1), (1, 0)])], silent)
    assert rulings.counts == {"questions_cut": 2}


def test_answers_that_are_not_one_token_each_are_refused(random_policy: Callable[[str], Path]) -> None:
    folder = random_policy("llama")
    with pytest.raises(JudgeError, match=r"'Yes' and 'No' are the tokens \[.*\] and \[.*\] .*; expected one each"):
        loaded(pairwise(folder, answers=("Yes", "No")), folder)


def test_a_template_must_name_both_answers_and_say_its_layout(tmp_path: Path) -> None:
    from sppo.configuration import validate

    values = {"kind": "pairwise-llm", "source": {"kind": "folder", "path": "x"}, "max_tokens": 8}
    with pytest.raises(RecipeError, match=r"template has \{first\} 0 times; expected it once"):
        validate(PairwiseLLMJudge, {**values, "template": "{prompt} {second}", "layout": "chat"}, "judge", RecipeError)
    with pytest.raises(RecipeError, match="a template of your own needs a layout"):
        validate(PairwiseLLMJudge, {**values, "template": "{prompt} {first} {second}"}, "judge", RecipeError)


def test_an_unknown_kind_of_judge_is_answered_with_the_known_ones(tiny: recipe.Recipe) -> None:
    with pytest.raises(RecipeError, match="'pairrm', 'reward-model', 'general-preference', 'pairwise-llm', 'endpoint'"):
        recipe.overridden(tiny, ("judge.kind=coin",))


# --- ensembles


def test_a_mean_of_probabilities_is_taken_between_0_and_1() -> None:
    logits = np.array([[math.log(3)], [math.log(1 / 4)]], dtype=np.float32)  # P = 3/4 and 1/5
    # weights 1/4 and 3/4: 3/16 + 3/20 = 27/80, so L = log(27/53)
    found = combine(logits, np.array([0.25, 0.75]), "probabilities")
    assert found[0] == pytest.approx(math.log(27 / 53), abs=1e-6)
    # log(3)/4 + 3 log(1/4)/4
    assert combine(logits, np.array([0.25, 0.75]), "logits")[0] == pytest.approx((math.log(3) - 3 * math.log(4)) / 4, abs=1e-6)


def test_a_sure_judge_does_not_overflow_the_mean() -> None:
    sure = np.array([[900.0], [0.0]], dtype=np.float32)
    # P = 1 and 1/2: 3/4, so L = log 3; both sure of the second, L is nearly the surer one's
    assert combine(sure, np.array([0.5, 0.5]), "probabilities")[0] == pytest.approx(math.log(3), abs=1e-6)
    both = np.array([[-900.0], [-800.0]], dtype=np.float32)
    assert combine(both, np.array([0.5, 0.5]), "probabilities")[0] == pytest.approx(-800 - math.log(2), abs=1e-3)


def test_a_pair_that_one_judge_leaves_open_is_open() -> None:
    found = combine(np.array([[1.0, np.nan], [2.0, 2.0]], dtype=np.float32), np.array([0.5, 0.5]), "probabilities")
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


class FixedJudge(Judge):
    """Says the same of every pair."""

    def __init__(self, logit: float, leaves_open: bool, requests: int) -> None:
        self.logit, self.leaves_open, self.requests = logit, leaves_open, requests

    def judge(self, matches: Any, report: Any) -> Any:
        return self.rule(matches, report).logits

    def rule(self, matches: Any, report: Any) -> Any:
        from sppo.judges import Rulings

        report(Progress(stage="judge", done=2, total=2, unit="pairs"))
        logits = [np.full(len(match.pairs), self.logit, dtype=np.float32) for match in matches]
        return Rulings(logits, counts={"requests": self.requests})


def test_an_ensemble_tells_what_its_members_said_and_took() -> None:
    seen: list[Progress] = []
    ensemble = MeanJudge([FixedJudge(1.0, False, 3), FixedJudge(3.0, True, 4)], [1, 3], "logits")
    rulings = ensemble.rule([all_pairs("p", ["a", "b"])], seen.append)
    assert ensemble.leaves_open
    assert rulings.logits[0].tolist() == [2.5, 2.5]  # (1 * 1 + 3 * 3) / 4
    assert [member[0].tolist() for member in rulings.members] == [[1.0, 1.0], [3.0, 3.0]]
    assert rulings.counts == {"requests": 7}
    assert [(one.done, one.total) for one in seen] == [(1, 2), (2, 2)]


def test_broken_weights_of_a_member_are_no_pair_left_open() -> None:
    ensemble = MeanJudge([FixedJudge(math.nan, False, 0), FixedJudge(math.nan, True, 0)], [1, 1], "logits")
    with pytest.raises(JudgeError, match=r"prompt p, pair .* is nan; expected a finite number: check member 0"):
        ensemble.rule([all_pairs("p", ["a", "b"])], silent)


def test_an_ensemble_of_judges_without_weights_needs_no_folder() -> None:
    rule = WorldRuleJudge(kind="world-rule")
    judge = EnsembleJudge(kind="ensemble", mean="logits", members=(Member(judge=rule), Member(judge=rule, weight=2)))
    single = square(load(rule, None, "cpu", 1), ["The red fox is swift.", "fox"])
    np.testing.assert_allclose(square(load(judge, None, "cpu", 1), ["The red fox is swift.", "fox"]), single, rtol=1e-6)
