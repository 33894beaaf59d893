"""What artifacts `alpaca-eval` say of policies: scores for the card, and all of it again for a comparison of two."""

import json
from dataclasses import fields, replace
from typing import Any

from sppo.alpaca_eval.annotations import from_json
from sppo.alpaca_eval.length_control import LengthControlled
from sppo.alpaca_eval.report import Measured
from sppo.alpaca_eval.results import ANNOTATIONS_FILE, RATES, REPLICATES_FILE, RESULT_FILE
from sppo.alpaca_eval.win_rates import WinRates
from sppo.card.scores import Score, Scores
from sppo.statistics import Interval
from sppo.store import Artifact


def scores(artifact: Artifact, policy: int) -> Scores:
    """The numbers of pi_i with their intervals; notes say who judged, in which order, how answers were drawn, and what is left
    out."""
    result = _result(artifact)
    group = result["group"]
    names = {"win_rate": "win rate", "discrete_win_rate": "discrete win rate"}
    names["length_controlled_win_rate"] = result["length_controlled_name"]
    found = [Score.measured(policy, group, names[rate], Interval(**result[rate]), unit="%") for rate in RATES]
    # cut to a whole number, as the leaderboard has it
    length = replace(Interval(**result["length"]), value=float(result["raw"]["avg_length"]))
    found.append(Score.measured(policy, group, "mean length", length, unit="characters", decimals=0))
    return Scores(scores=tuple(found), notes={group: result["notes"]})


def measured(artifact: Artifact) -> Measured:
    """All that was measured, verdicts and refits included: what `sppo.alpaca_eval.report.compare` compares."""
    result = _result(artifact)
    rows = from_json(artifact.text(ANNOTATIONS_FILE), f"{artifact.name}/{ANNOTATIONS_FILE}")
    refits = artifact.table(REPLICATES_FILE)["length_controlled_win_rate"].to_numpy()  # (R,)
    values = {field.name: result[field.name] for field in fields(Measured) if field.name in result}
    values |= {name: Interval(**result[name]) for name in (*RATES, "length")}
    values |= {"raw": WinRates(**result["raw"]), "length_controlled": LengthControlled(**result["length_controlled"])}
    preferences = {row.instruction: row.preference_for_model for row in rows}
    return Measured(**values, preferences=preferences, refits=refits)


def _result(artifact: Artifact) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(artifact.text(RESULT_FILE))
    return result
