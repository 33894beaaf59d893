"""Scores worked out by hand, against their libraries, and their intervals."""

import numpy as np
import pytest

from sppo.portuguese.metrics import average, score, statistic
from sppo.portuguese.tasks import TASKS
from sppo.statistics import percentile_interval, replicates

RTE = TASKS["sppo_pt_assin2_rte"]
STS = TASKS["sppo_pt_assin2_sts"]
TARGETS = ["Sim", "Sim", "Não", "Não"]
ANSWERS = ["Sim", "Não", "Não", "[invalid]"]


def test_accuracy_counts_what_cannot_be_read_as_wrong() -> None:
    assert score(RTE, "acc", TARGETS, ANSWERS) == 2 / 4


def test_macro_f1_is_over_the_labels_that_are_right_somewhere() -> None:
    # Sim: 2 x 1 / (2 right + 1 given) = 2/3; Não: 2 x 1 / (2 + 2) = 1/2; [invalid] is no label
    assert score(RTE, "f1_macro", TARGETS, ANSWERS) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_pearson_is_taken_without_its_sign_and_is_0_where_a_side_is_constant() -> None:
    assert score(STS, "pearson", ["1,0", "2,0", "3,0"], ["5.0", "4.0", "3.0"]) == pytest.approx(1)
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 / sqrt(2 x 2)
    assert score(STS, "pearson", ["1,0", "2,0", "3,0"], ["1.0", "3.0", "2.0"]) == pytest.approx(0.5)
    assert score(STS, "pearson", ["1,0", "2,0", "3,0"], ["3.3", "3.3", "3.3"]) == 0


def test_the_squared_error_is_of_the_target_as_it_is_shown() -> None:
    assert score(STS, "mse", ["3,5", "1,0"], ["3.0", "3.0"]) == pytest.approx((0.25 + 4) / 2)


def test_all_agree_with_their_libraries_on_resampled_rows() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    scipy = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    labels = draw.choice(["Positivo", "Neutro", "Negativo"], 60)
    given = np.where(draw.random(60) < 0.6, labels, draw.choice(["Positivo", "[invalid]"], 60))
    truth, said = draw.integers(10, 50, 60) / 10, draw.integers(10, 50, 60) / 10
    rows = draw.integers(60, size=(5, 60))  # (R, N)
    found = {
        "acc": statistic("acc", list(labels), list(given))(rows),
        "f1_macro": statistic("f1_macro", list(labels), list(given))(rows),
        "pearson": statistic("pearson", [str(x).replace(".", ",") for x in truth], list(map(str, said)))(rows),
        "mse": statistic("mse", list(map(str, truth)), list(map(str, said)))(rows),
    }
    for number, drawn in enumerate(rows):
        right, answer, x, y = labels[drawn], given[drawn], truth[drawn], said[drawn]
        f1 = sklearn.f1_score(right, answer, labels=np.unique(right), average="macro")
        assert found["acc"][number] == pytest.approx((right == answer).mean())
        assert found["f1_macro"][number] == pytest.approx(f1)
        assert found["pearson"][number] == pytest.approx(abs(scipy.pearsonr(x, y).statistic))
        assert found["mse"][number] == pytest.approx(((x - y) ** 2).mean())


def test_an_interval_holds_the_score_and_narrows_with_rows() -> None:
    widths = []
    for times in (10, 1000):
        of = statistic("f1_macro", TARGETS * times, ANSWERS * times)
        found = percentile_interval(0.5833, replicates(of, 4 * times, 1000, 0), 4 * times)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.2)  # as the root of 100


def test_the_average_is_the_plain_mean_of_the_nine() -> None:
    told = {name: (["A", "B"], ["A", "A"]) for name in TASKS}  # half right
    for name, task in TASKS.items():
        if task.metric == "f1_macro":
            told[name] = (["Sim", "Não"], ["Sim", "Não"])
    told["sppo_pt_assin2_sts"] = (["1,0", "3,0", "2,0"], ["1.0", "3.0", "2.0"])
    # three exams at 1/2, five F1 at 1, one correlation at 1
    interval = average(told, 500, 0)
    assert interval.value == pytest.approx((3 * 0.5 + 6) / 9)
    assert interval.n == 8 * 2 + 3
    assert interval.low < interval.value < interval.high <= 1
    assert average(told, 500, 0) == interval
    with pytest.raises(KeyError, match="sppo_pt_enem"):
        average({}, 500, 0)
