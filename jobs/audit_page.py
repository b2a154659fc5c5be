"""The audit as one HTML page that a person works through, and its picture of the estimated noise.

Verdicts typed there are kept by the browser and saved as a file for --apply. Nothing leaves the page: its own policy
lets its one script alone run and no request out. All texts are escaped by jobs/report_page.py.
"""

import hashlib
from base64 import b64encode
from collections import Counter
from html import escape

import numpy as np
from matplotlib.figure import Figure

from core.confident_learning import wrong_share
from core.plots import confusion_figure
from jobs.audit_rows import Audited
from jobs.audit_table import show_labels
from jobs.report_page import clean, html_block, html_card, html_words, label_words, table
from jobs.report_plots import BLUE, ORANGE, picture, shorten
from jobs.report_style import STYLE

MOST_ROWS = 2000  # of a section: a browser is slow with more; the CSV has all
LONGEST_TEXT = 3000  # characters
MOST_LINES = 60  # of the table of labels
TITLES = {
    "label": "Labels that are probably wrong",
    "duplicate": "Near-duplicates with other labels",
    "test": "Training rows that are near test rows",
    "validation": "Training rows that are near validation rows",
}
NOTES = {
    "label": "The most doubtful first. From where on they are nearly all right, the rest can be left.",
    "duplicate": "Two texts that share most of their words, with different labels. In short texts one word can decide.",
    "test": "A test row that was learnt from makes the test score too good: drop the training row.",
    "validation": "Validation rows choose the best step: a copy among the training rows spoils the choice.",
}
STYLE_HERE = """
.rows input { font: inherit; width: 15rem; max-width: 100%; margin-top: .35rem; padding: .2rem .4rem;
  color: var(--text); background: var(--back); border: 1px solid var(--soft); border-radius: .3rem; }
.bar { position: sticky; top: 0; background: var(--panel); padding: .6rem .9rem; border-radius: .5rem; z-index: 1; }
.bar button { font: inherit; padding: .25rem .9rem; margin-right: .8rem; }
@media print { .bar { display: none; } }
"""
SCRIPT = """
const fields = [...document.querySelectorAll("input[data-row]")];
const key = "audit " + document.body.dataset.audit;
let kept = {};
try { kept = JSON.parse(localStorage.getItem(key)) || {}; } catch { }
const count = () => { const done = fields.filter(field => field.value.trim()).length;
  document.getElementById("done").textContent = done + " of " + fields.length + " rows have a verdict"; };
for (const field of fields) {
  field.value = kept[field.dataset.row] || "";
  field.addEventListener("input", () => {
    kept[field.dataset.row] = field.value;
    try { localStorage.setItem(key, JSON.stringify(kept)); } catch { }
    count();
  });
}
document.getElementById("save").addEventListener("click", () => {
  const rows = fields.filter(field => field.value.trim())
    .map(field => JSON.stringify({ row: Number(field.dataset.row), verdict: field.value.trim() }) + "\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(rows, { type: "application/x-ndjson" }));
  link.download = "verdicts.jsonl";
  link.click();
});
count();
"""


def audit_page(audited: Audited, rows: list[dict], summary: dict, joint: np.ndarray | None) -> str:
    """The page. joint: (C, C), with several labels a row (C, 2, 2); None: no label was judged."""
    digest = b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = html_words(["Label audit of ", ("data", clean(audited.path))])
    cards = "".join(map(html_card, cards_of(summary)))
    noise = "" if joint is None else html_noise(audited, joint)
    listed = "".join(html_kind(kind, rows) for kind in TITLES)
    options = "".join(f'<option value="{escape(value)}"></option>' for value in verdicts(audited))
    fix = "fix/A, B" if audited.team.multi_label else "fix/LABEL"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="robots" content="noindex">\n'
        f"<title>Label audit of {escape(clean(audited.path))}</title>\n<style>{STYLE}{STYLE_HERE}</style>\n</head>\n"
        f'<body data-audit="{escape(clean(audited.path))} {audited.sha256}">\n<header><h1>{title}</h1>\n'
        f'<p class="subtitle">{html_words(subtitle(summary))}</p></header>\n'
        f'<main>\n<div class="cards">{cards}</div>\n{noise}<section id="work" aria-labelledby="work-title">'
        f'<h2 id="work-title">Your verdicts</h2><p>Beside each row: <code>keep</code>, <code>drop</code>, '
        f"<code>fix</code> (the suggestion), <code>{fix}</code>, or nothing. This browser keeps what you type; "
        "save it, and give the file to <code>python -m jobs.audit --apply verdicts.jsonl --output_dir</code> with the "
        "folder of this page. Or fill in the first column of audit.csv and give that file.</p></section>"
        f'<p class="bar"><button id="save" type="button">Save verdicts.jsonl</button><span id="done"></span></p>\n'
        f'{listed}</main>\n<datalist id="verdicts">{options}</datalist>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def subtitle(summary: dict) -> str:
    """How the rows were judged, in words."""
    judged = f"{summary['judged']:,} of {summary['rows']:,} rows judged by models that had not seen them"
    if not summary["folds"]:
        return f"{summary['rows']:,} rows, near-duplicates and leaks alone: no model was asked (--folds 0)"
    return f"{judged} ({summary['folds']} folds), by confident learning, {summary['method']}"


def cards_of(summary: dict) -> list[dict]:
    """The numbers of the first screen."""
    found, made = summary["found"], []
    if summary["folds"]:
        wrong = f"{summary['estimated_wrong_frac']:.1%}"
        below = [f"{found['label']:,} rows are listed below", "an estimate: the model's own doubts are in it"]
        made.append({"title": "Labels estimated wrong", "value": wrong, "below": below})
    near = [f"from {summary['near']:g} of their words in common on"]
    made.append(
        {"title": "Near-duplicates with other labels", "value": f"{found['duplicate']:,}", "below": near}
    )
    for use in ("test", "validation"):
        told = summary["compared_with"].get(use)
        below = [f"compared with {told}" if told else "no such rows were given"]
        made.append({"title": f"Training rows near {use} rows", "value": f"{found[use]:,}", "below": below})
    return made


def verdicts(audited: Audited) -> list[str]:
    """What the fields offer."""
    return ["keep", "fix", "drop", *(f"fix/{clean(name)}" for name in audited.team.label_names[:200])]


def html_noise(audited: Audited, joint: np.ndarray) -> str:
    """The estimated noise as a picture and a table."""
    names = audited.team.label_names
    block = picture(
        noise_figure(joint, names),
        "Given labels against estimated true labels",
        "Rows by given label and by the label that the probabilities speak for, calibrated to the given counts."
        if joint.ndim == 2
        else "For each label the estimated share of rows where it is wrongly given, or missing.",
    )
    head, lines = noise_table(joint, names)
    lines = [[[label_words(line[0])], *line[1:]] for line in lines[:MOST_LINES]]
    blocks = html_block(block) + html_block(table("Estimated noise, the noisiest label first", head, lines))
    head = '<section id="noise" aria-labelledby="noise-title"><h2 id="noise-title">Estimated noise</h2>'
    return f"{head}{blocks}</section>\n"


def noise_table(joint: np.ndarray, names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table of labels, the noisiest first."""
    lines = []
    for c, name in enumerate(names):
        own = joint[c]
        if joint.ndim == 3:
            cells = [f"{own[1].sum():,}", f"{own[1, 0]:,}", f"{own[0, 1]:,}"]
            lines.append((wrong_share(own), [name, *cells, f"{wrong_share(own):.1%}"]))
            continue
        wrong = np.where(np.arange(len(names)) == c, 0, own)
        often = f"{clean(names[wrong.argmax()])} ({wrong.max():,})" if wrong.any() else "-"
        share = wrong.sum() / max(own.sum(), 1)
        lines.append((share, [name, f"{own.sum():,}", f"{wrong.sum():,}", f"{share:.1%}", often]))
    head = ["label", "rows", "wrongly given", "missing", "share of all rows"]
    head = head if joint.ndim == 3 else ["given label", "rows", "estimated wrong", "share", "most often"]
    return head, [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


def noise_figure(joint: np.ndarray, names: list[str]) -> Figure:
    """The confident joint: of one label a row as a matrix, of several as bars of what is wrongly given or missing."""
    if joint.ndim == 2:
        figure = confusion_figure(joint.tolist(), names)
        figure.axes[0].set(xlabel="Estimated true label", ylabel="Given label")
        figure.axes[1].set_ylabel("Share of the given label")
        return figure
    order = np.argsort([wrong_share(own) for own in joint], kind="stable")[-MOST_LINES:]
    figure = Figure(figsize=(7.5, 0.26 * len(order) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(order))
    for row, column, label, colour in ((1, 0, "wrongly given", ORANGE), (0, 1, "missing", BLUE)):
        shares = 100 * joint[order, row, column] / np.maximum(joint[order].sum(axis=(1, 2)), 1)
        axes.barh(range(len(order)), shares, left=left, label=label, color=colour)
        left = left + shares
    axes.set_yticks(range(len(order)), [shorten(names[c]) for c in order])
    axes.set(xlabel="Rows (%)", ylim=(-0.6, len(order) - 0.4))
    axes.legend(loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def html_kind(kind: str, rows: list[dict]) -> str:
    """The rows whose first kind is this one, each with a field for a verdict."""
    own = [row for row in rows if row["kinds"][0] == kind]
    if not own:
        return ""
    more = f" The first {MOST_ROWS:,} of {len(own):,}; audit.csv has all." if len(own) > MOST_ROWS else ""
    items = "".join(map(html_row, own[:MOST_ROWS]))
    return (
        f'<section id="{kind}" aria-labelledby="{kind}-title"><h2 id="{kind}-title">{TITLES[kind]} ({len(own):,})</h2>'
        f'<p class="note">{NOTES[kind]}{more}</p><ol class="rows">{items}</ol></section>\n'
    )


def html_row(row: dict) -> str:
    """One row."""
    facts = [["given ", ("data", clean(show_labels(row["given"]) or "none"))]]
    if row["score"] is not None:
        facts[0] += [f" {row['given_probability']:.2f}"]
        suggested = ("data", clean(show_labels(row["suggested"]) or "none"))
        facts += [["suggested ", suggested, f" {row['suggested_probability']:.2f}"]]
    facts += [[f"row {row['row']:,}, line {row['line']:,}"]]
    facts += [[clean(row["why"])]] if row["kinds"] != ["label"] or isinstance(row["given"], list) else []
    about = "".join(f"<span>{html_words(words)}</span>" for words in facts)
    whole = "\n".join(text for text in (row["text"], row.get("pair")) if text)
    text = clean(whole if len(whole) <= LONGEST_TEXT else whole[:LONGEST_TEXT] + " ...", False)
    number = row["row"]
    field = f'<input data-row="{number}" list="verdicts" aria-label="verdict on row {number}" placeholder="verdict">'
    return f'<li><p class="quote" dir="auto">{escape(text)}</p><p class="about">{about}</p>{field}</li>'


def count_kinds(rows: list[dict]) -> dict[str, int]:
    """How many rows have each kind; a row can have several."""
    counts = Counter(kind for row in rows for kind in row["kinds"])
    return {kind: counts[kind] for kind in TITLES}
