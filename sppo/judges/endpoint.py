"""A served language model as a judge: any OpenAI-compatible server, forced to choose, both orders. P pairs of a match.

    logprobs:  L_ij = log p(first's name) - log p(second's name), of the reply's first token
    votes:     L_ij = log( (n_first + 1/2) / (n_second + 1/2) ), of n draws at temperature 1

A question that gets no readable answer stays nan, counted by its reason; none is ever guessed. An answer that the server's list
of log-probabilities leaves out has no known probability, so the question is such a one.
"""

import asyncio
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sppo.errors import JudgeError
from sppo.fingerprint import seed_of
from sppo.judges import Judge, Logits, Match, Question, Rulings, prompt_text, questions, spread
from sppo.judges.exchange import Body, Exchange, Unanswered, UnreadableError
from sppo.judges.template import filled, turns_of
from sppo.progress import Progress, Report
from sppo.recipe import EndpointJudge

log = logging.getLogger(__name__)

TOP = 20
"""Log-probabilities asked for: the most that OpenAI and vLLM give."""
NO_PROBABILITY = -9999.0
"""What both write where there is none."""
VOTE_TOKENS = 16
"""Of one vote: room for an answer of several tokens."""
AROUND = " \t\r\n.,:;!\"'`*()[]"
"""What models put around an answer."""


class ServedJudge(Judge):
    """A served model. It keeps no connection between calls."""

    leaves_open = True

    def __init__(self, judge: EndpointJudge) -> None:
        self.settings = judge
        self._turns = turns_of(judge.template)
        self._key = _key(judge)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each; nan for one without a verdict."""
        return self.rule(matches, report).logits

    def rule(self, matches: Sequence[Match], report: Report) -> Rulings:
        """The same, with requests, retries, tokens, and how many questions stay open for which reason.

        Raises JudgeError if the server is not there, or refuses to be asked."""
        asked = [(match, question) for match in matches for question in questions(match)]
        counts: Counter[str] = Counter()
        verdicts = asyncio.run(self._ask_all(asked, report, counts)) if asked else []
        for verdict in verdicts:
            if isinstance(verdict, Unanswered):
                counts[f"unjudged_{verdict}"] += 1
        limit = self.settings.max_answer_characters
        if limit is not None:
            counts["questions_cut"] = sum(max(len(first), len(second)) > limit for _, (first, second) in asked)
        left = iter([math.nan if isinstance(verdict, Unanswered) else verdict for verdict in verdicts])
        logits = [spread(match, {question: next(left) for question in questions(match)}) for match in matches]
        self._log(len(asked), counts)
        return Rulings(logits, counts={name: count for name, count in counts.items() if count})

    async def _ask_all(
        self, asked: Sequence[tuple[Match, Question]], report: Report, counts: Counter[str]
    ) -> list[float | Unanswered]:
        done = 0

        async def one(match: Match, question: Question) -> float | Unanswered:
            nonlocal done
            verdict = await self._ask(exchange, match, question)
            done += 1
            report(Progress(stage="judge", done=done, total=len(asked), unit="pairs"))
            return verdict

        async with Exchange(self.settings.source, self._key) as exchange:
            under_way = [asyncio.create_task(one(match, question)) for match, question in asked]
            try:
                verdicts = await asyncio.gather(*under_way)
            finally:
                for task in under_way:  # of an error: the others end before their connections do
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)
        counts.update(exchange.counts)
        return list(verdicts)

    async def _ask(self, exchange: Exchange, match: Match, question: Question) -> float | Unanswered:
        settings = self.settings
        first, second = (text[: settings.max_answer_characters] for text in question)
        prompt = prompt_text(match.messages)
        texts = [filled(template, prompt, first, second) for _, template in self._turns]
        if settings.reading == "logprobs":
            return await exchange.ask(lambda _: self._body(texts), self._read_logprobs)
        votes: list[int | None] = []
        while len(votes) < settings.votes:  # a server that draws once whatever it is asked for is asked again
            drawn, wanted = len(votes), settings.votes - len(votes)
            found = await exchange.ask(lambda attempt: self._body(texts, wanted, drawn, attempt), self._read_votes)  # noqa: B023
            if isinstance(found, Unanswered):
                return found
            votes += found[:wanted]
        return math.log((votes.count(0) + 0.5) / (votes.count(1) + 0.5))

    def _body(self, texts: Sequence[str], draws: int = 0, *draw: int) -> Body:
        settings = self.settings
        body: dict[str, object] = {
            "model": settings.model,
            "messages": [{"role": role, "content": text} for (role, _), text in zip(self._turns, texts, strict=True)],
            # from the question: the same question asked again, on any machine, is the same request
            "seed": seed_of("endpoint", settings.model, *texts, *draw) % 2**31,
        }
        if settings.constrain == "structured_outputs":
            body["structured_outputs"] = {"choice": list(settings.answers)}
        if draws:
            return {**body, "temperature": 1, "n": draws, "max_tokens": VOTE_TOKENS}
        return {**body, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP}

    def _read_logprobs(self, reply: Any) -> float:
        choice = _choices(reply)[0]
        try:
            listed = choice["logprobs"]["content"][0]["top_logprobs"]
            found = [(str(entry["token"]), float(entry["logprob"])) for entry in listed]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UnreadableError("no_logprobs") from None
        first, second = (self._logprob(answer, found) for answer in self.settings.answers)
        return first - second

    def _logprob(self, answer: str, listed: Sequence[tuple[str, float]]) -> float:
        """Of a reply that starts with the answer: summed over the listed tokens that are it or, where the choice is forced, its
        beginning. Raises UnreadableError if none is."""
        forced = self.settings.constrain != "none"
        tokens = [(token.strip(), logprob) for token, logprob in listed]
        own = [
            logprob
            for token, logprob in tokens
            if (token == answer or (forced and token and answer.startswith(token)))
            and math.isfinite(logprob)
            and logprob > NO_PROBABILITY
        ]
        if not own:
            raise UnreadableError("no_choice")
        most = max(own)
        return most + math.log(sum(math.exp(logprob - most) for logprob in own))

    def _read_votes(self, reply: Any) -> list[int | None]:
        """Which answer each draw names, None for one that names neither. Raises UnreadableError if all do not."""
        votes: list[int | None] = []
        for choice in _choices(reply):
            try:
                said = str(choice["message"]["content"]).strip(AROUND)
            except (KeyError, TypeError):
                raise UnreadableError("malformed") from None
            votes.append(self.settings.answers.index(said) if said in self.settings.answers else None)
        if all(vote is None for vote in votes):
            raise UnreadableError("no_choice")
        return votes

    def _log(self, asked: int, counts: Mapping[str, int]) -> None:
        source = self.settings.source
        dollars = (
            counts["input_tokens"] * source.dollars_per_million_input
            + counts["output_tokens"] * source.dollars_per_million_output
        ) / 1e6
        left = sum(count for name, count in counts.items() if name.startswith("unjudged_"))
        log.info(
            "endpoint %s: %d questions, %d without a verdict, %d requests, %d of them again, %d + %d tokens, $%.4f",
            self.settings.model,
            asked,
            left,
            counts["requests"],
            counts["retried"],
            counts["input_tokens"],
            counts["output_tokens"],
            dollars,
        )


def _choices(reply: Any) -> list[Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        raise UnreadableError("malformed")
    if not choices:
        raise UnreadableError("no_choice")
    return choices


def _key(judge: EndpointJudge) -> str | None:
    name = judge.source.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise JudgeError(
            f"the environment variable {name} is not set; expected the key for {judge.source.url}, as source.api_key_env says: "
            "set it where the judge runs"
        )
    return key
