"""The report of a pipeline, or of one finished run: report.html (one file, no network, no script) and report.md.

    python -m jobs.report OUTPUT                     # of python -m jobs.pipeline --output_dir OUTPUT, finished or not
    python -m jobs.report runs/minilm/docstrings/20260101-120000-seed0      # of one run of train.py
    python -m jobs.report OUTPUT --examples 0        # without any text of the data, to pass on

What it says: what was asked, the data and its problems, what each stage brought and cost, with intervals, each class,
confusions, precision-recall and reliability, thresholds, the hardest rows, errors in text, a model card. Both files
are written into the folder. It shows texts of the test rows: keep it as you keep the data. Nothing is trained or
scored; the numbers are those that the folder holds.
"""

import json
import time
from pathlib import Path

from core.errors import disk_errors, run_main
from core.files import write_text
from core.flags import Parser, number
from jobs.report_facts import gather
from jobs.report_page import html_page, markdown_page
from jobs.report_sections import attempt, sections
from jobs.report_words import cards


# fmt: off
def parse_args(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("folder", metavar="OUTPUT", help="a folder of jobs.pipeline, or a run folder of a classifier")
    flag("--examples", type=number(int, 0, 1000), default=10, help="hardest rows shown; 0: no text of the data at all")
    flag("--text_length", type=number(int, 1, 100_000), default=300, help="characters of a text, the rest is cut off")
    return parser.parse_args(argv)
# fmt: on


def alerts(facts: dict) -> list[str]:
    """What must be read before the numbers."""
    pipeline, told = facts["pipeline"], []
    if pipeline["status"] != "finished":
        what = "pipeline" if facts["is_pipeline"] else "run"
        done = [stage["name"] for stage in pipeline["stages"] if stage["status"] == "done"]
        last = f" The last stage that is done: {done[-1]}." if facts["is_pipeline"] and done else ""
        told.append(f"This {what} is still {pipeline['status']}: what follows is what stands so far, and no test row "
                    f"has been looked at.{last}")  # fmt: skip
    elif facts["result"] and facts["result"]["part"] != "test":
        told.append(
            "No test rows were scored: all numbers are of validation rows, which helped to choose the model."
        )
    told += [
        f"{stage['name']} failed: {stage['why']}"
        for stage in pipeline["stages"]
        if stage["status"] == "failed"
    ]
    return told


def write_report(folder: Path, examples: int = 10, text_length: int = 300) -> dict:
    """Write report.html and report.md into a pipeline's or a run's folder.

    Args:    examples: hardest rows shown, and a third of that of each kind of error; 0: no text of the data |
             text_length: characters of a text.
    Returns: {"report", "markdown": paths, "missing": sentences on what could not be shown}.
    Raises:  UserError when the folder holds neither a pipeline nor a classifier's run, or cannot be written to.
    """
    folder = Path(folder)
    facts = gather(folder)
    pipeline = facts["pipeline"]
    title = (
        Path(str(pipeline["data"]["file"] or folder)).name if facts["is_pipeline"] else folder.resolve().name
    )
    report = {
        "title": f"Report: {title}",
        "subtitle": f"{folder} \u00b7 written {time.strftime('%Y-%m-%d %H:%M')}",
        "alerts": alerts(facts),
        "cards": attempt(cards, facts, "The first screen", []),
        "sections": sections(facts, examples, text_length),
    }
    with disk_errors(folder, "another folder"):
        write_text(folder / "report.html", html_page(report))
        write_text(folder / "report.md", markdown_page(report))
    return {
        "report": str(folder / "report.html"),
        "markdown": str(folder / "report.md"),
        "missing": facts["missing"],
    }


def main(argv=None) -> dict:
    """Write the report; returns what write_report does."""
    args = parse_args(argv)
    written = write_report(Path(args.folder), args.examples, args.text_length)
    for sentence in written["missing"]:
        print(f"note: {sentence}")
    print(f"report: {written['report']}\n{json.dumps(written, ensure_ascii=False)}")
    return written


if __name__ == "__main__":
    run_main(main)
