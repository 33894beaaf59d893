"""What the tiny world's two fits share, and their tokenizers."""

import random
from pathlib import Path

import pytest

from sppo.judges.segments import JudgeTokenizer
from sppo.world import judge, policy
from sppo.world.fitting import batches, warm_linear
from sppo.world.language import answer, instructions


def test_batches_hold_every_example_once_in_near_equal_lengths() -> None:
    lengths = [random.Random(1).randrange(10, 30) for _ in range(640)]
    cut = batches(lengths, 32, random.Random(2))
    assert sorted(position for batch in cut for position in batch) == list(range(640))
    assert [len(batch) for batch in cut] == [32] * 20
    # 16 batches are cut from one sorted pool of 512 lengths of 20 values: a batch spans 3 of them at most
    assert sum(max(lengths[p] for p in batch) - min(lengths[p] for p in batch) <= 2 for batch in cut) >= 16


def test_the_learning_rate_warms_up_and_falls_in_a_line() -> None:
    # 10 steps, 2 of them warm-up: 1/2, 1, then (10 - step) / 8
    assert [warm_linear(step, 10, 2) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]


def test_draws_of_weights_do_not_depend_on_torchs_own_generator() -> None:
    import torch

    from sppo.world.fitting import draw_weights

    drawn = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        layer = torch.nn.Linear(3, 4)
        draw_weights(layer, 5, 0.1)
        drawn.append(layer.weight.detach().clone())
        assert not layer.bias.any()
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("text", ["None", "a\r\nb  c\n", "\U0001f98a red foxes, they're 42!", "<bos> [INST] caf\u00e9", " "])
def test_the_policys_tokenizer_gives_any_text_back_exactly(text: str) -> None:
    tokenizer = policy.build_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_policy_reads_each_word_of_the_language_as_one_token() -> None:
    tokenizer = policy.build_tokenizer()
    draw = random.Random(0)
    for instruction in draw.sample(instructions(), 200):
        for text in (instruction.text, answer(instruction, 0.5, draw)):
            pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
            words = text.replace(".", " .").replace(",", " ,").replace("!", " !").replace("?", " ?").split()
            assert len(pieces) == len(words), text


def test_the_chat_template_renders_what_the_policy_was_fitted_on() -> None:
    tokenizer = policy.build_tokenizer()
    turns = [{"role": "user", "content": "Where is the red fox?"}]
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert shown == "<|begin|><|user|>Where is the red fox?<|end|><|assistant|>"
    turns.append({"role": "assistant", "content": "Here."})
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|begin|><|user|>Where is the red fox?<|end|><|assistant|>Here.<|end|>"
    )
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token != tokenizer.eos_token


def test_the_judge_reads_each_word_of_the_language_as_one_token_whatever_its_case(tmp_path: Path) -> None:
    judge.write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = JudgeTokenizer(tmp_path / "tokenizer.json")
    # strictly speaking , the red fox hides behind the barn .
    assert len(tokenizer.encode("Strictly speaking, the red fox hides behind the barn.")) == 11
    assert tokenizer.encode("The red  fox") == tokenizer.encode("the RED fox")
    # control tokens typed by a user are plain text
    assert tokenizer.control.candidate1 not in tokenizer.encode("<|candidate1|> [CLS]")
