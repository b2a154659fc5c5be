"""The table of an audit: what was found as rows, and as files for people and for programs.

A row: {"verdict", "given", "suggested", "given_probability", "suggested_probability", "score", "kinds", "text", "pair",
"why", "row", "line"}; pair where the rows have one. In JSONL labels are a name, or with several a list of names; in CSV
names with commas between them (JSON where a name has a comma). row counts the rows of the file from 1, line its lines.
"""

import csv
import io
import json

import numpy as np

from core.confident_learning import find_issues, label_scores, one_vs_rest
from jobs.audit_rows import Audited, Others

KINDS = ("label", "duplicate", "test", "validation")
LONGEST_CELL = 2000  # characters of a text in the CSV; a spreadsheet's cell ends at 32,767
SHOWN = 120  # characters of another row's text in "why"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins so


# -- found ------------------------------------------------------------------------------------------------------


def suspect_labels(
    probs: np.ndarray, audited: Audited, method: str, ranking: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which labels are probably wrong: (N, C) bool, of the given label or with several of any; (N, C) float64 scores.

    Args: probs: (N, C), NaN in rows that no fold held out: no issue there, and no score. With one label a row, all
          but the given label's score is infinite.
    """
    judged = np.isfinite(probs).all(axis=1)
    issues = np.zeros(audited.truth.shape, bool)
    scores = np.full(audited.truth.shape, np.inf)
    scores[~judged] = np.nan
    if not judged.any():
        return issues, scores
    if audited.team.multi_label:
        for c, (p, given) in enumerate(one_vs_rest(probs[judged], audited.truth[judged])):
            issues[judged, c] = find_issues(p, given, method)
            scores[judged, c] = label_scores(p, given, ranking)
        return issues, scores
    labels, rows = audited.labels[judged], np.flatnonzero(judged)
    issues[rows, labels] = find_issues(probs[judged], labels, method)
    scores[rows, labels] = label_scores(probs[judged], labels, ranking)
    return issues, scores


def table_rows(
    audited: Audited,
    probs: np.ndarray,
    issues: np.ndarray,
    scores: np.ndarray,
    conflicts: np.ndarray,
    leaks: list[tuple[Others, list[tuple[int, bool]]]],
    is_test: np.ndarray,
) -> list[dict]:
    """The rows with something to look at: suspect labels first, then duplicates, then leaks, each by its score.

    Args: issues, scores: as suspect_labels returns them | conflicts: (N,) as find_conflicts | leaks: as find_leaks |
          is_test: (N,) bool, rows that some folder knows as test rows.
    """
    made, table = [], audited.table
    for n, row in enumerate(table.rows):
        why = {}
        if issues[n].any():
            why["label"] = label_reason(audited, probs, issues, n)
        if conflicts[n] >= 0:
            why["duplicate"] = duplicate_reason(audited, int(conflicts[n]))
        for others, found in leaks:
            place, is_same = found[n]
            if place >= 0:
                how = "the text of" if is_same else "near"
                why[others.use] = f"{how} line {others.lines[place]} of {others.path}"
                why[others.use] += "" if is_same else f": {shorten(others.texts[place])}"
        if is_test[n]:
            why.setdefault("test", "a test row of the run or of the split, by its text")
        if not why:
            continue
        text, pair = audited.team.row_format.text(row)
        place = {"row": n + 1, "line": table.lines[n]}
        found = judgement(audited, probs[n], issues[n], scores[n], n)
        found |= {"kinds": sorted(why, key=KINDS.index), "text": text} | (
            {} if pair is None else {"pair": pair}
        )
        made.append({"verdict": ""} | found | {"why": "; ".join(why.values())} | place)
    return sorted(
        made, key=lambda row: (KINDS.index(row["kinds"][0]), 2 if row["score"] is None else row["score"])
    )


def judgement(audited: Audited, probs: np.ndarray, issues: np.ndarray, scores: np.ndarray, n: int) -> dict:
    """Given and suggested labels of a row and their probabilities; of several the most doubtful label's."""
    names, given = audited.team.label_names, audited.truth[n]
    made = {"given": label_names(audited, given)}
    if np.isnan(probs).any():
        return made | dict.fromkeys(("suggested", "given_probability", "suggested_probability", "score"))
    at = int(scores.argmin())
    if audited.team.multi_label:
        own = float(probs[at] if given[at] else 1 - probs[at])
        found = label_names(audited, given ^ issues), own, 1 - own
    else:
        best = int(probs.argmax())
        found = names[best], float(probs[at]), float(probs[best])
    made |= {"suggested": found[0], "given_probability": round(found[1], 4)}
    return made | {"suggested_probability": round(found[2], 4), "score": round(float(scores[at]), 6)}


def label_names(audited: Audited, given: np.ndarray) -> str | list[str]:
    """The labels of a row: a name, or with several a list. given: (C,) bool."""
    names = [audited.team.label_names[c] for c in np.flatnonzero(given)]
    return names if audited.team.multi_label else names[0]


def label_reason(audited: Audited, probs: np.ndarray, issues: np.ndarray, n: int) -> str:
    """Which labels are doubted, in words."""
    if not audited.team.multi_label:
        return "the label is doubted"
    names, given = audited.team.label_names, audited.truth[n]
    told = [
        f"{'drop' if given[c] else 'add'} {names[c]} (p {probs[n, c]:.2f})" for c in np.flatnonzero(issues[n])
    ]
    return ", ".join(told)


def duplicate_reason(audited: Audited, other: int) -> str:
    """Which row is near this one and labelled otherwise."""
    given = show_labels(label_names(audited, audited.truth[other]))
    return f"near line {audited.table.lines[other]}, given {given}: {shorten(audited.table.texts[other])}"


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else flat[: SHOWN - 3] + "..."


def show_labels(labels: str | list[str] | None) -> str:
    """Labels as a CSV cell has them."""
    if labels is None or isinstance(labels, str):
        return labels or ""
    return (
        json.dumps(labels, ensure_ascii=False) if any("," in name for name in labels) else ", ".join(labels)
    )


# -- files ------------------------------------------------------------------------------------------------------


def as_jsonl(rows: list[dict]) -> str:
    """One row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: list[dict], has_pair: bool) -> str:
    """For a spreadsheet: with a byte order mark, without cells that it would run as formulas, long texts cut."""
    names = [
        "verdict",
        "given",
        "suggested",
        "given_probability",
        "suggested_probability",
        "score",
        "kinds",
        "text",
    ]
    names += ["pair", "why", "row", "line"] if has_pair else ["why", "row", "line"]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = row | {"given": show_labels(row["given"]), "suggested": show_labels(row["suggested"])}
        cells["kinds"] = " + ".join(row["kinds"])
        for name in ("text", "pair") if has_pair else ("text",):
            cells[name] = cells[name][:LONGEST_CELL]
        writer.writerow({name: guard(value) for name, value in cells.items()})
    return "\ufeff" + file.getvalue()


def guard(value: object) -> object:
    """A text cell that a spreadsheet shows instead of running it: with an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
