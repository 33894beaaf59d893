"""AlpacaEval 2: a model's answers to 805 instructions against a reference model's. N instructions.

| module | |
|---|---|
| sets | the evaluation set, its reference answers and the gamed baselines, pinned by sha256 |
| annotations | verdicts in alpaca_eval's own schema, as its tool reads and writes them |
| prompts | stages `alpaca-reference` and `alpaca-prompts`, and the draw of stage `alpaca-answer` |
| judging | stage `alpaca-judge`: any judge of `sppo.judges` on a policy's answers and the reference's |
| win_rates | win rate, standard error, discrete win rate, mean length |
| length_control | the length-controlled win rate, fitted as alpaca_eval fits it |
| refit | the same fit in every resample at once, for intervals |
| report | all of it with intervals, and differences of two models |
| results | stage `alpaca-eval`: annotations and numbers |
| scores | what its artifacts say: scores for the card, differences of two policies |

Everything is keyed by the instruction's text, never by its row. Formulas follow alpaca_eval 0.6.6 (Dubois et al.,
arXiv:2404.04475); the code is ours.
"""
