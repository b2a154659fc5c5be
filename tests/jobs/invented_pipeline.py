"""A made-up output folder of jobs.pipeline: rows with hostile names and texts, made-up scores; nothing is trained."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from core.calibration import apply_calibration, fit_calibration, fit_name
from core.evaluate import headline, measure, write_evaluation
from core.files import save_array, write_json
from core.metrics import probabilities
from core.rows import file_sha256
from core.statistics import bootstrap_scores, percentile_interval
from core.thresholds import best_thresholds
from tests.conftest import write_jsonl

SCRIPT = '<script>alert("x")</script> & <img src=http://evil.example/x.png onerror=alert(1)>'
NAMES = [
    "billing",
    "R&D <beta>",
    "joy \U0001f600",
    'say "no"',
    "a|b`c`",
    "$x_1$ \u4e2d\u6587 and so on and on",
]
WORDS = "the invoice arrived late but nobody answered my mail about it and now I wait for a refund of the fee".split()  # noqa: SIM905
ODD = [
    SCRIPT, "| a | table | in **Markdown** `code` [link](http://evil.example)\n\n# no title", "word " * 800,
    "\u2603 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059",
    "\u05e9\u05dc\u05d5\u05dd \u202e turned round", "a bell \x07 and a \x00", "https://example.com/a", "x" * 500,
]  # fmt: skip
SIZES = {"train": 4, "validation": 1, "calibration": 1, "test": 1}  # times `size`
FLAGS = {
    "train": "train_data",
    "validation": "val_data",
    "calibration": "calibration_data",
    "test": "test_data",
}
NUM_RESAMPLES = 200


def made_up_rows(part: str, num_rows: int, names: list[str], several: bool, rng: random.Random) -> list[dict]:
    """Rows; the later a class the rarer; every eleventh text is an odd one."""
    rows, weights = [], [2.0 ** -min(c, 4) for c in range(len(names))]
    for k in range(num_rows):
        words = [rng.choice(WORDS) for _ in range(int(rng.lognormvariate(2.7, 0.6)) + 3)]
        text = f"{' '.join(words) if k % 11 else ODD[k // 11 % len(ODD)]} {part} {k}"
        own = {name: int(rng.random() < 0.6 * weight + 0.05) for name, weight in zip(names, weights)}
        label = {"labels": own} if several else {"label": rng.choices(names, weights)[0]}
        rows.append({"text": text, **label})
    return rows


def truth_of(rows: list[dict], names: list[str], several: bool) -> np.ndarray:
    """(n, C) bool."""
    return np.array(
        [[bool(r["labels"][name]) if several else r["label"] == name for name in names] for r in rows]
    )


class Maker:
    """Writes run folders and remembers what their lines in pipeline.json need."""

    def __init__(self, folder: Path, several: bool, size: int, names: list[str], seed: int):
        self.folder, self.several, self.names = folder, several, names
        rng = random.Random(seed)
        self.rows = {part: made_up_rows(part, n * size, names, several, rng) for part, n in SIZES.items()}
        first, second = self.rows["train"][:2]
        second["text"] = first["text"]  # a text with two labels
        if not several:
            second["label"] = names[first["label"] == names[0]]
        self.truth = {part: truth_of(rows, names, several) for part, rows in self.rows.items()}
        (folder / "split").mkdir(parents=True)
        split = folder / "split"
        self.paths = {
            part: Path(write_jsonl(split / f"{part}.jsonl", own)) for part, own in self.rows.items()
        }
        self.metric = "macro_f1_tuned" if several else "macro_f1"
        self.decided, self.samples, self.tests = {}, {}, {}

    def write_split(self) -> None:
        """split.json as data.split writes it, as far as the report reads it."""
        counts = {part: truth.sum(axis=0) for part, truth in self.truth.items()}
        write_json(self.folder / "split" / "split.json", {
            "rows": {part: len(own) for part, own in self.rows.items()},
            "labels": {name: {p: int(counts[p][c]) for p in counts} for c, name in enumerate(self.names)},
            "near_duplicates": {"near": 0.7, "groups": 7, "rows": 16}, "dropped": [],
            "exact_duplicates": {"rows": 1, "with_different_labels": [[1, 2]]},
            "warnings": ["train has 41.0% of the rows, asked for were 70.0%; the largest group has 90 rows"],
        })  # fmt: skip

    def write_run(self, key: str, signal: float, other: float = 0.0, calibrated: bool = False) -> dict:
        """A finished run with scores; other: noise of its own | calibrated: as jobs.calibrate leaves it.

        Returns: the numbers of its line.
        """
        run, several, names = self.folder / "runs" / key, self.several, self.names
        record = {
            "status": "finished",
            "arguments": {FLAGS[part]: str(path) for part, path in self.paths.items()},
        }
        record |= {"data": {part: file_sha256(path) for part, path in self.paths.items()}, "metrics": {}}
        row_format = {"text_field": "text", "pair_field": "", "label_field": ""}
        record["model"] = {
            "label_names": names,
            "multi_label": several,
            "row_format": row_format,
            "max_length": 128,
        }
        record["model"] |= {"model_name": "builtin:minilm", "truncate": "head"}
        record |= {
            "metric": self.metric,
            "timings": {"total_s": 90.0},
            "command": ["train.py"],
            "commit": "2c258ae",
        }
        record |= {"hardware": {"cpu": "Made-up CPU", "cores": 2}, "versions": {"torch": "2.13.0"}}
        fit = {"method": "none", "parameters": {}}
        for part in ("validation", "test"):
            truth = self.truth[part]
            rng = np.random.default_rng(len(part))  # the same in all runs: gains are paired
            noise = rng.normal(size=truth.shape) + other * rng.normal(size=truth.shape)
            raw = (2 * signal * (noise + signal * truth - several)).astype(
                np.float32
            )  # twice as sure as it may be
            if calibrated and part == "validation":
                fit = {
                    "method": "temperature",
                    "parameters": fit_calibration("temperature", raw, truth, several),
                }
            shown = apply_calibration(**fit, logits=raw, multi_label=several)
            labels = truth.astype(np.uint8) if several else truth.argmax(axis=1)
            rows = SimpleNamespace(meta={"path": str(self.paths[part])}, label_names=names, multi_label=several,
                                   labels=labels, onehot=lambda truth=truth: truth)  # fmt: skip
            probs = probabilities(shown, several)
            if part == "validation":
                cuts = best_thresholds(probs, labels) if several else None
            metrics = measure(shown, rows, cuts)
            write_evaluation(run / part, shown, rows, metrics, cuts, "the calibration rows")
            save_array(run / part / "logits.npy", raw)
            record["metrics"][part] = headline(metrics)
            said = probs >= cuts if several else probs.argmax(axis=1)[:, None] == np.arange(len(names))
        if calibrated:
            write_json(run / "validation" / "calibration.json", fit | {"label_names": names})
        if several:
            tuned = {"thresholds": dict(zip(names, cuts.tolist())), "tuned_on": "the calibration rows"}
            write_json(run / "validation" / "thresholds.json", tuned | {"fit": fit_name(**fit)})
        write_json(run / "run.json", record)
        self.tests[key] = record["metrics"]["test"][self.metric]
        self.samples[key] = samples = bootstrap_scores(truth, said[None], NUM_RESAMPLES)
        intervals = {name: list(percentile_interval(values)) for name, values in samples.items()}
        return {"run": f"runs/{key}", **record["metrics"], "test_interval": intervals}

    def gain(self, key: str) -> dict:
        """Over the single model."""
        found = {"over": "single", "macro_f1": self.tests[key] - self.tests["single"], "accuracy": 0.0625}
        for name, place in (("macro_f1", "interval"), ("accuracy", "accuracy_interval")):
            found[place] = list(percentile_interval(self.samples[key][name] - self.samples["single"][name]))
        return found


def made_up_output(
    folder: Path, several: bool = False, size: int = 60, names: list[str] = NAMES, seed: int = 0
) -> Path:
    """The folder of a finished pipeline: search brought nothing, architectures failed, feedback had no time,
    self-training was skipped, the ensemble brought something, and it is calibrated."""
    names = names[:5] if several else names
    maker = Maker(folder, several, size, names, seed)
    maker.write_split()
    single = maker.write_run("single", 1.5 + 0.5 * several)
    search = maker.write_run("search", 1.4 + 0.5 * several, other=0.3)
    ensemble = maker.write_run("ensemble", 2.2 + 0.5 * several, calibrated=True)
    lines = [
        {"key": "split", "what": "rows are divided once", "minutes": 0.05},
        {"key": "baselines", "what": "majority class; TF-IDF with logistic regression", "minutes": 0.1},
        {"key": "single", "name": "single model", "what": "a model with <tags>", "minutes": 4.25, **single},
        {"key": "search", "what": "flags searched", "minutes": 12.5, **search, "gain": maker.gain("search"),
         "details": {"trials": 30, "pruned": 18, "best": {"learning_rate": 3.1e-05, "dropout": 0.1234567}}},
        {"key": "architectures", "status": "failed", "why": "out of memory on a single row", "minutes": 0.5},
        {"key": "feedback", "status": "no time", "why": "0.4 min were left, it takes about 3", "minutes": 0.0},
        {"key": "selftrain", "status": "skipped", "why": "no --unlabelled rows given", "minutes": 0.0},
        {"key": "ensemble", "what": "4 runs as one: mean", "minutes": 9.75, **ensemble, "is_cross_fitted": True,
         "gain": maker.gain("ensemble")},
        {"key": "calibration", "name": "calibrated", "what": "probabilities and thresholds", "minutes": 0.2,
         **ensemble, "is_cross_fitted": True, "gain": maker.gain("ensemble"), "details": {"method": "temperature"}},
    ]  # fmt: skip
    blank = {
        "status": "done",
        "why": "",
        "what": "",
        "run": None,
        "validation": None,
        "is_cross_fitted": False,
    }
    blank |= {"test": None, "test_interval": None, "gain": None, "details": {}}
    key = "sk-abcdefghijklmnop"
    arguments = {
        "data": "rows <1>.jsonl",
        "text_field": "text",
        "hours": 0.5,
        "api_key": key,
        "max_tokens": "auto",
    }
    command = ["python", "-m", "jobs.pipeline", "--data", "rows <1>.jsonl", "--api_key", key]
    write_json(folder / "pipeline.json", {
        "status": "finished", "started": "2026-11-20T21:40:00", "minutes": 28.4, "metric": maker.metric,
        "arguments": arguments, "command": command,
        "commit": "2c258ae", "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cpu": "Made-up CPU", "cores": 2, "device": "cpu"}, "multi_label": several, "label_names": names,
        "stages": [blank | {"name": line["key"], "stage": line["key"]} | line for line in lines],
        "baselines": {"majority class": {"validation": {maker.metric: 0.11}, "test": {maker.metric: 0.12}},
                      "TF-IDF + logistic": {"validation": {maker.metric: 0.41}, "test": {
                          maker.metric: 0.4321, "interval": {"macro_f1": [0.38, 0.48]}}}},
        "final": "calibration",
    })  # fmt: skip
    return folder
