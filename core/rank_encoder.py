"""Token ids of a ranking row, in two parts: the prefix (question and context, as the prompt arranges them), and the
candidates behind it. A decoder reads the prefix once for all of them, an encoder once with each.
"""

from dataclasses import asdict

from transformers import PreTrainedTokenizerBase

from core.errors import UserError
from core.rank_rows import RankRow
from core.rows import show
from core.tokens import Template, cut_ids, special_template

CONTEXT, QUESTION = "{context}", "{question}"
DEFAULT = {"causal": "{context}\n\nQuestion: {question}\nAnswer:", "bert": "{question} {context}"}


class RankEncoder:
    """Rows in; the prefix's and the candidates' token ids out. Parts are tokenised each for itself and joined as ids,
    so that a prefix is the same tokens whatever stands behind it.

    Too long a row loses the middle of its context, never its question or a candidate.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, prompt: str, architecture: str):
        """prompt: holds {question} once and {context} once or never; "" is the architecture's default."""
        self.tokenizer, self.max_length, self.architecture = tokenizer, max_length, architecture
        self.prompt = (prompt or DEFAULT[architecture]).replace("\\n", "\n")
        counts = self.prompt.count(QUESTION), self.prompt.count(CONTEXT)
        if counts[0] != 1 or counts[1] > 1:
            raise UserError(
                f"--prompt {show(self.prompt)}: expected {{question}} once and {{context}} at most once, found "
                f"{counts[0]} and {counts[1]}"
            )
        self.pair = architecture == "bert"
        found = special_template(tokenizer, self.pair)
        # a decoder's end token would end the text before the answer; an encoder has a pair: the prefix, the candidate
        self.template = found if self.pair else Template(found.prefix, (), (), False)
        self.typed = found.typed
        self.lead = "" if self.pair or self.prompt[-1].isspace() else " "

    def options(self) -> list:
        """What the cache's key must hold."""
        return ["rank", self.max_length, self.prompt, self.architecture, asdict(self.template)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(
            texts, add_special_tokens=False, truncation=False, padding=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )["input_ids"]  # fmt: skip

    def parts(self, row: RankRow) -> tuple[str, str, str]:
        """The prompt's text before the context, the context, the text behind it."""
        if CONTEXT not in self.prompt or not row.context.strip():
            whole = self.prompt.replace(CONTEXT, "").lstrip()
            return whole.replace(QUESTION, row.question), "", ""
        before, _, after = self.prompt.partition(CONTEXT)
        return before.replace(QUESTION, row.question), row.context, after.replace(QUESTION, row.question)

    def __call__(self, rows: list[RankRow]) -> list[tuple[list[int], list[list[int]], int]]:
        """For each row: the prefix's ids, each candidate's ids, how many tokens of the context were left out.

        The prefix is empty where question or candidates alone are longer than max_length; a candidate without a token
        is empty.
        """
        texts, candidates = [], []
        for row in rows:
            texts += self.parts(row)
            candidates += [self.lead + text for text in row.candidates]
        coded, coded_candidates = iter(self._ids(texts)), iter(self._ids(candidates))
        out = []
        for row in rows:
            before, context, after = (next(coded) for _ in range(3))
            suffix = list(self.template.suffix)
            branches = [next(coded_candidates) for _ in row.candidates]
            branches = [ids + suffix if ids else [] for ids in branches]
            front, back = [*self.template.prefix, *before], [*after, *self.template.middle]
            room = self.max_length - len(front) - len(back) - max(map(len, branches))
            if room < 0 or not before + after:
                out.append(([], branches, 0))
                continue
            kept = list(cut_ids(context, room, "head_tail"))
            out.append(([*front, *kept, *back], branches, len(context) - len(kept)))
        return out


def fault_of(coded: tuple[list[int], list[list[int]], int], max_length: int) -> str:
    """What is wrong with an encoded row, "" for nothing."""
    prefix, branches, _ = coded
    empty = next((k for k, ids in enumerate(branches, 1) if not ids), 0)
    if empty:
        return f"candidate {empty} has no token: empty after tokenisation"
    if not prefix:
        longest = max(map(len, branches))
        return (
            f"question and longest candidate ({longest} tokens) do not fit --max_length {max_length}, even without "
            "the context"
        )
    return ""
