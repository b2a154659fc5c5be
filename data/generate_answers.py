"""A language model's answers into texts: lists taken apart, lead-ins left out, garbage told from texts."""

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

from core.rows import half_pair, show
from data.generate_prompts import ANSWER_ALONE, END

NUMBERED = re.compile(r"^\s*(?:\(?\d{1,3}[.):]|[-*\u2022])\s+(.*\S)\s*$")
FENCE = re.compile(r"^\s*```\w*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
PREFIX = re.compile(
    r"^(?:\**(?:(?:new |another )?(?:text|example|paraphrase|rewritten text|answer))(?: \d+)?\**:\**\s*)+",
    re.IGNORECASE,
)
# a first line that speaks of the answer, before the answer
LEAD_IN = re.compile(
    r"^(?:sure|certainly|of course|okay|here(?:'s| is| are)|the (?:new )?texts?)\b.*:$", re.IGNORECASE
)
REFUSAL = re.compile(
    r"^(?:i['\u2019]?m (?:really )?sorry,? but|sorry,? (?:but )?i |i can(?:no|['\u2019])t (?:help|assist|fulfil|"
    r"provide|create|write|generate)|as an ai\b|i am an ai\b|as a (?:large )?language model)",
    re.IGNORECASE,
)
QUOTES = {'"': '"', "\u201c": "\u201d", "'": "'", "\u00ab": "\u00bb"}
RUN = 4  # words that come again
MOST_RUNS = 3  # times: what says the same four words so often goes round in a circle


def writable(text: str) -> str:
    """A text as UTF-8 can hold it: half a surrogate pair becomes an escape."""
    return text.encode(errors="backslashreplace").decode()


@dataclass
class Counts:
    """How many were left out for each reason, and the first of each."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count one; the example is cut as messages show values."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, writable(show(example)))

    def summary(self) -> dict[str, dict]:
        """{reason: {"count", "example"}}, the most frequent first."""
        return {name: {"count": n, "example": self.examples[name]} for name, n in self.counts.most_common()}


@dataclass(frozen=True)
class TextForm:
    """What texts of the training rows look like."""

    is_line: bool  # none has a line break
    most_words: int  # of the longest

    @classmethod
    def of(cls, texts: list[str]) -> "TextForm":
        """The form of the training texts."""
        return cls(not any("\n" in text.strip() for text in texts), max(len(text.split()) for text in texts))


def split_answer(
    answer: str, many: bool, form: TextForm, is_chat: bool = True, is_cut: bool = False
) -> list[str]:
    """The texts in an answer: a JSON list, a numbered list, or one text; [] when there is none.

    Args: many: a list was asked for | is_chat: False where a model went on with a plain text, up to END |
          is_cut: the answer came to its end by the limit of tokens: a text that it cuts is left out.
    """
    if not is_chat:
        text, end, _ = answer.partition(END)
        return [text.strip()] if text.strip() and (end or not is_cut) else []
    answer = THOUGHT.sub("", answer).strip()
    fence = FENCE.match(answer)
    answer = fence.group(1).strip() if fence else answer
    found = json_texts(answer, many)
    if found is None:
        lines = answer.splitlines()
        while lines and (not lines[0].strip() or LEAD_IN.match(lines[0].strip())):
            lines.pop(0)
        items = [match.group(1) for line in lines if (match := NUMBERED.match(line))]
        if (many or form.is_line) and len(items) > 1 and NUMBERED.match(lines[0]):
            found = items
        elif many and form.is_line:
            found = lines
        elif form.is_line:  # what comes behind an empty line is said about the text
            first, end, _ = "\n".join(lines).partition("\n\n")
            found, is_cut = [first], is_cut and not end
        else:
            found = ["\n".join(lines)]
        found = found[:-1] if is_cut else found
    return [text for text in map(_bare, found) if text]


def json_texts(answer: str, many: bool) -> list[str] | None:
    """The strings of a JSON list in an answer, or None. many: of a list that is broken those that are whole."""
    start, end = answer.find("["), answer.rfind("]")
    for part in (answer, answer[start : end + 1] if 0 <= start < end else ""):
        try:
            value = json.loads(part, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            lists = [own for own in value.values() if isinstance(own, list)]
            value = lists[0] if lists else list(value.values())
        if isinstance(value, str):
            return [value]
        if isinstance(value, list):
            items = [list(item.values()) if isinstance(item, dict) else [item] for item in value]
            texts = [next((text for text in item if isinstance(text, str)), None) for item in items]
            return [text for text in texts if text] or None
    if many and start >= 0 and answer[start + 1 :].lstrip().startswith('"'):
        whole = re.findall(r'"(?:[^"\\]|\\.)*"(?=\s*[,\]\n])', answer[start:])
        return [json.loads(text, strict=False) for text in whole if _is_json(text)] or None
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except ValueError:
        return False
    return True


def _bare(text: str) -> str:
    """A text without the quotes and the "Text:" around it."""
    text = PREFIX.sub("", text.strip()).strip()
    while (
        len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text.count(text[0]) <= 1 + (text[0] == text[-1])
    ):
        text = text[1:-1].strip()
    return text


def why_garbage(text: str, form: TextForm) -> str:
    """Why a text is none of the training texts' kind; "" where nothing shows that."""
    if half_pair(text) or "\ufffd" in text:
        return "broken characters"
    if any(unicodedata.category(letter) == "Cc" and letter not in "\n\t\r" for letter in text):
        return "control characters"
    if not re.search(r"\w", text):
        return "no word in it"
    if ANSWER_ALONE in text or END in text or "<|" in text:
        return "repeats the prompt"
    if REFUSAL.match(text):
        return "refusal"
    if form.is_line and "\n" in text:
        return "several lines, where training texts have one"
    words = text.lower().split()
    if len(words) > form.most_words:
        return "longer than every training text"
    runs = Counter(zip(*(words[k:] for k in range(RUN))))
    if runs and max(runs.values()) >= MOST_RUNS:
        return "goes round in a circle"
    return ""
