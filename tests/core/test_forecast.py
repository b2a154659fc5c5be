"""core/forecast.py: exact where time is exactly linear in tokens; and --dry_run, which prints it and writes nothing."""

import json
import math

import pytest

import train
from core.forecast import FIRST, LAST, Forecast, in_words, minutes, report_dry_run
from tests.helpers import replaced
from tests.test_out_of_memory import train_with

COUNTS = {
    "train": 8000,
    "validation": 600,
    "test": 900,
}  # tokens of each split; steps of an epoch are level here
A_TOKEN = 0.01  # seconds that a token takes


def forecast_of(num_steps: int, start: int = 0, eval_steps: int = 10, **changes) -> Forecast:
    return Forecast(start, num_steps, COUNTS | changes, eval_steps, 20, 5.0)


def run(forecast: Forecast, num_steps: int, start: int = 0, before_s: float = 0.0, slow: float = 1.0) -> int:
    """Call it as the loop does, with steps of 400 tokens, the first three `slow` times as slow; returns the step at
    which the forecast was made."""
    seconds, made = before_s, 0
    for done in range(start + 1, num_steps + 1):
        seconds += 400 * A_TOKEN * (slow if done <= start + FIRST else 1.0)
        if forecast.step(done, 400, seconds):
            made = done
            assert forecast.due(done)
    return made


# -- the forecast -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [13, 14, 20, 25, 200])
@pytest.mark.parametrize("start", [0, 7])
def test_steps_linear_in_tokens_are_forecast_exactly(num_steps, start):
    num_steps += start
    forecast = forecast_of(num_steps, start)
    assert run(forecast, num_steps, start, before_s=77.0 * start, slow=9.0) == start + LAST
    evals = len([done for done in range(start + 1, num_steps + 1) if done % 10 == 0 or done == num_steps])
    assert forecast.train_s == pytest.approx(A_TOKEN * 400 * (num_steps - start))
    assert forecast.eval_s == pytest.approx(
        A_TOKEN / 3 * (600 * evals + 600 + 900)
    )  # at the end each split once
    assert forecast.total_s == pytest.approx(5.0 + forecast.train_s + forecast.eval_s)


def test_tokens_are_counted_not_steps():
    """Steps of unlike size: the timed ones are twice as large as the epoch's mean."""
    forecast, seconds = forecast_of(40), 0.0
    for done in range(1, LAST + 1):
        seconds += 800 * A_TOKEN
        forecast.step(done, 800, seconds)
    assert forecast.train_s == pytest.approx(A_TOKEN * 400 * 40)
    assert forecast.train_s != pytest.approx(seconds / LAST * 40)  # bite: by the number of steps


@pytest.mark.parametrize("num_steps, made", [(1, 1), (2, 1), (3, 1), (5, 2), (12, 6)])
def test_a_short_run_is_timed_as_far_as_it_goes(num_steps, made):
    forecast = forecast_of(num_steps)
    assert not forecast.is_made
    assert forecast.total_s is None
    assert str(forecast) == "none, the run is too short"
    assert run(forecast, num_steps) == made
    assert forecast.train_s == pytest.approx(A_TOKEN * 400 * num_steps)
    assert str(forecast) == in_words(forecast.train_s, forecast.total_s)


@pytest.mark.parametrize("num_steps", [8, 9, 15])
def test_a_short_rest_of_a_resumed_run_is_forecast_from_this_start_alone(num_steps):
    forecast = Forecast(7, num_steps, COUNTS, 10, 20, 5.0, trained_s=1000.0)
    run(forecast, num_steps, start=7, before_s=1000.0)
    assert forecast.train_s == pytest.approx(A_TOKEN * 400 * (num_steps - 7))


def test_nothing_is_left_to_do():
    forecast = forecast_of(20, start=20)
    assert run(forecast, 20, start=20) == 0
    assert not forecast.is_made
    assert forecast.train_tokens == 0
    assert forecast.eval_tokens == 600 + 900


def test_evaluations_still_to_come_are_counted():
    # at 10, 20 and 25, and at the end
    assert forecast_of(25).eval_tokens == 600 * 3 + 600 + 900
    assert forecast_of(25, start=10).eval_tokens == 600 * 2 + 600 + 900
    assert forecast_of(20, start=9).eval_tokens == 600 * 2 + 600 + 900
    assert forecast_of(5).eval_tokens == 600 + 600 + 900
    assert forecast_of(20, calibration=50).eval_tokens == 600 * 2 + 600 + 900 + 50


def test_only_two_steps_wait_for_the_device():
    forecast = forecast_of(200)
    assert [done for done in range(201) if forecast.due(done)] == [FIRST, LAST]
    assert [done for done in range(201) if forecast_of(200, start=50).due(done)] == [50 + FIRST, 50 + LAST]


# -- words ------------------------------------------------------------------------------------------------------


def test_minutes_by_hand():
    words = {0: "0.0 s", 0.04: "0.0 s", 1.26: "1.3 s", 59.9: "59.9 s", 60: "1 min 00 s", 61.4: "1 min 01 s"}
    words |= {3599: "59 min 59 s", 3600: "1 h 0 min 00 s", 3725: "1 h 2 min 05 s", 90000: "25 h 0 min 00 s"}
    words |= {3599.7: "1 h 0 min 00 s"}
    assert {seconds: minutes(seconds) for seconds in words} == words


def test_in_words_by_hand():
    assert in_words(30.0, 90.0) == "30.0 s of training, 1 min 30 s in all"


PERF = {"mem/peak_mib": 812.4, "mem/predicted_mib": 800.0, "perf/pad_frac": 0.125, "perf/fill_frac": 0.9}


def made_forecast() -> Forecast:
    forecast = forecast_of(20)
    run(forecast, 20)
    return forecast  # 5 s + 80 s + 9 s


def test_report_prints_the_price_and_json_last(capsys):
    found = report_dry_run(made_forecast(), PERF, 16, 36.0)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {"dry_run": found}
    assert found.keys() >= {"num_steps", "train_tokens", "setup_s", "train_s", "eval_s", "total_s", "price"}
    assert (found["num_steps"], found["train_tokens"], found["peak_mib"]) == (20, 8000, 812.4)
    assert found["total_s"] == pytest.approx(94.0)
    assert found["price"] == pytest.approx(0.94)  # 36 an hour is 1 cent a second
    text = "\n".join(lines)
    for part in (
        "20 steps of 16 rows, 8,000 tokens",
        "12.5% padding, cuts 90% full",
        "price: 0.94 at 36 an hour",
        "1 min 20 s of training, 9.0 s of evaluation, 1 min 34 s in all",
        "812 MiB",
        "800 MiB predicted",
    ):
        assert part in text


def test_report_without_a_price_or_a_prediction(capsys):
    perf = {name: value for name, value in PERF.items() if name != "mem/predicted_mib"}
    found = report_dry_run(made_forecast(), perf, 16, 0.0)
    text = capsys.readouterr().out
    assert "price" not in text
    assert "predicted for" not in text
    assert "price" not in found
    assert found["predicted_mib"] is None


# -- the dry run ------------------------------------------------------------------------------------------------


def tree(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 30])
def test_a_dry_run_writes_nothing_and_stops_early(toy_flags, tmp_path, capsys, monkeypatch, steps):
    def written(*_):
        raise AssertionError("a dry run saved or scored something")

    for name in ("save_model", "save_checkpoint", "score_rows", "RunLog", "report_run"):
        monkeypatch.setattr(train, name, written)
    done = []
    step_seed = train.step_seed
    monkeypatch.setattr(train, "step_seed", lambda *args: done.append(args[1]) or step_seed(*args))
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    found = train.main([*replaced(toy_flags, epochs=5, max_steps=steps), "--dry_run", "--log_steps", "1"])
    new = {path for path in tree(tmp_path) - before if not path.startswith("cache")}
    assert new == set()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"dry_run": found}
    assert max(done) + 1 == {1: 1, 2: 1, 5: 2, 13: 13, 30: 13}[steps]
    assert found["num_steps"] == steps
    assert 0 < found["train_s"] < found["total_s"] < math.inf
    assert found["total_s"] == pytest.approx(found["setup_s"] + found["train_s"] + found["eval_s"])
    assert found["train_tokens"] > 0


def test_a_dry_run_without_output_dir_makes_no_runs_folder(toy_flags, tmp_path, monkeypatch):
    place = toy_flags.index("--output_dir")
    monkeypatch.chdir(tmp_path)
    train.main([*toy_flags[:place], *toy_flags[place + 2 :], "--dry_run"])
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_does_a_step_again_and_writes_nothing(toy_flags, tmp_path):
    flags = [*toy_flags, "--dry_run", "--max_tokens", "60"]
    found = train_with(flags, tmp_path / "run", at={(0, 1): ("backward", 1)})
    assert (found.raised, found.budgets[0]) == (1, [60, 24])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_the_price(toy_flags, capsys):
    found = train.main([*toy_flags, "--dry_run", "--price_per_hour", "2", "--max_tokens", "60"])
    assert found["price"] == pytest.approx(2 * found["total_s"] / 3600)
    assert "at 2 an hour" in capsys.readouterr().out
    assert found["predicted_mib"] is None  # nothing was probed
    assert 0 <= found["pad_frac"] < 1
    assert 0 < found["fill_frac"] <= 1


def test_a_dry_run_with_probes_predicts_memory(toy_flags):
    found = train.main([*toy_flags, "--dry_run"])
    assert found["predicted_mib"] > 0
    assert "price" not in found


def test_a_run_keeps_its_forecast_beside_the_truth(toy_flags, capsys):
    run_folder = train.main([*toy_flags, "--max_steps", "6"])["run"]
    text = capsys.readouterr().out
    with open(f"{run_folder}/run.json") as file:
        timings = json.load(file)["timings"]
    assert timings["forecast_s"] > 0
    assert text.count("forecast: ") == 2  # when it is made, and at the end
    assert "; took " in text
