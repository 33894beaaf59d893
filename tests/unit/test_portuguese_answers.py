"""How answers are read: every example of the specification, and why."""

import json
from pathlib import Path

import pytest

from sppo.portuguese.answers import INVALID, read, read_choice, read_label, read_number, similarity, without_accents
from sppo.portuguese.tasks import TASKS

SPECIFICATION = Path(__file__).resolve().parents[3] / "shared" / "data" / "open_pt_llm_leaderboard.json"
FIVE = ("A", "B", "C", "D", "E")
YES_NO = ("Sim", "Não")


def test_every_example_of_the_specification_is_read_as_it_says() -> None:
    if not SPECIFICATION.is_file():
        pytest.skip("the specification is not here")
    examples = json.loads(SPECIFICATION.read_text(encoding="utf-8"))["filter_examples"]
    readers = {
        "choice A-E": lambda text: read_choice(text, FIVE),
        "choice A-D": lambda text: read_choice(text, FIVE[:4]),
        "label Sim/Não": lambda text: read_label(text, YES_NO),
        "label Positivo/Neutro/Negativo": lambda text: read_label(text, ("Positivo", "Neutro", "Negativo")),
        "number 1..5": read_number,
    }
    assert examples.keys() == readers.keys()
    wrong = [
        (kind, text, expected, readers[kind](text))
        for kind, rows in examples.items()
        for text, expected in rows
        if readers[kind](text) != expected
    ]
    assert not wrong
    assert sum(map(len, examples.values())) == 200


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        (" B \n", "B"),  # the letter alone
        ("A ou B? Alternativa: C", "C"),  # after a word that announces it, though A and B come first
        ("opção D)", "D"),  # accents do not count
        ("a resposta correta e E", "E"),
        ("A) ou B.", "B"),  # before a point, rather than before a bracket
        ("A sim - B", "B"),  # at the end, rather than as a word
        ("E - um: B", "E"),  # before a dash
        ("E – um", "E"),  # of whatever length
        ("penso que A é a melhor", "A"),  # as a word: here an article, as the leaderboard reads it too
        ("abc", INVALID),
        ("F", INVALID),
    ],
)
def test_a_letter_is_found_by_the_first_rule_that_finds_one(said: str, letter: str) -> None:
    assert read_choice(said, FIVE) == letter


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("NÃO", "Não"),
        ("nao, de modo algum", "Não"),
        ("Sim, e não sei mais", "Sim"),  # both are there: the beginning up to the comma decides
        ("Sin.", "Sim"),  # 1 - 1/3 = .67
        ("S", INVALID),  # 1 - 2/3 = .33
        ("", INVALID),
    ],
)
def test_a_label_is_found_whole_alone_or_nearly(said: str, label: str) -> None:
    assert read_label(said, YES_NO) == label


def test_of_two_labels_as_near_the_first_is_taken() -> None:
    # "nemtro": 1 - 1/6 of Neutro; "nega, posi": cut to "nega" = 1 - 4/8 = .5 of Negativo
    labels = ("Positivo", "Neutro", "Negativo")
    assert read_label("nemtro", labels) == "Neutro"
    assert read_label("nega, posi", labels) == "Negativo"
    assert read_label("ab", ("abcd", "abef")) == "abcd"  # both 1 - 2/4


def test_a_number_has_one_decimal_point_and_lies_from_1_to_5() -> None:
    assert read_number("3,5 de 5") == 3.55  # all digits are one number
    assert read_number("nota: 4.") == 4.0
    assert read_number("1.2.3") == 1.23
    assert read_number("0,4") == 1.0
    assert read_number("73") == 5.0
    assert read_number("talvez") == 5.0
    assert read_number("...") == 5.0


def test_a_task_reads_by_its_own_rule() -> None:
    assert read(TASKS["sppo_pt_oab"], "E") == INVALID, "four alternatives"
    assert read(TASKS["sppo_pt_enem"], "E") == "E"
    assert read(TASKS["sppo_pt_assin2_sts"], "2,75") == "2.75"
    assert read(TASKS["sppo_pt_tweetsentbr"], "negativo") == "Negativo"


def test_similarity_is_one_minus_the_edit_distance_over_the_longer() -> None:
    assert similarity("sim", "sim") == 1
    assert similarity("neutro", "nuetro") == pytest.approx(1 - 2 / 6)
    assert similarity("abc", "") == 0
    assert similarity("", "") == 1


def test_letters_lose_their_marks_and_dashes_and_quotes_become_plain() -> None:
    assert without_accents("Opção “É” – ½…") == 'Opcao "E" - 1\u20442...'
