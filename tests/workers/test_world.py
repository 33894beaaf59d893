"""The tiny world's fits, in their own processes: cut short, but real."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sppo.errors import LaunchError
from sppo.fingerprint import file_sha256
from sppo.progress import Progress
from sppo.world import judge, policy
from sppo.world.language import answer, run_instructions

SEED = 5


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[dict[str, float]], list[Progress]]:
    """Policy, judge, policy, judge: each made twice with the same seed, two at a time."""
    folders = [tmp_path_factory.mktemp(name) for name in ("policy", "judge", "policy", "judge")]
    seen: list[Progress] = []
    jobs = [(policy.fit, 8), (judge.fit, 150), (policy.fit, 8), (judge.fit, 150)]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(fit, folder, SEED, seen.append, steps=steps) for (fit, steps), folder in zip(jobs, folders, strict=True)
        ]
        return folders, [run.result() for run in runs], seen


def test_the_same_seed_gives_the_same_bytes(twice: tuple[list[Path], list[dict[str, float]], list[Progress]]) -> None:
    folders, figures, _ = twice
    assert contents(folders[0]) == contents(folders[2])
    assert contents(folders[1]) == contents(folders[3])
    assert figures[0] == figures[2]
    assert figures[1] == figures[3]


def test_the_policy_is_a_llama_of_1_to_5_million_parameters(
    twice: tuple[list[Path], list[dict[str, float]], list[Progress]],
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders, figures, _ = twice
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert model.config.model_type == "llama"
    assert model.config.head_dim in (32, 64)
    assert 1e6 <= figures[0]["parameters"] == model.num_parameters() <= 5e6
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(contents(folders[0])) == {*names, "chat_template.jinja"}


def test_a_short_fit_of_the_judge_is_right_more_often_than_not_and_loads_as_a_pairrm(
    twice: tuple[list[Path], list[dict[str, float]], list[Progress]],
) -> None:
    from sppo.judges.pairrm import load_pairrm
    from sppo.judges.segments import encode_pair, pad_pairs

    folders, figures, _ = twice
    assert figures[1]["accuracy"] > 0.55  # the whole fit reaches 0.90
    network, tokenizer = load_pairrm(folders[1])
    draw = random.Random(0)
    right = 0
    for instruction in draw.sample(run_instructions(), 50):
        good, bad = answer(instruction, 1.0, draw), answer(instruction, 0.2, draw)
        orders = ((good, bad), (bad, good))
        questions = [encode_pair(tokenizer, judge.LIMITS, instruction.text, first, second) for first, second in orders]
        shown_first, shown_second = network.logits(pad_pairs(questions, tokenizer.control.pad)).tolist()
        right += shown_first - shown_second > 0  # one order alone leans to one side so early
    assert right > 35  # a good answer against a bad one


def test_a_fit_reports_its_steps(twice: tuple[list[Path], list[dict[str, float]], list[Progress]]) -> None:
    _, _, seen = twice
    last = {progress.stage: progress for progress in seen}
    assert (last["policy"].done, last["policy"].total, last["policy"].unit) == (8, 8, "steps")
    assert (last["judge"].done, last["judge"].total) == (150, 150)
    assert last["judge"].note.startswith("loss ")


def test_a_fit_that_cannot_write_fails_with_the_workers_last_lines(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "config.json").mkdir()  # no file can take this name
    with pytest.raises(LaunchError, match=r"sppo\.world\.worker ended with exit status 1(.|\n)*config\.json"):
        policy.fit(folder, SEED, steps=1)
