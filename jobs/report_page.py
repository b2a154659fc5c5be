"""A report as one HTML page and as Markdown, from plain sections. Nothing here knows what is reported.

A report is {"title", "subtitle", "alerts", "cards", "sections"}; a section {"id", "title", "blocks"}; a block has a
"kind" and what HTML_KINDS and MARKDOWN_KINDS below read of it. Words, of a paragraph, a cell, a list item, are a string
or a list of strings and (mark, string) pairs, with a mark of MARKS, or ("link", string, id of a section). All of it
is escaped here, and nowhere else. The page asks nothing of the network, and its own policy forbids that it could.
"""

import re
from html import escape

from jobs.report_style import STYLE

Words = str | list
MARKS = (
    "strong",
    "code",
    "small",
    "data",
    "good",
    "flat",
    "bad",
    "link",
)  # data: a name or a text out of the rows
# What XML, a terminal or a line of Markdown cannot hold: control characters, halves of surrogate pairs, non-characters;
# and the controls of the writing direction, which would turn round what stands behind them.
ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
LONGEST_LABEL = 80  # characters
SHORT = 14  # lines of a table: up to here it is not divided between two pages
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def clean(text: str, one_line: bool = True) -> str:
    """Text that every format can hold: what cannot be shown as U+FFFD; on one line, or with no empty lines."""
    text = ODD.sub("\ufffd", str(text).replace("\r\n", "\n").replace("\r", "\n"))
    return " ".join(text.split()) if one_line else re.sub(r"\n\s*\n+", "\n", text).strip()


def cut(text: str, length: int) -> str:
    """The first length characters, and of a longer text how long it is."""
    return text if len(text) <= length else f"{text[:length].rstrip()}\u2026 ({len(text):,} characters)"


# -- blocks that most sections are made of ----------------------------------------------------------------------


def text(*words) -> dict:
    """A paragraph."""
    return {"kind": "text", "words": list(words)}


def note(*words) -> dict:
    """A paragraph in small print."""
    return {"kind": "note", "words": list(words)}


def heading(words: Words) -> dict:
    """A heading inside a section."""
    return {"kind": "heading", "words": words}


def bullets(items: list[Words]) -> dict:
    """A list."""
    return {"kind": "list", "items": items}


def more(title: Words, *blocks: dict) -> dict:
    """Blocks that a reader opens."""
    return {"kind": "more", "title": title, "blocks": list(blocks)}


def aside(title: Words, *blocks: dict) -> dict:
    """As more, for what only somebody wants who looks something up: not on paper."""
    return more(title, *blocks) | {"is_aside": True}


def table(caption: Words, head: list[Words], rows: list[list[Words]], left: int = 1) -> dict:
    """A table; the first `left` columns are text, the others numbers."""
    return {"kind": "table", "caption": caption, "head": head, "rows": rows, "left": left}


def facts_list(items: list[tuple[Words, Words]]) -> dict:
    """Terms and what they are."""
    return {"kind": "facts", "items": items}


def label_words(label: str) -> tuple[str, str]:
    """A label's name as words."""
    return "data", clean(cut(label, LONGEST_LABEL))


# -- HTML -------------------------------------------------------------------------------------------------------


def html_words(words: Words) -> str:
    """Words as HTML."""
    if isinstance(words, str):
        return escape(ODD.sub("\ufffd", words))
    return "".join(html_words(part) if isinstance(part, str) else html_mark(*part) for part in words)


def html_mark(mark: str, text: str, target: str = "") -> str:
    """One marked piece of words."""
    text = html_words(text)
    if mark == "link":
        return f'<a href="#{escape(target)}">{text}</a>'
    if mark in ("good", "flat", "bad"):
        return f'<span class="tag {mark}">{text}</span>'
    return f"<bdi>{text}</bdi>" if mark == "data" else f"<{mark}>{text}</{mark}>"


def html_block(block: dict) -> str:
    """One block."""
    return HTML_KINDS[block["kind"]](block)


def html_list(block: dict) -> str:
    """A list of words."""
    return "<ul>" + "".join(f"<li>{html_words(item)}</li>" for item in block["items"]) + "</ul>"


def html_facts(block: dict) -> str:
    """Terms and what they are."""
    lines = [
        f"<div><dt>{html_words(name)}</dt><dd>{html_words(value)}</dd></div>"
        for name, value in block["items"]
    ]
    return f"<dl>{''.join(lines)}</dl>"


def html_table(block: dict) -> str:
    """A table in a box of its own that scrolls sideways. The first cell of a line is its head; the first `left`
    columns (default: 1) are text, the others numbers."""
    left, caption = block.get("left", 1), html_words(block["caption"])

    def cell(tag: str, k: int, words: Words, scope: str = "") -> str:
        kind = ' class="n"' if k >= left else ""
        return f"<{tag}{scope}{kind}>{html_words(words)}</{tag}>"

    head = "".join(cell("th", k, words, ' scope="col"') for k, words in enumerate(block["head"]))
    lines = []
    for row in block["rows"]:
        cells = [cell("td", k, words) for k, words in enumerate(row[1:], 1)]
        lines.append("<tr>" + cell("th", 0, row[0], ' scope="row"') + "".join(cells) + "</tr>\n")
    label = f'role="region" aria-label="{caption}" tabindex="0"'
    short = ' class="short"' if len(lines) <= SHORT else ""
    return (
        f'<div class="scroll" {label}><table{short}><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{''.join(lines)}</tbody></table></div>"
    )


def html_picture(block: dict) -> str:
    """A picture (a data: URI) that shrinks with the page, down to a width that can still be read."""
    width, alt = block["width"], escape(clean(block["alt"]))
    image = (
        f'src="{escape(block["uri"])}" alt="{alt}" width="{width}" style="min-width:{round(0.75 * width)}px"'
    )
    caption = f"<figcaption>{html_words(block['caption'])}</figcaption>"
    return f'<figure><div class="scroll" tabindex="0"><img {image}></div>{caption}</figure>'


def html_rows(block: dict) -> str:
    """Rows of data: a text, and facts about it."""
    items = []
    for row in block["rows"]:
        facts = "".join(f"<span>{html_words(words)}</span>" for words in row["facts"])
        text = f'<p class="quote" dir="auto">{escape(clean(row["text"], False))}</p>' if row["text"] else ""
        items.append(f'<li>{text}<p class="about">{facts}</p></li>')
    return f'<ol class="rows">{"".join(items)}</ol>'


def html_more(block: dict) -> str:
    """Blocks that are opened by who wants them; on paper they are open."""
    inside = "".join(map(html_block, block["blocks"]))
    kind = ' class="aside"' if block.get("is_aside") else ""
    return f"<details{kind}><summary>{html_words(block['title'])}</summary>{inside}</details>"


HTML_KINDS = {
    "text": lambda block: f"<p>{html_words(block['words'])}</p>",
    "note": lambda block: f'<p class="note">{html_words(block["words"])}</p>',
    "heading": lambda block: f"<h3>{html_words(block['words'])}</h3>",
    "code": lambda block: f"<pre><code>{escape(clean(block['text'], False))}</code></pre>",
    "list": html_list,
    "facts": html_facts,
    "table": html_table,
    "picture": html_picture,
    "rows": html_rows,
    "more": html_more,
}


def html_card(card: dict) -> str:
    """A question of the first screen with its answer: `value` large, words below, or a list."""
    value = f'<p class="value">{html_words(card["value"])}</p>' if card.get("value") else ""
    below = "".join(f"<p>{html_words(words)}</p>" for words in card.get("below", []))
    items = html_list({"items": card["items"]}) if card.get("items") else ""
    return f'<div class="card"><h2>{html_words(card["title"])}</h2>{value}{below}{items}</div>'


def html_section(section: dict) -> str:
    """A section under its title."""
    name, blocks = escape(section["id"]), "\n".join(map(html_block, section["blocks"]))
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{html_words(section["title"])}</h2>\n{blocks}</section>\n'
    )


def html_page(report: dict) -> str:
    """The whole page."""
    title = html_words(report["title"])
    alerts = "".join(f'<p class="alert" role="note">{html_words(words)}</p>' for words in report["alerts"])
    contents = "".join(
        f'<li><a href="#{escape(part["id"])}">{html_words(part["title"])}</a></li>'
        for part in report["sections"]
    )
    cards, sections = "".join(map(html_card, report["cards"])), "".join(map(html_section, report["sections"]))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="robots" content="noindex">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{title}</h1><p class="subtitle">{html_words(report["subtitle"])}</p>{alerts}</header>\n'
        f'<main>\n<div class="cards">{cards}</div>\n'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n{sections}</main>\n</body>\n</html>\n'
    )


# -- Markdown ---------------------------------------------------------------------------------------------------


def markdown_words(words: Words) -> str:
    """Words as Markdown, on one line; nothing in them is read as Markdown or HTML."""
    if not isinstance(words, str):
        return "".join(
            markdown_words(part) if isinstance(part, str) else markdown_mark(*part) for part in words
        )
    flat = re.sub(r"\s+", " ", ODD.sub("\ufffd", words))
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;")


def markdown_mark(mark: str, text: str, target: str = "") -> str:
    """One marked piece of words."""
    if mark == "code" and "`" not in text:  # in a table a bar ends the cell even between backticks
        return f"`{clean(text)}`" if "|" not in text else f"<code>{markdown_words(text)}</code>"
    text = markdown_words(text)
    if mark in ("small", "good", "flat", "bad"):  # lines of their own in HTML
        return f" {text}"
    return {"strong": f"**{text}**", "link": f"[{text}](#{target})"}.get(mark, text)


def markdown_table(block: dict) -> str:
    """A table under its caption."""
    left = block.get("left", 1)
    head = [markdown_words(words) for words in block["head"]]
    lines = [head, ["---" if k < left else "---:" for k in range(len(head))]]
    lines += [[markdown_words(words) for words in row] for row in block["rows"]]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{markdown_words(block['caption'])}\n\n{table}"


def markdown_rows(block: dict) -> str:
    """Rows of data as a numbered list."""
    lines = []
    for k, row in enumerate(block["rows"], 1):
        facts = "; ".join(markdown_words(words) for words in row["facts"])
        text = markdown_words(row["text"])
        lines.append(f"{k}. {text}<br>{facts}" if text else f"{k}. {facts}")
    return "\n".join(lines)


MARKDOWN_KINDS = {
    "text": lambda block: markdown_words(block["words"]),
    "note": lambda block: f"> {markdown_words(block['words'])}",
    "heading": lambda block: f"### {markdown_words(block['words'])}",
    "code": lambda block: "\n".join("    " + line for line in clean(block["text"], False).split("\n")),
    "list": lambda block: "\n".join(f"- {markdown_words(item)}" for item in block["items"]),
    "facts": lambda block: "\n".join(f"- {markdown_words(n)}: {markdown_words(v)}" for n, v in block["items"]),
    "table": markdown_table,
    "picture": lambda block: f"Picture (in report.html): {markdown_words(clean(block['alt']))}",
    "rows": markdown_rows,
    "more": lambda block: f"### {markdown_words(block['title'])}\n\n" + markdown_blocks(block["blocks"]),
}  # fmt: skip


def markdown_blocks(blocks: list[dict]) -> str:
    """Blocks with an empty line between them."""
    return "\n\n".join(MARKDOWN_KINDS[block["kind"]](block) for block in blocks)


def markdown_page(report: dict) -> str:
    """The whole report."""
    parts = [f"# {markdown_words(report['title'])}", markdown_words(report["subtitle"])]
    parts += [f"> **{markdown_words(words)}**" for words in report["alerts"]]
    for card in report["cards"]:
        told = [card["value"]] if card.get("value") else []
        parts.append(f"## {markdown_words(card['title'])}")
        parts += [markdown_words(words) for words in told + card.get("below", [])]
        parts += [MARKDOWN_KINDS["list"](card)] if card.get("items") else []
    for section in report["sections"]:
        parts += [
            f'<a id="{section["id"]}"></a>\n\n## {markdown_words(section["title"])}',
            markdown_blocks(section["blocks"]),
        ]
    return "\n\n".join(parts) + "\n"
