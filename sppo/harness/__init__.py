"""Any task of lm-evaluation-harness, ours or upstream's, on a policy or a served model: scores, intervals, and every row."""

from sppo.harness.scores import Score, right_answers, rows_of, scores_of
from sppo.harness.stage import build

__all__ = ["Score", "build", "right_answers", "rows_of", "scores_of"]
