"""Pipelines whose runs are records alone: nothing is trained."""

import json
from pathlib import Path

from jobs import stages
from jobs.pipeline import parse_args
from jobs.pipeline_state import Pipeline


def fake_run(pipe: Pipeline, name: str, score: float, minutes: float = 1.0) -> Path:
    """A finished run's record alone."""
    folder = pipe.folder / "runs" / name
    folder.mkdir(parents=True)
    record = {"status": "finished", "metric": "macro_f1", "metrics": {"validation": {"macro_f1": score}}}
    record |= {"timings": {"total_s": 60 * minutes, "train_s": 50 * minutes}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def train_all_of(monkeypatch, asked: dict, fails: tuple[str, ...] = ()) -> None:
    """Training that is over at once; asked takes the flags by name."""

    def train(self, flags):
        asked.update(flags)
        made = [name for name in flags if name not in fails]
        new = [name for name in made if not (self.folder / "runs" / name).exists()]
        for name in new:
            fake_run(self, name, 0.5)
        return {name: self.folder / "runs" / name for name in made}, dict.fromkeys(fails, "it broke")

    monkeypatch.setattr(Pipeline, "train", train)


def combine_anything(monkeypatch) -> None:
    """jobs.ensemble with a record and no more."""

    def combine(argv):
        runs, folder = argv[: argv.index("--output_dir")], Path(argv[argv.index("--output_dir") + 1])
        folder.mkdir()
        members = [{"run": f"../{Path(run).name}"} for run in runs]
        made = {
            "status": "finished",
            "ensemble": {"method": "mean", "members": members},
            "metric": "macro_f1",
        }
        (folder / "run.json").write_text(json.dumps(made | {"metrics": {"validation": {"macro_f1": 0.6}}}))

    monkeypatch.setattr(stages.ensemble, "main", combine)


def existing(pipe: Pipeline, name: str, score: float) -> Path:
    folder = pipe.folder / "runs" / name
    return folder if folder.exists() else fake_run(pipe, name, score)


def with_single(flags: list[str], score: float = 0.6) -> Pipeline:
    """A pipeline whose single model is done, in one minute."""
    pipe = Pipeline(parse_args(flags), ["python"])
    pipe.do("single", lambda pipe: {"what": "", "run": fake_run(pipe, "single", score)})
    return pipe
