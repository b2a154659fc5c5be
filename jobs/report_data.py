"""What a report says of the rows: parts, labels, lengths, and what is wrong with them."""

import numpy as np

from jobs.report_page import bullets, clean, heading, label_words, more, table, text
from jobs.report_plots import lengths_figure, picture
from jobs.report_words import conflicts, count, listing

LABELS_OF_PARTS = 40  # lines of the table of parts that are open
MOST_LABELS = 300  # of those behind them


def data(facts: dict) -> list[dict]:
    """The parts, their labels, their lengths, and what is wrong with them."""
    found = facts["data"]
    if not found:
        return [text("Nothing is known of the rows: their files are not there.")]
    parts, labels = list(found["rows"]), found.get("labels", {})
    order = sorted(labels.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    lines = [
        [[label_words(label)], *(f"{counts.get(part, 0):,}" for part in parts)] for label, counts in order
    ]
    whole = [[("strong", "All rows")], *(f"{found['rows'][part]:,}" for part in parts)]
    shown, rest = lines[:LABELS_OF_PARTS], lines[LABELS_OF_PARTS:]
    blocks = [table("Rows of each part, and those with each label", ["Label", *parts], [whole, *shown])]
    if rest:
        inside = table("Rows with each label", ["Label", *parts], rest[:MOST_LABELS])
        blocks.append(more(f"{count(len(rest), 'rarer label')}", inside))
    blocks += [heading("Problems"), bullets(problems(found) or ["None of those that are looked for."])]
    return blocks + lengths(found)


def lengths(found: dict) -> list[dict]:
    """How long the texts are, as a table and as a picture."""
    words = {part: values for part, values in found.get("words", {}).items() if len(values)}
    if not words:
        return []
    lines = []
    for part, values in words.items():
        numbers = [
            *np.quantile(values, [0.05, 0.5, 0.95, 1]),
            *np.quantile(found["characters"][part], [0.5, 1]),
        ]
        lines.append([part, *(f"{number:,.0f}" for number in numbers)])
    head = ["Part", "5 %", "Median", "95 %", "Longest", "Median, characters", "Longest, characters"]
    told = listing([f"{part} {np.median(values):,.0f}" for part, values in words.items()])
    shown = picture(
        lengths_figure(words),
        f"The share of texts with at most so many words, a line for each part; medians: {told}.",
        "Where the lines of two parts lie apart, their texts are not alike in length.",
    )
    return [
        heading("Lengths"),
        table("Words in a text; 5 %, 95 %: so many texts have fewer", head, lines),
        shown,
    ]


def problems(found: dict) -> list:
    """Sentences on what is wrong with the rows."""
    told: list = []
    for part in found["rows"]:
        without = [label for label, counts in found.get("labels", {}).items() if not counts.get(part)]
        if without:
            words: list = [f"{count(len(without), 'label has', 'labels have')} no {part} row: "]
            for k, label in enumerate(without[:10]):
                words += [", " if k else "", label_words(label)]
            told.append([*words, f" and {len(without) - 10} more" if len(without) > 10 else ""])
    same = found.get("exact_duplicates", {})
    if same.get("rows"):
        told.append(f"{count(same['rows'], 'row repeats', 'rows repeat')} the text of another.")
    if conflicts(found):
        lines = same["with_different_labels"]
        where = (
            "; ".join(", ".join(map(str, own[:4])) for own in lines[:5]) if isinstance(lines, list) else ""
        )
        where = f" (lines {where}{'; ...' if len(lines) > 5 else ''})" if where else ""
        told.append(
            f"{count(conflicts(found), 'text stands', 'texts stand')} there with different labels{where}."
        )
    for part, number in found.get("in_train", {}).items():
        if number:
            rows = count(number, f"{part} row has", f"{part} rows have")
            told.append(f"{rows} the text of a training row: that flatters the score.")
    near = found.get("near_duplicates", {})
    if near.get("rows"):
        share = f"{near.get('near', 0):.0%}".replace("%", " %")
        told.append(f"{near['rows']:,} rows are near-duplicates ({share} of the words in common or more), in "
                    f"{count(near.get('groups', 0), 'group')}; each group is in one part.")  # fmt: skip
    if found.get("dropped"):
        told.append(
            f"{count(len(found['dropped']), 'row was', 'rows were')} dropped for being near to a test row."
        )
    if found.get("bad"):
        told.append(f"{count(found['bad'], 'row')} could not be read.")
    is_told = ("labels have no ", "with different labels")
    return told + [
        clean(line) for line in found.get("warnings", []) if not any(own in line for own in is_told)
    ]
