"""Resume is exact: stopped or killed at any step, a run ends with bitwise the same weights, logs and metrics."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from core import budget
from tests.conftest import toy_rows, write_jsonl
from tests.helpers import ROOT, logs, replaced, same, torchrun, weights


class Stopped(Exception):
    """What a test's on_eval raises to end a run in the middle."""


STOP = """
import sys
sys.path.insert(0, {root!r})
import train
def on_eval(step, metrics):
    raise SystemError("stopped")
train.main(sys.argv[1:], on_eval)
"""

RESUMED = {
    "plain": [],
    "weighted": ["--sampler", "weighted", "--schedule", "cosine", "--log_steps", "4"],
    "bf16": ["--amp", "bf16", "--log_steps", "5"],
    "fp16": ["--amp", "fp16", "--max_tokens", "50"],
    "lora": ["--lora_rank", "4", "--lora_dropout", "0.2", "--lora_b_ratio", "16", "--lora_rslora"],
    "mean": ["--head", "residual", "--pooling", "attention", "--layer_decay", "0.8", "--max_tokens", "64"],
    "regularisers": ["--ema", "0.9", "--rdrop", "1", "--fgm", "0.3", "--neftune", "5"],
}


@pytest.mark.gpu
def test_resume_is_bitwise_exact_on_cuda(toy_flags, tmp_path, monkeypatch):
    flags = [*toy_flags, "--deterministic", "--amp", "bf16"]
    test_resume_is_bitwise_exact(flags, tmp_path, monkeypatch, "mean")


@pytest.mark.parametrize("kind", RESUMED)
def test_resume_is_bitwise_exact(toy_flags, tmp_path, monkeypatch, kind):
    # two starts can choose otherwise where --max_tokens is auto: on CPU the fastest is measured
    monkeypatch.setattr(budget, "choose_budget", lambda *args: 100)
    flags = [*toy_flags, "--eval_steps", "3", "--save_steps", "2", *RESUMED[kind]]
    straight = train.main(replaced(flags, output_dir=tmp_path / "straight"))["run"]
    stopped = str(tmp_path / "stopped")

    def stop_at(step):
        def on_eval(now, _):
            if now == step:
                raise Stopped

        return on_eval

    with pytest.raises(Stopped):
        train.main(replaced(flags, output_dir=stopped), stop_at(3))  # saved at 2, so step 3 is done again
    monkeypatch.setattr(budget, "choose_budget", lambda *args: 30)  # what was chosen is never chosen again
    with pytest.raises(Stopped):
        train.main(["--resume", stopped], stop_at(9))
    assert train.main(["--resume", stopped])["run"] == stopped
    for name in ("final_model", "best_model"):
        assert same(weights(straight, name), weights(stopped, name))
    assert logs(straight) == logs(stopped)
    for name in ("metrics.json", "predictions.jsonl", "calibration.json"):
        assert Path(straight, "validation", name).read_text() == Path(stopped, "validation", name).read_text()


def test_another_seed_is_caught_by_the_resume_check(toy_flags, tmp_path):
    a, b = (train.main(replaced(toy_flags, seed=s, output_dir=tmp_path / f"{s}"))["run"] for s in (0, 1))
    assert not same(weights(a), weights(b))


@pytest.mark.dist
def test_a_killed_run_ends_as_if_it_had_not_been(toy_flags, tmp_path):
    flags = [*toy_flags, "--save_steps", "1", "--epochs", "20", "--eval_steps", "7", "--max_tokens", "100"]
    straight = train.main(replaced(flags, output_dir=tmp_path / "straight"))["run"]
    killed = tmp_path / "killed"
    for _ in range(3):
        start = (
            ["--resume", str(killed)]
            if (killed / "run.json").exists()
            else replaced(flags, output_dir=killed)
        )
        process = subprocess.Popen([sys.executable, "train.py", *start], cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        before, deadline = set(killed.glob("checkpoint/step_*")), time.time() + 60
        while len(set(killed.glob("checkpoint/step_*")) - before) < 1 and time.time() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    train.main(["--resume", str(killed)])
    assert same(weights(straight), weights(killed))
    assert logs(straight) == logs(killed)


@pytest.mark.dist
def test_resume_of_two_ranks_is_exact(toy_flags, tmp_path):
    flags = [
        *toy_flags,
        "--save_steps",
        "2",
        "--log_steps",
        "5",
        "--sampler",
        "weighted",
        "--max_tokens",
        "60",
    ]
    done = torchrun(2, "train.py", *replaced(flags, output_dir=tmp_path / "straight"))
    assert done.returncode == 0, done.stderr
    stopped = tmp_path / "stopped"
    (tmp_path / "stop.py").write_text(STOP.format(root=str(ROOT)))
    done = torchrun(2, str(tmp_path / "stop.py"), *replaced(flags, output_dir=stopped), "--eval_steps", "3")
    assert done.returncode != 0
    assert (stopped / "checkpoint" / "step_00000002").is_dir()
    record = json.loads((stopped / "run.json").read_text())
    record["arguments"]["eval_steps"] = 0  # the straight run's
    (stopped / "run.json").write_text(json.dumps(record))
    done = torchrun(2, "train.py", "--resume", str(stopped))
    assert done.returncode == 0, done.stderr
    assert same(weights(tmp_path / "straight"), weights(stopped))


def test_resume_refuses_another_configuration(toy_flags, toy_files, tmp_path):
    run = train.main([*toy_flags, "--eval_steps", "3"])["run"]
    with pytest.raises(train.UserError, match="finished"):
        train.main(["--resume", run])
    record = json.loads(Path(run, "run.json").read_text())
    Path(run, "run.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(train.UserError, match=r"--batch_size is 8, the run's is 16"):
        train.main(["--resume", run, "--batch_size", "8"])
    write_jsonl(Path(toy_files["train"]), toy_rows(96, 5))
    with pytest.raises(train.UserError, match="another data"):
        train.main(["--resume", run])
    with pytest.raises(train.UserError, match="no such folder"):
        train.main(["--resume", str(tmp_path / "nowhere")])
    with pytest.raises(train.UserError, match=r"no run\.json"):
        train.main(["--resume", str(tmp_path)])
