"""Plain text tables of metrics for the terminal, at most 110 columns wide."""

import math

WIDTH = 110
LONGEST_NAME = 40


def format_table(rows: list[tuple[str, dict]], columns: list[str]) -> str:
    """An aligned table, one line a row; columns that do not fit in 110 characters go to a block below.

    Args:    rows: (name, metrics) each; a name over 40 characters loses its middle.
             columns: keys of the metrics, in the order wanted.
    Returns: text without a final line break. Floats have 4 decimals; "-" is missing, None or not a number.
    """
    names = [_shorten(name) for name, _ in rows]
    name_width = max(map(len, ["name", *names]))
    blocks, room = [[]], WIDTH - name_width
    for column in columns:
        cells = [column, *(_cell(metrics.get(column)) for _, metrics in rows)]
        width = max(map(len, cells)) + 2
        if blocks[-1] and width > room:
            blocks.append([])
            room = WIDTH - name_width
        blocks[-1].append([cell.rjust(width) for cell in cells])
        room -= width
    tables = []
    for block in blocks:
        head, *lines = [
            "".join(parts) for parts in zip([n.ljust(name_width) for n in ["name", *names]], *block)
        ]
        tables.append("\n".join([head, "-" * len(head), *lines]))
    return "\n\n".join(tables)


def format_per_class(metrics: dict, most: int = 30) -> str:
    """The per-class table, the class with most rows first.

    Args:    metrics: what classification_metrics returns; only its `per_class` is read.
             most: classes shown; a last line says how many are left out.
    Returns: text without a final line break: precision, recall, f1, support and, where there, f1_tuned.
    """
    classes = sorted(metrics["per_class"].items(), key=lambda item: -item[1]["support"])
    columns = ["precision", "recall", "f1", "support"]
    if any("f1_tuned" in values for _, values in classes):
        columns.append("f1_tuned")
    table = format_table(classes[:most], columns)
    left_out = classes[most:]
    if left_out:
        largest = left_out[0][1]["support"]
        table += f"\n... and {len(left_out)} more, none with a support over {largest}"
    return table


def _cell(value) -> str:
    """One value as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _shorten(name: str) -> str:
    """The name, without its middle when it is too long: run folders differ at their ends."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 3) // 2
    return f"{name[: LONGEST_NAME - 3 - half]}...{name[-half:]}"
