"""Ask, take the answers apart, sort out, ask again for what is missing: from prompts to rows."""

import argparse
import math
from collections import Counter

from tqdm import tqdm

from core.cache import LabelColumn
from core.rows import sort_names
from data.check_run import predict
from data.generate_answers import Counts, TextForm, split_answer, why_garbage
from data.generate_checks import NO_CHECK, Novelty, verdict
from data.generate_journal import Journal
from data.generate_local import LocalModel
from data.generate_prompts import Prompt, Task
from data.generate_server import Server


class Made:
    """The rows made so far, and what became of the rest."""

    def __init__(self, labels: list[str], kind: LabelColumn, args: argparse.Namespace):
        self.args, self.kind, self.names = args, kind, sort_names(kind.index)
        self.kept: dict[str, list[dict]] = {name: [] for name in labels}
        self.aside: list[dict] = []
        self.asked, self.doubted, self.dropped = Counter(), Counter(), Counts()
        self.used: dict[tuple, dict] = {}  # answers by Prompt.key

    def missing(self, label: str) -> int:
        """Rows still to be made for a label."""
        return self.args.rows_per_label - len(self.kept[label])

    def add(self, texts: list[tuple[Prompt, str]]) -> None:
        """Rows of new texts: kept, set aside where the run doubts the label, dropped where there are enough."""
        field, found = self.args.text_field, []
        if self.args.check_run:
            rows = [{field: text} for _, text in texts]
            found = predict(self.args.check_run, rows, field, device=self.args.device)
        for k, (prompt, text) in enumerate(texts):
            told = (
                verdict(found[k], prompt.labels, self.args.least_probability)
                if found
                else {"verdict": NO_CHECK}
            )
            origin = {
                "model": self.args.model,
                "prompt_id": prompt.id,
                "index": prompt.index,
                "seed": prompt.seed,
            }
            row = {field: text, **self.label_column(prompt.labels)}
            row |= {} if prompt.source is None else {"source_text": prompt.source}
            row |= {"generated": origin | told}
            if told["verdict"] not in (NO_CHECK, "agrees"):
                self.aside.append(row)
                self.doubted[prompt.label] += 1
            elif self.missing(prompt.label):
                self.kept[prompt.label].append(row)
            else:
                self.dropped.add("more than --rows_per_label", text)

    def label_column(self, labels: tuple[str, ...]) -> dict:
        """The label or labels, in the form that the training rows have."""
        if self.kind.kind == "one":
            return {self.args.label_field or "label": labels[0]}
        value = (
            list(labels) if self.kind.kind == "list" else {name: int(name in labels) for name in self.names}
        )
        return {self.args.label_field or "labels": value}


def texts_of(answer: dict, task: Task, form: TextForm, dropped: Counts) -> list[str]:
    """The texts of a recorded answer; what is none is counted."""
    is_cut = answer["finish_reason"] == "length"
    texts = split_answer(answer["answer"], task.many > 1, form, task.is_chat, is_cut)
    if not texts:
        why = "cut off at --max_new_tokens" if is_cut else "no text in it"
        dropped.add(why if answer["answer"].strip() else "empty answer", answer["answer"])
    good = []
    for text in texts:
        why = why_garbage(text, form)
        if why:
            dropped.add(why, text)
        else:
            good.append(text)
    return good


def run_rounds(
    task: Task, made: Made, source: Server | LocalModel, journal: Journal, novelty: Novelty, form: TextForm
) -> list[str]:
    """Ask until each label has its rows, --rounds times at the most. Returns: why, for each request that failed."""
    bases, failed = {label: task.rows_of(label) for label in made.kept}, []
    for k in range(made.args.rounds):
        prompts = []
        for label, rows in bases.items():
            for _ in range(math.ceil(made.missing(label) / task.many)):
                prompts.append(task.prompt(label, made.asked[label], rows))
                made.asked[label] += 1
        if not prompts:
            break
        open_ones = [prompt for prompt in prompts if prompt.key not in journal.answers]
        title = f"round {k + 1}, {len(prompts) - len(open_ones)} answers from the journal"
        with tqdm(total=len(open_ones), desc=title, unit=" answers", disable=None) as bar:
            failed += source.ask_all(open_ones, journal.add, bar)
        texts = []
        for prompt in prompts:
            answer = journal.answers.get(prompt.key)
            if answer is not None:
                made.used[prompt.key] = answer
                texts += [(prompt, text) for text in texts_of(answer, task, form, made.dropped)]
        is_new = novelty.take([text for _, text in texts], made.dropped)
        made.add([pair for pair, new in zip(texts, is_new, strict=True) if new])
        now = f"{sum(map(len, made.kept.values()))} rows kept, {len(made.aside)} set aside"
        tqdm.write(f"round {k + 1}: {len(prompts)} prompts, {len(texts)} texts; in all {now}")
    return failed


def tokens_and_cost(answers: list[dict], price_in: float | None, price_out: float | None) -> dict:
    """Tokens of answers, how many answers say nothing of them, and dollars without those; None without prices."""
    known = [row for row in answers if None not in (row["prompt_tokens"], row["completion_tokens"])]
    sent, got = (sum(row[name] for row in known) for name in ("prompt_tokens", "completion_tokens"))
    cost = None if price_in is None else (sent * price_in + got * price_out) / 1e6
    return {
        "answers": len(answers),
        "prompt_tokens": sent,
        "completion_tokens": got,
        "answers_of_unknown_tokens": len(answers) - len(known),
        "dollars": cost if cost is None else round(cost, 6),
    }
