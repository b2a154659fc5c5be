"""Answers from an OpenAI-compatible server: several at once, asked again with back-off, its key out of sight."""

import email.utils
import json
import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import openai
from tqdm import tqdm

from core.errors import UserError
from data.generate_answers import writable
from data.generate_prompts import END, Prompt
from data.generate_secrets import LEAST_LETTERS, Address

FIRST_WAIT_S, MOST_BACK_OFF_S = 1.0, 60.0
MOST_WAIT_S = 600.0  # that a server may ask for
AGAIN = {408, 409, 425, 429}  # and 500 and above
FATAL = {
    401: "is the key right?",
    402: "is there money left?",
    403: "may the key do this?",
    404: "is --model right?",
}
# a server that does not take one of these says so; then it is left out, or goes by another name
OPTIONAL = {"max_tokens": "max_completion_tokens", "seed": "", "top_p": "", "temperature": "", "stop": ""}
MOST_CHANGES = len(OPTIONAL)
LOUD = "openai", "httpx", "httpx2", "httpcore", "httpcore2"  # whose logs tell addresses and headers
Record = Callable[[list[Prompt], list[dict]], None]


class Failed(Exception):
    """A request that got no answer after all its tries, or was refused."""


class Stopped(Exception):
    """The command ends: no request is sent any more."""


def wait_s(attempt: int, asked: float | None, rng: random.Random) -> float:
    """Seconds before the next try: exponential with jitter, never less than the server asked for.

    Args: attempt: from 0 | asked: by Retry-After, in seconds; None: it said nothing.
    """
    back_off = min(MOST_BACK_OFF_S, FIRST_WAIT_S * 2**attempt) * rng.uniform(0.5, 1)
    return back_off if asked is None else asked + min(back_off, FIRST_WAIT_S)


def retry_after(headers: dict, now: float) -> float | None:
    """Seconds that a server asks to wait: Retry-After-Ms, or Retry-After in seconds or as a date; None: nothing."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            value = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if value == value:
            return max(0.0, value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except (TypeError, ValueError):
        return None


class Server:
    """One server and model; many threads ask it."""

    def __init__(
        self,
        address: Address,
        model: str,
        sampling: dict,
        is_chat: bool,
        concurrency: int,
        retries: int,
        timeout: float,
    ):
        """sampling: temperature, top_p, max_tokens | retries: tries after the first | timeout: seconds of silence."""
        self.address, self.model, self.is_chat = address, model, is_chat
        self.concurrency, self.retries = concurrency, retries
        self.sampling = dict(sampling) if is_chat else dict(sampling) | {"stop": [END]}
        self.notes: list[str] = []
        self.troubles: Counter = Counter()  # why requests were sent again
        self.lock, self.stop, self.not_before = threading.Lock(), threading.Event(), 0.0
        self.rng = random.Random()
        for name in LOUD:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client = openai.OpenAI(
            api_key=address.key or "none",
            base_url=address.url,
            default_headers=address.headers,
            default_query=address.query,
            timeout=timeout,
            max_retries=0,
        )

    def ask_all(self, prompts: list[Prompt], record: Record, bar: tqdm) -> list[str]:
        """Ask, and record each answer as it comes.

        Returns: why, for each request that failed.
        Raises:  UserError when the server will answer none; answers under way are waited for and recorded.
        """
        failed, in_a_row, taken = [], 0, set()

        def take(future: Future) -> None:
            taken.add(future)
            record([waiting[future]], [future.result()])
            bar.update()

        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = {pool.submit(self.ask, prompt): prompt for prompt in prompts}
            try:
                for future in as_completed(waiting):
                    try:
                        take(future)
                        in_a_row = 0
                    except Failed as error:
                        failed.append(str(error))
                        in_a_row += 1
                        bar.update()
                    if in_a_row >= max(3, self.concurrency):
                        raise UserError(
                            f"{self.address.url}: {in_a_row} requests in a row failed, the last: {failed[-1]}"
                        )
                    bar.set_postfix_str(", ".join(f"{n} x {why}" for why, n in self.troubles.items()))
            finally:
                self.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                for future in waiting:
                    if future not in taken and not future.cancelled() and future.exception() is None:
                        take(future)
                self.stop.clear()
        return failed

    def ask(self, prompt: Prompt) -> dict:
        """One answer, {"model", "answer", "finish_reason", "prompt_tokens", "completion_tokens"}; unknown counts None.

        Raises: Failed, Stopped, or UserError where no request would do better.
        """
        why = ""
        for attempt in range(self.retries + 1):
            self.pause(self.not_before - time.monotonic())
            asked = None
            try:
                return self.read(self.send(prompt))
            except openai.APIStatusError as error:
                why = f"status {error.status_code}"
                told = f"{why}: {self.says(error)}"
                asked = retry_after(error.response.headers, time.time())
                if error.status_code in FATAL or error.code == "insufficient_quota":
                    hint = FATAL.get(error.status_code, FATAL[402])
                    raise UserError(f"{self.address.url}: {told} ({hint})") from None
                if error.status_code not in AGAIN and error.status_code < 500:
                    raise Failed(f"refused with {told}") from None
            except openai.APITimeoutError:
                why = told = "time-out"
            except openai.APIConnectionError as error:
                why, told = "connection", f"no connection: {self.says(error.__cause__ or error)}"
            except (openai.OpenAIError, AttributeError, LookupError, TypeError, ValueError) as error:
                why, told = "no answer in what came", f"what came is no answer: {self.says(error)}"
            if asked is not None and asked > MOST_WAIT_S:
                raise UserError(
                    f"{self.address.url}: {told}; it asks to wait {asked:.0f} s: start the same command again then"
                )
            with self.lock:
                self.troubles[why] += 1
                if asked is not None:  # it means all of us
                    self.not_before = max(self.not_before, time.monotonic() + asked)
            if attempt < self.retries:
                self.pause(wait_s(attempt, asked, self.rng))
        raise Failed(f"{told} (after {self.retries} retries; --max_retries, --timeout)")

    def pause(self, seconds: float) -> None:
        """Wait. Raises Stopped when the command ends."""
        if self.stop.wait(max(0.0, seconds)):
            raise Stopped

    def send(self, prompt: Prompt) -> dict:
        """A request; what the server sent, as JSON. What it says it does not take is left out from then on."""
        for _ in range(MOST_CHANGES + 1):
            with self.lock:
                sampling = dict(self.sampling)
            if sampling.get("seed", True) is not None:
                sampling["seed"] = prompt.seed
            body = sampling | {"model": self.model}
            body = {name: value for name, value in body.items() if value is not None}
            try:
                if self.is_chat:
                    made = self.client.chat.completions.with_raw_response.create(
                        messages=prompt.messages, **body
                    )
                else:
                    plain = prompt.messages[-1]["content"]
                    made = self.client.completions.with_raw_response.create(prompt=plain, **body)
                return json.loads(made.http_response.text)
            except openai.APIStatusError as error:
                if error.status_code not in (400, 422) or not self.leave_out(error, body):
                    raise
        raise Failed("refused: it takes none of what can be left out")

    def leave_out(self, error: openai.APIStatusError, body: dict) -> bool:
        """Send no more what the server complains about, if that can be done without."""
        said = str(error.message)  # it may repeat the prompt, so that only a name in quotes is one
        for name, other in OPTIONAL.items():
            if name in body and (error.param == name or re.search(rf"[`'\"]{name}[`'\"]", said)):
                with self.lock:
                    if self.sampling.get(name, True) is not None:
                        value, self.sampling[name] = self.sampling.get(name), None
                        if other:
                            self.sampling[other] = value
                        self.notes.append(
                            f"the server takes no {name}" + (f": sent as {other}" if other else ": left out")
                        )
                return True
        return False

    def read(self, made: dict) -> dict:
        """What of an answer is kept. Raises LookupError, AttributeError or TypeError when it is none."""
        choice = made["choices"][0]
        text = choice["message"]["content"] if self.is_chat else choice["text"]
        if isinstance(text, list):  # parts
            text = "".join(part.get("text", "") for part in text)
        if not isinstance(text, str | None):
            raise TypeError("its content is no text")
        usage = made.get("usage") or {}
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        return {
            "model": self.model,
            "answer": self.address.hide(text or "", LEAST_LETTERS),
            "finish_reason": self.address.hide(str(choice.get("finish_reason"))),
            **{name: value if isinstance(value, int) else None for name, value in counts.items()},
        }

    def says(self, error: BaseException) -> str:
        """An error's message as it may be shown: one line, without secrets, cut."""
        return writable(self.address.hide(" ".join(str(error).split()) or type(error).__name__))[:300]
