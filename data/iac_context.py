"""The lines around a finding, however an analyser wrote them, in one layout with the flagged line marked."""

import re
import textwrap
from itertools import pairwise

WAYS = ("number", "marker", "content", "not_found")
FLAG = "--> "
# 99 % of the lines of 1,548 real contexts have under 124 characters, one has 1,648 (counted 2026-11-20)
LONGEST_LINE, LONGEST_FLAGGED = 240, 480

# How a line may be numbered and marked. A weak mark is code in Puppet, Ruby or YAML too: it counts only where the
# rest of the line reads as `content`.
STRONG = re.compile(
    r"\s*(?:>>+|[-=]{2,}>|\*\*+|!!+|[\u2192\u25b6\u27a4]|\[(?:flagged|target|here|x)\]|flagged:)(?=.*\S)",
    re.I,
)
WEAK = re.compile(r"\s*(?:>|[-=]>|\*|!)(?=.*\S)")
NUMBER = re.compile(
    r"\s*(?:line |l)?[\[(]?(\d{1,7})[\])]?(?:[:.)](?!\d)|-(?!\d)|\s*[>*!=]*\||(?=\s*[>*!=])|\s|$) ?", re.I
)
TAIL = re.compile(
    r"(?<=\S)\s+(?:(?:#|//)\s*(?:<[-=<]+[\s\w]*|flagged|target|finding)|<(?:--+|==+|<<+)[\s\w]*)[\s!*.]*$",
    re.I,
)
TAGS = re.compile(r"\s*(?:<(mark|flagged|flag|target|line|smell|finding|b)>(.+)</\1>|\*\*(.+)\*\*)\s*$", re.I)
FENCE = re.compile(r"\s*(?:```.*|~~~.*|</?(?:code|context|snippet|pre)>)?\s*$", re.I)
HEADER = re.compile(r"\s*(?:#|//|--|==|;)[#/=;\s-]*(?:\w+ )?(?:file|path|file ?name)\s*:", re.I)


def same(text: str, content: str) -> bool:
    """Whether a line reads as `content`, white space aside."""
    return text.split() == content.split()


def agrees(text: str, content: str) -> bool:
    """Whether a line reads as `content` or one is a part of the other: either may be cut."""
    text, content = (re.sub(r"\s+|\.{3}$", "", part) for part in (text, content))
    short, long = sorted((text, content), key=len)
    return short == long or (len(short) >= 8 and short in long)


def peelings(text: str) -> dict[str, bool]:
    """The ways to read a line without its number and marks, the least peeled first; whether a mark went."""
    found, queue = {text: False}, [text]
    for code in queue:  # grows while it is read
        peeled = [(code[m.end() :], True) for m in (STRONG.match(code), WEAK.match(code)) if m]
        peeled += [(code[: m.start()], True) for m in [TAIL.search(code)] if m]
        peeled += [(m[2] or m[3], True) for m in [TAGS.match(code)] if m]
        peeled += [(code[m.end() :], found[code]) for m in [NUMBER.match(code)] if m]
        queue += [rest for rest, _ in peeled if rest not in found]
        found = dict(peeled) | found
    return {code: found[code] for code in queue}


def drop_numbers(texts: list[str], line: int) -> tuple[list[str], list[int], set[int]]:
    """The lines without their line numbers, which have the number `line`, and which a strong mark before a number.

    A number is a line's number where it is as far from `line` as its place is from the one numbered `line`, or
    where most lines have one and they grow from line to line. Other numbers are code.
    """
    marks = [STRONG.match(text) or WEAK.match(text) for text in texts]
    found = [NUMBER.match(t) or (m and NUMBER.match(t, m.end())) for t, m in zip(texts, marks, strict=True)]
    numbers = {i: int(match[1]) for i, match in enumerate(found) if match}
    at = [i for i, number in numbers.items() if number == line]
    many = len(numbers) > 2 and 2 * len(numbers) > sum(bool(text.strip()) for text in texts)
    if not (many and all(a < b for a, b in pairwise(numbers.values()))):
        numbers = {j: number for j, number in numbers.items() if any(number - line == j - i for i in at)}
    codes = [text[found[i].end() :] if i in numbers else text for i, text in enumerate(texts)]
    return codes, at, {i for i in numbers if STRONG.match(texts[i])}


def unmarked(code: str) -> str:
    """A line without its strong marks."""
    tagged, tail = TAGS.match(code), TAIL.search(code)
    code = (tagged[2] or tagged[3]) if tagged else code[: tail.start()] if tail else code
    strong = STRONG.match(code)
    return code[strong.end() :] if strong else code


def find_flagged(texts: list[str], line: int, content: str) -> tuple[list[str], int | None, str]:
    """The lines without numbers, the flagged one without marks too; which one it is; which of WAYS found it."""
    content = next(filter(str.strip, content.splitlines()), content)
    codes, numbered, marked_number = drop_numbers(texts, line)
    exact: dict[int, tuple[str, bool]] = {}  # lines that read as content: as what, and whether a mark went
    for i, text in enumerate(texts):
        for code, has_mark in peelings(text).items():
            if same(code, content):
                exact.setdefault(i, (code, has_mark))
    partly = [i for i, code in enumerate(codes) if agrees(code, content)]
    marked = [i for i, code in enumerate(codes) if i in marked_number or unmarked(code) != code]
    # `80: x` may be the code of line 80
    numbered = [i for i in numbered if not (i in exact and exact[i][0] == texts[i])]
    choices = [
        ("number", [i for i in numbered if i in exact or i in partly]),
        ("marker", [i for i, (_, has_mark) in exact.items() if has_mark]),
        ("content", list(exact)),
        ("content", partly),
        ("number", numbered),
        ("marker", marked if len(marked) == 1 else []),
    ]
    way, found = next(((way, found) for way, found in choices if found), ("not_found", []))
    if not found:
        return codes, None, way
    at = min(found, key=lambda i: abs(2 * i - len(texts) + 1))  # of several, the one in the middle
    codes[at] = exact[at][0] if at in exact else unmarked(codes[at]) if at in marked else codes[at]
    return codes, at, way


def clip(text: str, most: int) -> str:
    """The text, cut to `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def mark_context(
    with_context: str, line: int, content: str, context_lines: int | None = None, keep_indent: bool = False
) -> tuple[str, str]:
    """The code in one layout, its flagged line behind FLAG, and which of WAYS found that line.

    Args:    context_lines: lines to keep on either side; None: all.
    """
    texts = with_context.expandtabs(4).splitlines()
    while texts and (FENCE.match(texts[0]) or (HEADER.match(texts[0]) and not same(texts[0], content))):
        texts.pop(0)
    while texts and FENCE.match(texts[-1]):
        texts.pop()
    codes, at, way = find_flagged(texts, line, content)
    if at is None:
        at = len(codes)
        codes.append(" ".join(content.split()))
    codes = textwrap.dedent("\n".join(codes)).split("\n") if keep_indent else [c.strip() for c in codes]
    codes = [
        clip(code.rstrip(), LONGEST_LINE if i != at else LONGEST_FLAGGED) for i, code in enumerate(codes)
    ]
    codes[at] = FLAG + codes[at]
    start, end = 0, len(codes)
    if context_lines is not None:
        start, end = max(0, at - context_lines), at + context_lines + 1
    return "\n".join(codes[start:end]).strip("\n"), way
