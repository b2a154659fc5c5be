"""Prompts around a text, and label words as the answer to them: what a T5 or a decoder reads and says.

A row is tokenised as one string, as anyone would who writes the prompt out; where it is too long, tokens of the text
alone are left out, never of the prompt.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from core.errors import UserError
from core.rows import show
from core.tokens import Encoder, cut_ids

TEXT = "{text}"
DEFAULT = {"t5": "classify: {text}", "causal": "{text}\nAnswer:"}
SENTINEL = "@@the-text@@"  # stands for the text while a chat template is applied


@dataclass(frozen=True)
class Prompt:
    """The strings around a text."""

    before: str
    after: str
    add_special: bool  # the tokenizer's own special tokens; a chat template has them in it already
    is_open: bool  # the answer follows: an end token that the tokenizer adds is taken off again
    lead: str = ""  # what stands between it and the answer

    def __call__(self, text: str) -> str:
        return f"{self.before}{text}{self.after}"


def choose_prompt(
    template: str, architecture: str, head: str, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> Prompt | None:
    """The prompt that --prompt and --chat mean; None where the text stands alone.

    Args:    template: holds {text} once, \\n for a line break; "" is the default of the architecture and head |
             chat: wrap it as a user's turn in the tokenizer's chat template.
    Raises:  UserError for a template without {text}, or a tokenizer without a chat template.
    """
    if not template:
        if head != "words" and not chat:
            return None
        template = DEFAULT[architecture] if head == "words" and not chat else TEXT
    template = template.replace("\\n", "\n")
    if template.count(TEXT) != 1:
        raise UserError(
            f"--prompt {show(template)}: holds {{text}} {template.count(TEXT)} times; expected once, as in "
            "'classify: {text}'"
        )
    is_open = architecture == "causal" and head == "words"
    if not chat:
        before, _, after = template.partition(TEXT)
        if not is_open:
            return Prompt(before, after, True, False)
        after = after.rstrip(" ")
        return Prompt(before, after, True, True, "" if (after or "a")[-1].isspace() else " ")
    if not tokenizer.chat_template:
        raise UserError("--chat: this tokenizer has no chat template")
    turn = [{"role": "user", "content": template.replace(TEXT, SENTINEL)}]
    whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    before, found, after = whole.partition(SENTINEL)
    if not found:
        raise UserError("--chat: this tokenizer's chat template changes the text")
    answered = [*turn, {"role": "assistant", "content": SENTINEL}]
    both = tokenizer.apply_chat_template(answered, tokenize=False)
    lead = both[len(whole) :].partition(SENTINEL)[0] if both.startswith(whole) else ""
    return Prompt(before, after, False, is_open, lead if lead.isspace() else "")


class PromptEncoder:
    """Texts in, token ids of the whole prompt out; as core.tokens.Encoder, without pairs."""

    pair = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: str, prompt: Prompt):
        self.tokenizer, self.max_length, self.truncate, self.template = (
            tokenizer,
            max_length,
            truncate,
            prompt,
        )
        alone, self._empty = self._ids([prompt("a"), prompt("")])
        if len(alone) > max_length:
            raise UserError(
                f"--max_length {max_length} leaves no room for text: the prompt alone has {len(alone) - 1} tokens"
            )

    def _code(self, strings: list[str], **kwargs) -> dict:
        return self.tokenizer(
            strings,
            add_special_tokens=self.template.add_special,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **kwargs,
        )

    def _ids(self, strings: list[str]) -> list[list[int]]:
        coded, end = self._code(strings)["input_ids"], self.tokenizer.eos_token_id
        if not self.template.is_open or not self.template.add_special:
            return coded
        return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in coded]

    def __call__(self, texts: list[str], pairs: None = None) -> list[tuple[list[int], int, bool]]:
        """For each text: the prompt's ids, 0 (no second part), whether the text was cut.

        The ids are empty where the text has no token.
        """
        out = []
        for text, ids in zip(texts, self._ids([self.template(text) for text in texts]), strict=True):
            if len(ids) > self.max_length:
                out.append((self._cut(text, ids), 0, True))
            else:
                out.append((ids if text.strip() and ids != self._empty else [], 0, False))
        return out

    def _cut(self, text: str, ids: list[int]) -> list[int]:
        """At most max_length ids, by leaving out tokens of the text."""
        if not self.tokenizer.is_fast:
            raise UserError(
                f"a prompt of {len(ids)} tokens is over --max_length {self.max_length}, and to cut its text the "
                "tokenizer must say which tokens are the text's: this one is not a fast one"
            )
        first, last = len(self.template.before), len(self.template.before) + len(text)
        offsets = self._code([self.template(text)], return_offsets_mapping=True)["offset_mapping"][0][
            : len(ids)
        ]
        inside = [
            k for k, (start, end) in enumerate(offsets) if first <= start and end <= last and end > start
        ]
        if not inside:
            return []
        begin, end = inside[0], inside[-1] + 1
        room = self.max_length - (len(ids) - (end - begin))
        if room < 1:
            raise UserError(f"--max_length {self.max_length} leaves no room for text beside the prompt")
        return [*ids[:begin], *cut_ids(ids[begin:end], room, self.truncate), *ids[end:]]


def make_encoder(
    tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: str, pair: bool, prompt: Prompt | None
) -> Encoder | PromptEncoder:
    """What turns texts into token rows. prompt: None for bare texts. Raises UserError for pairs in a prompt."""
    if prompt is None:
        return Encoder(tokenizer, max_length, truncate, pair)
    if pair:
        raise UserError(
            "--pair_field: a prompt holds one text; join the columns with --text_field a,b, or give an encoder"
        )
    return PromptEncoder(tokenizer, max_length, truncate, prompt)


def read_label_words(source: str, label_names: list[str]) -> list[str]:
    """The word of each class, in the order of label_names.

    Args:    source: "" for the names themselves, NAME=WORD,NAME=WORD, or a JSON file of {name: word}.
    Raises:  UserError when a class has no word, or a word no class.
    """
    if not source:
        return list(label_names)
    flag = f"--label_words {source}"
    if "=" in source:
        parts = [part.partition("=") for part in source.split(",")]
        given = {name: word for name, _, word in parts}
        if len(given) < len(parts):
            raise UserError(f"{flag}: names a label twice; expected one word for each")
    else:
        try:
            given = json.loads(Path(source).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{flag}: expected NAME=WORD,... or a JSON file of {{name: word}}: {error}"
            ) from None
    if not isinstance(given, dict) or any(not isinstance(w, str) or not w.strip() for w in given.values()):
        raise UserError(f"{flag}: expected a word (a string that is not empty) for each name")
    odd = sorted(set(given) ^ set(label_names))
    if odd:
        what = "has no word" if odd[0] in label_names else "is not a label of the training rows"
        raise UserError(f"{flag}: {odd[0]!r} {what}; the labels are {', '.join(label_names[:30])}")
    return [given[name].strip() for name in label_names]


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, words: list[str], prompt: Prompt | None
) -> list[tuple[int, ...]]:
    """The token ids of each label word as an answer; where one is the beginning of another, all end with the end token.

    Args:    prompt: what a decoder reads before the word, which decides how the word is split; None: the word stands
             alone, as in a decoder beside an encoder.
    Raises:  UserError for a word that the tokenizer does not know, splits together with the prompt, or cannot tell
             from another.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    answers = []
    for word in words:
        if prompt is None:
            found = ids(word)
        else:
            context = prompt("a")
            before, whole = ids(context), ids(context + prompt.lead + word)
            found = whole[len(before) :]
            if whole[: len(before)] != before or not found:
                raise UserError(
                    f"--label_words: {word!r} is split together with the prompt's end: let --prompt end otherwise"
                )
        if not found or (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in found):
            raise UserError(f"--label_words: the tokenizer does not know {word!r}; give another word for it")
        answers.append(tuple(found))
    same = next((k for k, answer in enumerate(answers) if answer in answers[:k]), None)
    if same is not None:
        raise UserError(
            f"--label_words: {words[answers.index(answers[same])]!r} and {words[same]!r} are the same tokens"
        )
    if any(a != b and b[: len(a)] == a for a in answers for b in answers):
        if tokenizer.eos_token_id is None:
            raise UserError("--label_words: one is the beginning of another, and there is no end token")
        answers = [(*answer, tokenizer.eos_token_id) for answer in answers]
    return answers


def describe_answers(
    label_names: list[str], words: list[str], answers: list[tuple[int, ...]], prompt: Prompt
) -> str:
    """What a T5 or a decoder is asked and may answer, in words for the log."""
    told = [
        f"{word!r}"
        + (f" for {name}" if word != name else "")
        + (f" ({len(ids)} tokens)" if len(ids) > 1 else "")
        for name, word, ids in zip(label_names, words, answers, strict=True)
    ]
    more = f", ... {len(told)} in all" if len(told) > 12 else ""
    asked = show(prompt("{text}"))
    return f"prompt: {asked}; answers: {', '.join(told[:12])}{more}"


def label_answers(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    label_names: list[str],
    multi_label: bool,
    architecture: str,
    prompt: Prompt,
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Each class's label word and its token ids, see read_label_words and answer_tokens.

    Raises: UserError with several labels a row: words share one probability, so no two of them can hold.
    """
    if multi_label:
        other = "--t5_head encoder" if architecture == "t5" else "--head last"
        raise UserError(f"the rows have several labels each, and a label word answers with one: give {other}")
    words = read_label_words(source, label_names)
    return words, answer_tokens(tokenizer, words, prompt if architecture == "causal" else None)
