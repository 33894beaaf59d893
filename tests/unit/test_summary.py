"""Pages for people: what a model wrote stays text, whatever it wrote; and the numbers stand where they belong."""

import base64
import json
import re
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from sppo import chart
from sppo.hardware import Hardware
from sppo.launch import WorkRecord
from sppo.markdown import escaped, image, table
from sppo.recipe import Recipe
from sppo.records import Prompt, Response, to_table
from sppo.runs import IterationIndex, Setup, start, write_iteration
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.summary import artifact_markdown, chart_of, iteration_markdown, machines

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](http://tracker.example/x.png)",
    "[click](javascript:alert(1))",
    "| a | pipe |\n|---|---|",
    "`code` and ```fence```",
    "# heading\n\n> quote\n- list\n1. one",
    "**bold** __bold__ ~~gone~~ $x$",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "https://auto.example/x www.auto.example me@auto.example",
    "\u202egpj.exe\u2066 hidden \u200b\x07\x1b[31m\u2028",
    "[^1]: note\\",
    "\ud800 \ue000",
]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_of_a_text_is_left_that_markdown_or_html_could_read(text: str) -> None:
    shown = escaped(text, 500)
    assert not set(re.sub(r"&#\d+;|<br>|<wbr>", "", shown)) & set("<>&[]|`*_~#\\"), shown
    assert not re.search(r"(?i)://|www\.|(?<!<wbr>)@", shown)
    assert "\n" not in shown
    assert all(letter.isprintable() for letter in shown)


def test_a_text_is_shown_letter_by_letter_as_it_was() -> None:
    assert escaped("a|b", 10) == "a&#124;b"  # ord("|") = 124
    assert escaped("<b>", 10) == "&#60;b&#62;"
    assert escaped("one\r\ntwo", 10) == "one<br>two"
    assert escaped("x  y", 10) == "x &#160;y"  # or HTML would join the two spaces
    assert escaped("Grüße 你好 🙂", 20) == "Grüße 你好 🙂"


def test_what_reorders_or_hides_is_shown_by_its_number() -> None:
    assert escaped("\u202egpj", 10) == "⟨U+202E⟩gpj"
    assert escaped("a\x00b\u200bc", 10) == "a⟨U+0000⟩b⟨U+200B⟩c"


def test_an_address_is_cut_so_that_no_renderer_makes_a_link_of_it() -> None:
    assert escaped("http://a", 20) == "http:<wbr>//a"
    assert escaped("www.a", 20) == "www<wbr>.a"
    assert escaped("me@a", 20) == "me<wbr>@a"


def test_a_long_text_is_cut_at_the_limit_before_it_is_escaped() -> None:
    assert escaped("<" * 10, 4) == "&#60;&#60;&#60;…"


def test_a_table_is_a_line_for_each_row() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_a_picture_is_inside_the_page() -> None:
    content = re.fullmatch(r"!\[one\]\(data:image/svg\+xml;base64,(.*)\)\n", image("<svg/>", "one"))
    assert content is not None
    assert base64.b64decode(content[1]) == b"<svg/>"


def elements(svg: str, name: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f".//{{http://www.w3.org/2000/svg}}{name}")


def test_a_line_goes_from_corner_to_corner_of_its_values() -> None:
    [line] = elements(chart.lines("loss", {"": [3.0, 1.0]}, "step"), "polyline")
    # 640 wide less 64 left and 16 right; 240 high less 44 above and 40 below: the first value is the highest
    assert line.attrib["points"] == "64.0,44.0 624.0,200.0"


def test_a_long_line_is_drawn_by_means_of_neighbours() -> None:
    [line] = elements(chart.lines("loss", {"": [0.0, 1.0] * 4000}, "step"), "polyline")
    assert len(line.attrib["points"].split()) == 400


def test_a_histogram_counts_values_in_equal_parts() -> None:
    bars = elements(chart.histogram("P", np.array([0.1, 0.1, 0.9]), "P", (0.0, 1.0), bins=2), "rect")[1:]
    # 2 and 1 of 3: the higher takes all 156 units of height, the other half
    assert [bar.attrib["height"] for bar in bars] == ["156.0", "78.0"]


def test_an_interval_chart_has_a_row_for_each_rate() -> None:
    rows = [("pairrm, against base policy", 0.6, 0.5, 0.7), ("<rule>", 0.5, 0.5, 0.5)]
    svg = chart.intervals("rates", rows, "win rate", 0.5)
    assert len(elements(svg, "circle")) == 2
    assert "<rule>" in [text.text for text in elements(svg, "text")]


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-9, 7e12])
def test_equal_values_have_a_chart_too(value: float) -> None:
    assert elements(chart.lines("loss", {"": [value]}, "step"), "polyline")


def commit(
    store: Store, stage: str, files: dict[str, str], tables: dict[str, pa.Table], log: str = "", name: str = ""
) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        for name, text in files.items():
            workspace.add_text(text, name)
        for name, rows in tables.items():
            workspace.add_table(rows, name)
        if log:
            path = workspace.folder / "metrics.jsonl"
            path.write_text(log)
            workspace.add_log(path)
        return Outcome("made", {"prompts": 20_000}, {"last_loss": 0.0123456})

    return store.build(Step(Identity(stage, 1, {"name": name}, {"policy": "0" * 64}), run))


def record(host: str, devices: tuple[str, ...]) -> WorkRecord:
    return WorkRecord(
        stage="train",
        fingerprint="0" * 64,
        number=1,
        of=1,
        attempt="a",
        host=host,
        process=1,
        devices=devices,
        state="done",
        begun="2026-01-01T00:00:00+00:00",
        at="2026-01-01T00:00:00+00:00",
    )


def test_an_artifacts_page_tells_numbers_machines_files_and_logs(store: Store) -> None:
    steps = [
        {"loss": 0.5, "log_ratio_best": 0.0, "log_ratio_worst": 0.0},
        {"loss": 0.25, "log_ratio_best": 1.0, "log_ratio_worst": -1},
    ]
    trained = commit(store, "train", {"config.json": "{}"}, {}, "".join(json.dumps(step) + "\n" for step in steps))
    page = artifact_markdown(trained, "s3://bucket/runs", [record("gpu-1", ("0", "1"))])
    assert page.startswith(f"### {trained.name}\n")
    assert "| prompts | 20,000 |" in page
    assert "| last loss | 0.0123456 |" in page
    assert "| made by | gpu-1: 0, 1 |" in page
    [config] = trained.manifest.files
    assert f"| config.json | 2 | files/{config.sha256[:16]}/config.json |" in page
    assert "| log metrics.jsonl |" in page
    assert f"s3:<wbr>//bucket/runs/train/{trained.manifest.fingerprint}" in page
    assert page.count("](data:image/svg+xml;base64,") == 1


def test_a_machine_without_devices_computes_on_its_cpu() -> None:
    assert machines([record("laptop", ())]) == ["laptop: CPU"]


def test_of_very_many_files_the_rest_is_counted(store: Store) -> None:
    many = commit(store, "split", {f"part-{number:02d}.txt": "x" for number in range(14)}, {})
    assert "| 2 more | 2 |  |" in artifact_markdown(many, store.url, [])


def test_stages_with_something_to_see_have_a_chart(store: Store) -> None:
    targets = commit(store, "estimate", {}, {"targets.parquet": pa.table({"win_probability": [0.25, 0.75]})})
    answers = commit(store, "generate", {}, {"chunk-00000.parquet": pa.table({"token_ids": [[1, 2], [3]]})})
    rate = {"win_rate": {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 4}, "iteration": 0}
    report = {"iteration": 1, "judges": [{"judge": "pairrm", "independent": False, "against": [rate]}], "lengths": []}
    evaluated = commit(store, "evaluate", {"report.json": json.dumps(report)}, {})
    for made, title in ((targets, "Win probabilities of 2 responses"), (answers, "Lengths of 2 responses")):
        assert title in str(chart_of(made))
    assert "pairrm, against base policy" in str(chart_of(evaluated))
    assert chart_of(commit(store, "split", {}, {})) is None


def evaluation(iteration: int, means: list[float]) -> str:
    against = [
        {"iteration": number, "win_rate": {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": len(NASTY)}}
        for number, mean in enumerate(means)
    ]
    lengths = [{"iteration": number, "mean_tokens": 10.0, "cut_share": 0.0} for number in range(iteration + 1)]
    judges = [{"judge": "pairrm", "independent": False, "against": against}]
    return json.dumps({"iteration": iteration, "judges": judges, "lengths": lengths})


@pytest.fixture
def indexes(tiny: Recipe, cpu: Hardware, store: Store) -> list[IterationIndex]:
    """Two iterations of a run whose prompts and answers hold all that is nasty."""
    nasty = [text for text in NASTY if "\ud800" not in text]  # refused by Arrow
    whole = "".join(nasty)
    prompts = [Prompt(f"{number}", [{"role": "user", "content": whole}], [1]) for number in range(4)]
    split = commit(store, "split", {}, {"test.parquet": to_table(Prompt, prompts)})
    samples = []
    for policy in range(3):
        rows = [Response(prompt.prompt_id, 0, [1], f"pi {policy} {whole}", "stop", [0.0], 0) for prompt in prompts]
        samples.append(commit(store, "sample", {}, {"chunk-00000.parquet": to_table(Response, rows)}, name=str(policy)))
    setup = Setup("demo_1", start(store, "demo_1", tiny, lambda recipe: recipe), cpu, store)
    found = []
    for number, means in ((1, [0.6]), (2, [0.7, 0.61])):
        evaluated = commit(store, "evaluate", {"report.json": evaluation(number, means)}, {}, name=str(number))
        found.append(write_iteration(setup, number, {"split": split, "evaluate": evaluated}, samples[: number + 1], []))
    return found


def test_an_iterations_page_tells_win_rates_of_it_and_those_before(store: Store, indexes: list[IterationIndex]) -> None:
    page = iteration_markdown(store, indexes[1], {indexes[1].artifacts["split"].reference: "../artifact/7"})
    assert page.startswith("# demo&#95;1 · iteration 2\n")
    assert "**Win rate 0.700 [0.650, 0.750]** against the base policy on 13 held-out prompts, 0.610 against" in page
    assert "| 1 | 0.600 [0.550, 0.650] | 0.600 | 10.0 |" in page
    assert f"| split | [split/{indexes[1].artifacts['split'].reference[6:14]}](../artifact/7) |" in page
    assert "| prompt | base policy | iteration 1 | iteration 2 |" in page


def test_an_earlier_iterations_page_knows_nothing_of_later_ones(store: Store, indexes: list[IterationIndex]) -> None:
    page = iteration_markdown(store, indexes[0], {})
    assert "0.700" not in page
    assert "| prompt | base policy | iteration 1 |\n" in page


def test_three_prompts_stand_beside_their_answers_and_none_of_their_markup_is_left(
    store: Store, indexes: list[IterationIndex]
) -> None:
    page = iteration_markdown(store, indexes[1], {})
    answers = page.partition("answers of one draw\n")[2].partition("## Seconds")[0].strip().splitlines()
    assert len(answers) == 2 + 3  # head and line of the table, then the prompts
    for line in answers[2:]:
        assert line.count("|") == 5
        assert not set(re.sub(r"&#\d+;|<br>|<wbr>", "", line)) & set("<>&[]`*_~#\\")
