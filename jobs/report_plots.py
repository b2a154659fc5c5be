"""The report's pictures: figures as SVG inside the page, and those that core/plots.py does not have.

Letters stay letters in the SVG, so that a reader's own fonts draw them, emoji and all scripts included.
"""

import base64
import io
import re
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from core.plots import LONGEST_NAME

BLUE, ORANGE, GREY = "#2c7fb8", "#d95f0e", "0.45"
MOST_PANELS = 12  # labels with a threshold curve of their own
PIXELS = 96  # of CSS, an inch
THRESHOLDS = np.linspace(0.01, 0.99, 99)


def picture(figure: Figure, alt: str, caption: str) -> dict:
    """A block with the figure as an SVG in a data: URI. alt: what it shows, in words, for who does not see it."""
    file = io.BytesIO()
    about = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the same figure gives the same bytes
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # measured without them; the reader's fonts have them
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.08, metadata=about)
    svg = file.getvalue()
    width = float(re.search(rb'<svg[^>]*? width="([\d.]+)pt"', svg).group(1))  # 72 a inch
    uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    width = round(width / 72 * PIXELS)
    return {"kind": "picture", "uri": uri, "alt": alt, "caption": caption, "width": width}


def shorten(name: str) -> str:
    """A name that fits beside an axis; a dollar sign does not open a formula."""
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
    return short.replace("$", r"\$")


def ablation_figure(lines: list[dict], metric: str) -> Figure:
    """The score of each line with its interval, the first on top.

    Args: lines: {"name", "value", "interval": [low, high] or None, "is_baseline"}.
    """
    figure = Figure(figsize=(7.2, 0.9 + 0.32 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for place, line in enumerate(lines):
        colour = GREY if line["is_baseline"] else BLUE
        if line["interval"]:
            axes.plot(line["interval"], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
        inside = "white" if line["is_baseline"] else colour
        axes.plot([line["value"]], [place], "o", color=colour, ms=6.5, mfc=inside)
    last = lines[-1]["value"]
    axes.axvline(last, color=GREY, lw=0.8, ls=":")
    axes.set_yticks(range(len(lines)), [shorten(line["name"]) for line in lines])
    axes.set(xlabel=metric, ylim=(len(lines) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    return figure


def lengths_figure(words: dict[str, np.ndarray]) -> Figure:
    """The share of each part's texts that have at most so many words. Args: (n,) int by part."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.add_subplot()
    for k, (part, values) in enumerate(words.items()):
        if len(values):
            style = (
                {"color": BLUE, "lw": 2.2} if part == "train" else {"color": f"C{k}", "lw": 1.1, "ls": "--"}
            )
            axes.ecdf(np.maximum(values, 1), label=part, **style)
    axes.set(xlabel="Words (logarithmic)", ylabel="Share with at most so many", xscale="log", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(color="0.92", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def curves_figure(curves: list[dict]) -> Figure:
    """Precision, recall and F1 of labels against the threshold, one panel each, the chosen threshold as a line.

    Args: curves: {"name", "threshold", "precision", "recall", "f1": (m,) at THRESHOLDS}.
    """
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(max(2.5 * columns, 3.6), 0.6 + 2.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, curve in zip(panels, curves):
        for key, name, style in (
            ("precision", "precision", {"color": "0.55", "lw": 1.1, "ls": "--"}),
            ("recall", "recall", {"color": ORANGE, "lw": 1.1, "ls": ":"}),
            ("f1", "F1", {"color": BLUE, "lw": 2}),
        ):
            axes.plot(THRESHOLDS, curve[key], label=name, **style)
        axes.axvline(curve["threshold"], color="black", lw=0.9, label="chosen threshold")
        axes.set_title(shorten(curve["name"]), fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("Threshold on the probability", fontsize=10)
    legend = panels[0].get_legend_handles_labels()
    figure.legend(
        *legend, loc="outside upper center", ncols=4 if columns > 1 else 2, frameon=False, fontsize=9
    )
    return figure
