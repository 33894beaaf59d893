"""What an iteration did to its policy's answers beyond the win rate: length, degeneration, divergence, how clear the judge was.

Pure functions of what the stages have stored; `sppo.gates` decides on what they find.
"""

from sppo.checks.answers import Answers, read_answers
from sppo.checks.divergence import Divergence, divergence
from sppo.checks.measures import JudgeMeasures, Material, Measures, measure, policy_measures
from sppo.checks.report import FILE, NUMBERS, CheckReport, check_report, to_json
from sppo.checks.resampling import Resampled

__all__ = [
    "FILE",
    "NUMBERS",
    "Answers",
    "CheckReport",
    "Divergence",
    "JudgeMeasures",
    "Material",
    "Measures",
    "Resampled",
    "check_report",
    "divergence",
    "measure",
    "policy_measures",
    "read_answers",
    "to_json",
]
