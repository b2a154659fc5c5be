"""Numbers as reports, programs and answers write them: read, compared, and written in one way.

Percent and scale. 3.5% is 0.035 wherever it is computed with. An answer 53% or 53 agrees with 0.53 and with 53, as
programs end with or without a step to percent and answers leave the sign out; $ 3.2 million with 3.2 and 3200000.
"""

import math
import re

CLOSE = 1e-3  # relative: two values nearer than this are the same answer
SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}

DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,3})?"
NUMBER = re.compile(rf"([-+]?)\s*\$?\s*([-+]?)\s*({DIGITS})\s*(%?)")
CELL = re.compile(rf"(\(?)\s*{NUMBER.pattern}\s*(\)?)\s*(%?)")
CONSTANT = re.compile(r"const_(m?)(\d+(?:\.\d+)?)")


def read_number(text: str) -> float | None:
    """The number that a whole text is: 5735, $ 5,735, -4.5, 3.5% (0.035), const_m1 (-1); None where it is none."""
    constant = CONSTANT.fullmatch(text.strip())
    if constant:
        return float(constant[2]) * (-1 if constant[1] else 1)
    found = NUMBER.fullmatch(text.strip())
    if not found:
        return None
    value = float(found[3].replace(",", "")) * (-1 if "-" in found[1] + found[2] else 1)
    return (value / 100 if found[4] else value) if math.isfinite(value) else None


def clean_operand(text: str) -> str:
    """A number as programs write it, without $, spaces and commas: "$ 5,735" is 5735, "3.5 %" is 3.5%."""
    return re.sub(r"[\s$,+]", "", text)


def cell_operand(cell: object) -> str | None:
    """A table cell as an operand: "$ -4.5 ( 4.5 )" is -4.5, "( 12 )" is -12, "3.2% ( 3.2 % )" is 3.2%; else None."""
    text = "" if cell is None else str(cell).strip().removeprefix("$").strip()
    found = CELL.match(text)
    if not found:
        return None
    rest = text[found.end() :]
    if rest.strip() and not re.fullmatch(r"\s*[(\[*$].*|\s+[a-z)].*", rest, re.S):
        return None  # a date, a range, an identifier: 10-12, 3rd
    sign = "-" if "-" in found[2] + found[3] or (found[1] and found[6]) else ""
    return sign + found[4].replace(",", "") + ("%" if found[5] or found[7] else "")


def cell_number(cell: object) -> float | None:
    """A table cell's number, 0.032 for 3.2%; None where it holds none."""
    operand = cell_operand(cell)
    return None if operand is None else read_number(operand)


def close(a: float | str, b: float | str) -> bool:
    """Whether two values are the same answer: within 1e-3 of the larger, or the same word."""
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return abs(a - b) <= CLOSE * max(abs(a), abs(b))


def format_value(value: float | str) -> str:
    """A value as every candidate shows it: four significant digits, whole numbers in full, no zeros at the end."""
    if isinstance(value, str):
        return value
    if value == 0:
        return "0"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def agrees(value: float | str, answer: object) -> bool:
    """Whether a value is the answer that the data gives, by the conventions above.

    An answer is as exact as it is written: 12.7% agrees with 0.1265 to 0.1275, and 12.6% with 0.1269 too, as some cut
    where others round.
    Args:    answer: text, or a number (exe_ans).
    """
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return not isinstance(value, str) and (close(value, answer) or abs(value - answer) <= 1.01e-5)
    text = str(answer).strip().lower().rstrip(".")
    if isinstance(value, str) or text in ("yes", "no"):
        return value == text
    found = NUMBER.search(text)
    if not found:
        return False
    given = float(found[3].replace(",", "")) * (-1 if "-" in found[1] + found[2] else 1)
    last_place = 10.0 ** -len(found[3].partition(".")[2])  # one unit of the last digit written
    factors = [1, 0.01, *(scale for word, scale in SCALES.items() if word in text)]
    return any(
        close(value, given * f) or abs(value - given * f) <= last_place * abs(f) * (1 + 1e-9) for f in factors
    )
