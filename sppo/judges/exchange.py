"""Questions to an HTTP server that may be slow, busy or away: attempts, pauses, and what it took.

A question that all attempts fail gets a reason instead of an answer. A server that refuses questions, or is not there at all,
is an error; one that goes away later is asked no more until the next exchange, so that what was answered can be kept.
"""

import asyncio
import email.utils
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from sppo.configuration import parse_json
from sppo.errors import JudgeError
from sppo.recipe import Endpoint

Reading = TypeVar("Reading")
Body = Mapping[str, object]
AGAIN = (408, 409, 429)
"""And every 5xx: the same question may succeed later."""
LONGEST_PAUSE_S = 60.0
LONGEST_HOLD_S = 600.0
"""A server that says to come back after more than this is not waited for."""


class UnreadableError(Exception):
    """A reply that holds no verdict; its text is the reason under which that is counted."""


class Unanswered(str):
    """Why a question has no answer: `timeout`, `connection`, `http_503`, `no_choice`, .."""


class Exchange:
    """Some questions to one server, at most `concurrency` at a time."""

    def __init__(self, endpoint: Endpoint, key: str | None) -> None:
        self.endpoint = endpoint
        self.counts: Counter[str] = Counter()
        self._key = key
        self._url = f"{endpoint.url}/chat/completions"
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._answered = False
        self._lost = 0
        """Questions in a row without any reply."""
        self._not_before = 0.0

    async def __aenter__(self) -> "Exchange":
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        limits = httpx.Limits(max_connections=self.endpoint.concurrency)
        self._client = httpx.AsyncClient(headers=headers, timeout=self.endpoint.timeout_s, limits=limits)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, question: Callable[[int], Body], read: Callable[[Any], Reading]) -> Reading | Unanswered:
        """What `read` finds in the reply to `question(attempt)`, or why there is none after all attempts.

        `read` raises UnreadableError for a reply without a verdict. Raises JudgeError if the server refuses the question, or
        was never reached."""
        async with self._slots:
            if self._away:
                return Unanswered("not_asked")
            reason = Unanswered("")
            for attempt in range(self.endpoint.attempts):
                await self._wait(attempt)
                try:
                    return read(await self._reply(question(attempt), attempt))
                except UnreadableError as problem:
                    reason = Unanswered(problem)
                if self._held_off > LONGEST_HOLD_S:
                    break
            self._note_lost(reason)
            return reason

    async def _wait(self, attempt: int) -> None:
        pause = 0.0
        if attempt:
            # jitter: questions that failed together must not come back together
            pause = min(LONGEST_PAUSE_S, self.endpoint.pause_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        await asyncio.sleep(max(pause, self._held_off))

    @property
    def _held_off(self) -> float:
        """Seconds until the server wants to be asked again; negative if it is time."""
        return self._not_before - time.monotonic()

    @property
    def _away(self) -> bool:
        return self._lost >= max(3, self.endpoint.concurrency) or self._held_off > LONGEST_HOLD_S

    async def _reply(self, body: Body, attempt: int) -> Any:
        self.counts["requests"] += 1
        self.counts["retried"] += attempt > 0
        try:
            response = await self._client.post(self._url, json=body)
        except httpx.TimeoutException as problem:
            self._problem: Exception = problem
            raise UnreadableError("connection" if isinstance(problem, httpx.ConnectTimeout) else "timeout") from problem
        except httpx.RequestError as problem:
            self._problem = problem
            raise UnreadableError("connection") from problem
        self._answered, self._lost = True, 0
        status = response.status_code
        if status in AGAIN or status >= 500:
            self._hold(response.headers.get("Retry-After"))
            raise UnreadableError(f"http_{status}")
        if status != 200:
            raise JudgeError(f"{self._shown} answers {status}: {self._words(response)}; {_next_move(status)}")
        try:
            reply = parse_json(response.content)
        except ValueError as problem:
            raise UnreadableError("not_json") from problem
        self._count_tokens(reply)
        return reply

    def _count_tokens(self, reply: Any) -> None:
        usage = reply.get("usage") if isinstance(reply, dict) else None
        for name, field in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")):
            spent = usage.get(field) if isinstance(usage, dict) else None
            self.counts[name] += spent if isinstance(spent, int) else 0

    def _hold(self, retry_after: str | None) -> None:
        """All questions wait as long as the server says; it counts for the whole address, not for one question."""
        if retry_after is None:
            return
        if retry_after.strip().isdigit():
            seconds = float(retry_after)
        else:
            try:
                seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
            except ValueError:
                return
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _note_lost(self, reason: Unanswered) -> None:
        if reason not in ("connection", "timeout"):
            return
        self._lost += 1
        if not self._answered and (reason == "connection" or self._away):
            cause = " ".join(str(self._problem).split()) or type(self._problem).__name__
            raise JudgeError(
                f"{self._shown} cannot be reached in {self.endpoint.attempts} attempts: {cause}; expected a server there: "
                "start it, or mend the judge's source.url; what was judged before is kept"
            )

    @property
    def _shown(self) -> str:
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def _words(self, response: httpx.Response) -> str:
        text = response.text
        try:
            found = parse_json(text)["error"]
            text = str(found["message"] if isinstance(found, dict) else found)
        except (ValueError, KeyError, TypeError):
            pass
        text = " ".join(text.split())[:400]
        return text.replace(self._key, "***") if self._key else text


def _next_move(status: int) -> str:
    if status in (401, 403):
        return "check the key in the environment variable that the judge's source.api_key_env names, and what it may do"
    if status == 404:
        return "check the judge's model and source.url, which ends in /v1"
    return (
        "mend the judge: constrain: none for a server that knows no structured_outputs, "
        "max_answer_characters where its context is too short"
    )
