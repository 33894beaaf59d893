"""transformers' `generate` as the stand-in where vLLM is not installed: the same distribution, other samples, slower.

Each response has a random generator of its own, so its tokens do not depend on what else is in the batch. `generate` runs the
model; a logits processor draws the token, notes its log-prob, and leaves only that token possible.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.engines import EngineSettings, Request, Sample

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """A policy loaded by transformers."""

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        self.settings = settings
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        # only the eager attention knows the soft-cap of Gemma-2; the others leave it out in silence
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, settings.dtype),
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        ).to(settings.device)
        self.model.eval()
        self.model.generation_config = GenerationConfig()  # the recipe says how to sample, not the model's file

    def answer(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[Sample]]]:
        """Each request with its K samples, batch by batch."""
        for _, alike in groupby(
            requests, key=lambda one: (one.draw, one.responses, one.temperature, one.top_p, one.max_tokens)
        ):
            batch: list[Request] = []
            for request in alike:
                batch.append(request)
                if sum(one.responses for one in batch) + request.responses > self.settings.max_concurrent:
                    yield from self._answer_batch(batch)
                    batch = []
            if batch:
                yield from self._answer_batch(batch)

    def _answer_batch(self, batch: list[Request]) -> Iterator[tuple[Request, list[Sample]]]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        rows = [request for request in batch for _ in range(request.responses)]  # B = sum of K
        longest = max(len(request.token_ids) for request in batch)
        filler = self.settings.stop_token_ids[0]  # masked by the attention mask, never by its id
        padding = [longest - len(request.token_ids) for request in rows]
        token_ids = torch.tensor([[filler] * pad + row.token_ids for pad, row in zip(padding, rows, strict=True)])  # (B, T)
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])  # (B, T)
        draw = SeededDraw(batch, set(self.settings.stop_token_ids))
        configuration = GenerationConfig(
            max_new_tokens=batch[0].max_tokens,
            do_sample=False,
            eos_token_id=list(self.settings.stop_token_ids),
            pad_token_id=filler,
        )
        with torch.inference_mode():
            self.model.generate(
                inputs=token_ids.to(self.settings.device),
                attention_mask=mask.to(self.settings.device),
                generation_config=configuration,
                logits_processor=LogitsProcessorList([draw]),
            )
        samples = iter(draw.samples)
        for request in batch:
            yield request, [next(samples) for _ in range(request.responses)]


class SeededDraw:
    """Draws the next token of each row with the row's own generator and lets no other token through."""

    def __init__(self, batch: list[Request], stops: set[int]) -> None:
        import torch

        self.temperature = batch[0].temperature
        self.top_p = batch[0].top_p
        self.stops = stops
        seeds = [request.seed + k for request in batch for k in range(request.responses)]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.samples = [Sample([], []) for _ in seeds]

    def __call__(self, _: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
        """Scores (B, V) in which the drawn token of each row is 0 and all others are -inf."""
        import torch

        raw = torch.log_softmax(logits.float(), dim=-1).cpu()  # (B, V)
        shaped = keep_top_p(raw / self.temperature, self.top_p)  # (B, V)
        scores = torch.full_like(raw, -torch.inf)
        for row, (sample, generator) in enumerate(zip(self.samples, self.generators, strict=True)):
            if sample.token_ids and sample.token_ids[-1] in self.stops:
                scores[row, sample.token_ids[-1]] = 0.0
                continue
            # Gumbel's trick: the largest logit after adding this noise is a draw from the softmax
            noise = -torch.empty(raw.shape[1]).exponential_(generator=generator).log()  # (V,)
            token = int((shaped[row] + noise).argmax())
            sample.token_ids.append(token)
            sample.logprobs.append(float(raw[row, token]))
            scores[row, token] = 0.0
        return scores.to(logits.device)


def keep_top_p(logits: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Logits (B, V) with everything but the smallest set of tokens of at least `top_p` probability at -inf."""
    import torch

    if top_p >= 1:
        return logits
    ordered, places = logits.sort(dim=-1, descending=True)  # (B, V) each
    probabilities = ordered.softmax(dim=-1)  # (B, V)
    beyond = probabilities.cumsum(dim=-1) - probabilities >= top_p  # (B, V): enough is kept before this token
    return torch.empty_like(logits).scatter_(-1, places, ordered.masked_fill(beyond, -torch.inf))
