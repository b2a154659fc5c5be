"""A report's numbers in words, and its first screen: how good, how sure, what it cost, what to do next."""

import math

import numpy as np

from core.report import LOWER_IS_BETTER

METRICS = {
    "macro_f1": "macro F1", "micro_f1": "micro F1", "weighted_f1": "weighted F1", "accuracy": "accuracy",
    "macro_f1_tuned": "macro F1 at tuned thresholds", "micro_f1_tuned": "micro F1 at tuned thresholds",
    "weighted_f1_tuned": "weighted F1 at tuned thresholds",
    "subset_accuracy": "share of rows with all labels right at 0.5",
    "subset_accuracy_tuned": "share of rows with all labels right", "roc_auc": "ROC AUC",
    "average_precision": "average precision", "loss": "loss (nats)", "hamming_loss": "Hamming loss at 0.5",
    "hamming_loss_tuned": "Hamming loss at tuned thresholds",
}  # fmt: skip
WIDE = 0.1  # of an interval: from here on the first advice is more test rows
WEAK = 0.15  # below the mean F1: a class that pulls it down
DEAR = 0.1  # share of the minutes from which a stage that brought nothing is worth a word
BADLY_CALIBRATED = 0.05


def metric_name(key: str) -> str:
    """A metric as people say it."""
    return METRICS.get(key, key.replace("_", " "))


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def score(value: object) -> str:
    """A score or a probability with three decimals; "-" for none."""
    return f"{value:.3f}".replace("-0.000", "0.000") if is_number(value) else "-"


def signed(value: object) -> str:
    """A difference of scores with its sign."""
    if not is_number(value):
        return "-"
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "0.000"


def interval(pair: object, show=score) -> str:
    """(low to high), or "" for none."""
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(is_number, pair)):
        return ""
    return f"({show(pair[0])} to {show(pair[1])})"


def minutes(value: object) -> str:
    """A time: seconds, minutes or hours, as is sensible."""
    if not is_number(value):
        return "-"
    if value < 1:
        return f"{60 * value:.0f} s" if value >= 1 / 60 else "under 1 s"
    if value < 120:
        return f"{value:.1f} min" if value < 20 else f"{value:.0f} min"
    return f"{int(value // 60)} h {int(value % 60)} min"


def percent(value: float) -> str:
    """A probability or a share: no certainty where there is none."""
    if 0 < value < 0.005:
        return "under 0.1 %" if value < 0.0005 else f"{100 * value:.1f} %"
    if 0.995 <= value < 1:
        return f"{math.floor(1000 * value) / 10:.1f} %" if value < 0.9995 else "over 99.9 %"
    return f"{100 * value:.0f} %"


def count(value: int, one: str, many: str = "") -> str:
    """So many things."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def listing(parts: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def pick(numbers: dict | None, metric: str) -> object:
    """A metric out of some; what is decided at thresholds may stand there under its plain name, and the other way."""
    numbers = numbers or {}
    names = (metric, metric.removesuffix("_tuned"), f"{metric}_tuned")
    return next((numbers[name] for name in names if numbers.get(name) is not None), None)


def verdict(gain: dict | None, metric: str) -> tuple[str, str] | None:
    """A gain as a marked word; None without an interval."""
    if not gain or not interval(gain.get("interval")):
        return None
    low, high = gain["interval"]
    if low == high == 0:
        return "flat", "no decision changed"
    if metric in LOWER_IS_BETTER:
        low, high = -high, -low
    return ("good", "gain") if low > 0 else ("bad", "worse") if high < 0 else ("flat", "no gain shown")


def stage_name(pipeline: dict, key: str) -> str:
    """A stage as people call it."""
    return next((stage["name"] for stage in pipeline["stages"] if stage["key"] == key), key)


def gain_words(pipeline: dict, stage: dict) -> str:
    """What a stage brought, with the interval and over what."""
    gain = stage["gain"]
    told = f"{signed(pick(gain, pipeline['metric']))} {interval(gain.get('interval'), signed)}".strip()
    return f"{told} over {stage_name(pipeline, gain.get('over', ''))}"


def conflicts(data: dict) -> int:
    """How many texts stand there more than once with different labels."""
    found = data.get("exact_duplicates", {}).get("with_different_labels", 0)
    return len(found) if isinstance(found, list) else found


def f1_of(numbers: dict) -> float:
    """A class's F1 as it is decided: at tuned thresholds where there are some."""
    return numbers.get("f1_tuned", numbers.get("f1", 0.0))


# -- the first screen -------------------------------------------------------------------------------------------


def cards(facts: dict) -> list[dict]:
    """The four answers."""
    return [how_good(facts), how_sure(facts), what_cost(facts), {
        "title": "What should I do next?", "items": advice(facts)[:4],
    }]  # fmt: skip


def how_good(facts: dict) -> dict:
    """The score, and what a majority class and a linear model reach."""
    pipeline, result = facts["pipeline"], facts["result"]
    card = {"title": "How good is it?", "value": "not known yet", "below": []}
    if not result:
        return card | {"below": ["No run has finished."]}
    metric, part = pipeline["metric"], result["part"]
    card["value"] = [score(pick(result["metrics"], metric)), ("small", metric_name(metric))]
    num = result["metrics"].get("n")
    told = f"on {count(num, part + ' row')}" if is_number(num) else f"on the {part} rows"
    told += "" if part == "test" else ", which helped to choose: expect less on new rows"
    others = ("subset_accuracy_tuned", "accuracy", "macro_f1")
    other = next((name for name in others if name != metric and is_number(result["metrics"].get(name))), None)
    if other:
        told += f"; {metric_name(other)} {score(result['metrics'][other])}"
    card["below"].append(told[0].upper() + told[1:] + ".")
    others = [
        f"{name} {score(pick(numbers.get(part), metric))}"
        for name, numbers in pipeline["baselines"].items()
        if is_number(pick(numbers.get(part), metric))
    ]
    card["below"] += [f"For comparison: {listing(others)}."] if others else []
    return card


def how_sure(facts: dict) -> dict:
    """The interval, what the last stages brought, and whether the probabilities can be believed."""
    pipeline, result = facts["pipeline"], facts["result"]
    card = {"title": "How sure is that?", "value": "no interval", "below": []}
    if not result:
        return card
    pair = pick(result["interval"], pipeline["metric"])
    if interval(pair):
        card["value"] = f"{score(pair[0])} to {score(pair[1])}"
        card["below"].append("95 % interval: what other rows of the same kind and number would give.")
    whole = pipeline.get("whole") or result["stage"]["gain"]  # over the single model, all stages together
    mark = verdict(whole, pipeline["metric"])
    if mark:
        words = {"gain": "more than chance", "worse": "a loss, and more than chance"}.get(mark[1], mark[1])
        card["below"].append(f"The whole brought {gain_words(pipeline, {'gain': whole})}: {words}.")
    after, before = (result["reliability"].get(name) for name in ("after", "before"))
    if after:
        was = f", {score(before['ece'])} before calibration" if before else ""
        card["below"].append(f"Probabilities are off by {score(after['ece'])} on average (ECE){was}.")
    return card


def what_cost(facts: dict) -> dict:
    """Minutes, on what, and which stages took most of them."""
    pipeline, hardware = facts["pipeline"], facts["pipeline"]["hardware"]
    card = {"title": "What did it cost?", "value": minutes(pipeline["minutes"]), "below": []}
    card["below"].append(f"On {machine(hardware)}." if hardware else "The hardware was not recorded.")
    stages = sorted((s for s in pipeline["stages"] if is_number(s["minutes"])), key=lambda s: -s["minutes"])
    if len(stages) > 1 and stages[0]["minutes"] > 0:
        told = [
            f"{stage['name']} {minutes(stage['minutes'])}"
            for stage in stages[:3]
            if stage["minutes"] > stages[0]["minutes"] / 20
        ]
        card["below"].append(f"Most of it: {listing(told)}.")
    price = pipeline["arguments"].get("price_per_hour")
    if is_number(price) and price > 0 and is_number(pipeline["minutes"]):
        card["below"].append(f"{price * pipeline['minutes'] / 60:.2f} at {price:g} an hour.")
    return card


def machine(hardware: dict) -> str:
    """What it ran on."""
    gpu = hardware.get("gpu")
    if gpu:
        world = hardware.get("world", 1)
        return f"{world} x {gpu}" if is_number(world) and world > 1 else str(gpu)
    told = [str(hardware["cpu"])] if hardware.get("cpu") else []
    told += [f"{hardware['cores']} cores"] if hardware.get("cores") else []
    return ", ".join([*told, "no GPU"])


def advice(facts: dict) -> list:
    """What to do next, the most urgent first, each from a number of this report."""
    pipeline, result, data = facts["pipeline"], facts["result"], facts["data"]
    told = []
    if pipeline["status"] != "finished":
        told.append("Wait, or give the same command again: it goes on where it stopped.")
    if result:
        told += next_for_result(pipeline, result, data)
    odd = conflicts(data)
    if odd:
        told.append([f"Settle {count(odd, 'text')} with different labels (", ("link", "data", "data"), ")."])
    late = [stage["name"] for stage in pipeline["stages"] if stage["status"] == "no time"]
    if late:
        told.append(f"Give it more time (--hours): there was none left for {listing(late)}.")
    total = sum(s["minutes"] for s in pipeline["stages"] if is_number(s["minutes"]))
    idle = []
    for stage in pipeline["stages"]:
        mark = verdict(stage["gain"], pipeline["metric"])
        if mark and mark[1] != "gain" and is_number(stage["minutes"]) and stage["minutes"] > DEAR * total:
            idle.append(f"{stage['name']} ({minutes(stage['minutes'])})")
    if idle:
        told.append(f"Leave out where time is short: {listing(idle)}; no gain shown.")
    return told or ["Nothing stands out: try it on rows of your own that are newer than these."]


def next_for_result(pipeline: dict, result: dict, data: dict) -> list:
    """Advice from the scores of the result."""
    told, metric, part = [], pipeline["metric"], result["part"]
    own = pick(result["metrics"], metric)
    better = []
    for name, numbers in pipeline["baselines"].items():
        value = pick(numbers.get(part), metric)
        if not (is_number(value) and is_number(own)):
            continue
        if value <= own if metric in LOWER_IS_BETTER else value >= own:
            better.append(f"{name} reaches {score(value)}")
    if better:
        told.append(
            f"Do not use this yet: {listing(better)}. See whether labels and texts fit, or train longer."
        )
    leaked = data.get("in_train", {}).get(part, 0)
    if leaked:
        told.append(
            f"Split again (python -m data.split): {count(leaked, part + ' row')} are training rows too."
        )
    suspects = result["suspects"]
    if suspects and suspects["rows"]:
        rows = count(len(suspects["rows"]), "row")
        told.append(
            [f"Read {rows} whose label contradicts a sure prediction (", ("link", "errors", "errors"), ")."]
        )
    per_class = result["metrics"].get("per_class") or {}
    if len(per_class) > 1:
        mean = float(np.mean([f1_of(numbers) for numbers in per_class.values()]))
        weak = sorted(((f1_of(v), name) for name, v in per_class.items() if f1_of(v) < mean - WEAK))[:3]
        if weak:
            words: list = ["Label more rows of "]
            for k, (value, name) in enumerate(weak):
                num = data.get("labels", {}).get(name, {}).get("train")
                rows = f", {count(num, 'training row')}" if is_number(num) else ""
                words += [", " if k else "", ("data", name), f" (F1 {score(value)}{rows})"]
            told.append([*words, "."])
    pair, num = pick(result["interval"], metric), result["metrics"].get("n")
    if interval(pair) and pair[1] - pair[0] > WIDE and is_number(num):
        told.append(f"Test on more than {num:,} rows: four times as many halve the interval.")
    after = result["reliability"].get("after")
    if after and after["ece"] > BADLY_CALIBRATED:
        done = [stage["key"] for stage in pipeline["stages"] if stage["status"] == "done"]
        is_calibrated = result["rows"].method != "none" or "calibration" in done
        how = "calibrate first (python -m jobs.calibrate)"
        how = "the calibration rows may be too few, or of another kind" if is_calibrated else how
        told.append(f"Do not read probabilities as chances yet (ECE {score(after['ece'])}): {how}.")
    return told
