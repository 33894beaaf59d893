"""Train: pi_{t+1} from pi_t, its responses and their win probabilities, on one machine with DeepSpeed.

| module | holds |
|---|---|
| step | the stage as the store sees it: identity, checks before any process starts, outcome |
| examples | which token ids are trained on, and towards which target |
| batches | the order of the prompts, and how a global batch is shared out |
| schedule | learning rate and number of steps |
| logprobs | padded micro-batches, and log pi(y|x) as a sum over response tokens |
| engine | DeepSpeed's settings, the policy and its optimizer |
| weights | fp32 master weights: from a policy folder, and into one |
| checkpoints | saving in the middle, and continuing bit for bit |
| loop | reference log-probs, then the steps |
"""

from sppo.train.step import step

__all__ = ["step"]
