"""The tiny world's own rule as a judge: exact preferences of its language, and no network."""

from collections.abc import Sequence

import numpy as np

from sppo.judges import Judge, Logits, Match, prompt_text
from sppo.progress import Progress, Report
from sppo.world.language import rule_logit


class RuleJudge(Judge):
    """L_ij is the rule's log-odds, so (L_ij - L_ji) / 2 is it too."""

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        total = sum(len(match.pairs) for match in matches)
        logits: list[Logits] = []
        done = 0
        for match in matches:
            asked = prompt_text(match.messages)
            found = [
                0.0 if match.responses[i] == match.responses[j] else rule_logit(asked, match.responses[i], match.responses[j])
                for i, j in match.pairs
            ]
            logits.append(np.array(found, dtype=np.float32))  # (P,)
            done += len(match.pairs)
            report(Progress(stage="judge", done=done, total=total, unit="pairs"))
        return logits
