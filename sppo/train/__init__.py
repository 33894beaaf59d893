"""Train: pi_{t+1} from pi_t, its responses and their win probabilities, on one machine with DeepSpeed.

| module | holds |
|---|---|
| step | the stage as the store sees it: identity, checks before any process starts, outcome |
| examples | which token ids are trained on, and towards which target |
| labels | what a loss reads of responses besides their log-ratios |
| batches | the order of the prompts, and the global batches |
| schedule | learning rate and number of steps |
| packing | micro-batches of whole prompts without padding, and how ranks share them out |
| attention, attention_varlen, attention_flex | who sees whom in a packed row, on a CPU and on a GPU |
| head | from hidden states to log pi(y|x) and the loss's gradient, tile by tile |
| forward | a policy on a packed micro-batch |
| objective | the loss of a step as the head asks for it |
| rank | what one process works with, and its share of prompts |
| reference, reference_part | log pi_t(y|x): the sampler's or recomputed, audited, kept in the store |
| engine | DeepSpeed's settings, and the policy in it |
| optimizers, eight_bit | RMSprop and AdamW, and both with states in 8 bits |
| adapters, nf4 | LoRA, and QLoRA's base in 4 bits |
| weights | fp32 master weights: from a policy folder, and into one |
| checkpoints | saving in the middle, and continuing bit for bit |
| shape, flops, memory | what a step multiplies and keeps, counted from a config.json |
| metrics, trackers | each step's figures, and who is told of them |
| loop | reference log-probs, then the steps |
"""

from sppo.train.step import step

__all__ = ["step"]
