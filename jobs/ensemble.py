"""Several finished runs as one: combine their saved scores, say what each is worth, write a run folder. No GPU.

    python -m jobs.ensemble runs/a runs/b runs/c --output_dir runs/ensemble           # chooses the method
    python -m jobs.ensemble RUN RUN RUN --output_dir FOLDER --method greedy --metric accuracy
    python -m jobs.ensemble RUN RUN --output_dir FOLDER --method stacking --folds 5   # trains each run 5 times more
    python -m jobs.ensemble RUN RUN --output_dir FOLDER --method weights_average      # one model, no dearer than one
    python predict.py FOLDER --data rows.jsonl --output out.jsonl                     # the ensemble, as any run

mean             of the members' probabilities
weighted         the same with weights F1_m / (F1_1 + ... + F1_M), macro F1 on the rows that choose
greedy           weights by greedy selection with replacement (Caruana et al. 2004)
stacking         logistic regression on the members' log-probabilities; --folds: fitted on out-of-fold scores of the
                 training rows, else on the rows that choose
weights_average  one model with the mean of the weights (Wortsman et al. 2022); runs of one architecture and base model
auto             of the first four the one with the best metric; the mean, unless the gain beats its standard error

The members need the same labels and the same validation rows. Weights and method are chosen on the calibration rows if
all members have the same ones, else on the validation rows, and are scored there in 5 folds, no row helping to choose
its own weights: those are the scores that the folder holds of these rows. Test rows are scored when all is chosen.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.ensembles import (
    METHODS,
    METRICS,
    Members,
    choose_method,
    combine,
    decide,
    disagreement,
    fair_logits,
    fit,
    leave_one_out,
    member_weights,
    resample,
    score,
    stacking_strength,
)
from core.errors import UserError, disk_errors, run_main
from core.flags import Parser, number
from core.metrics import probabilities
from core.results_table import format_table
from core.statistics import bootstrap_p, percentile_interval
from core.thresholds import best_thresholds
from jobs.compare import check_gpus
from jobs.ensemble_files import write_ensemble
from jobs.folds import out_of_fold
from jobs.members import Team, check_choice, read_team
from jobs.soup import average_models, score_splits

SOUP = "weights_average"
# names in metrics.json that mean one of METRICS: with several labels a row decisions are at tuned thresholds anyway
ALSO = {"macro_f1_tuned": "macro_f1", "subset_accuracy": "accuracy", "subset_accuracy_tuned": "accuracy"}


@dataclass
class Chosen:
    """An ensemble. M members, n rows, C classes."""

    method: str
    combination: np.ndarray | None  # see core/ensembles.py; None: one model
    logits: dict[str, np.ndarray]  # (n, C) by split; of the rows that chose, in folds
    methods: dict[str, dict]  # what choose_method says of each that was tried
    without: list[float] | None  # M: the metric without each member


# fmt: off
def parse_args(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("runs", nargs="+", metavar="RUN", help="two or more finished runs of classifiers")
    flag("--output_dir", required=True, metavar="DIR", help="the run folder of the ensemble; keeps paths to the runs")
    flag("--method", choices=("auto", *METHODS, SOUP), default="auto", help="how the runs are combined; see above")
    flag("--metric", choices=("auto", *METRICS, *ALSO), default="auto",
         help="what chooses; auto: macro_f1; with several labels a row at tuned thresholds; loss is in nats")
    flag("--folds", type=number(int, 0, 20), default=0,
         help="train each run so many times without a part of its rows, for stacking; 0: train nothing")
    flag("--gpus", default="", metavar="0,1", help="of --folds: one run at a time on each; default: one at a time")
    flag("--device", default=None, help="of weights_average, to score it: cuda, cpu; default: what there is")
    flag("--seed", type=number(int, 0), default=0, help="of folds and bags")
    args = parser.parse_args(argv)
    if args.folds == 1:
        raise UserError("--folds 1: expected 0, or at least 2")
    if args.folds and args.method not in ("auto", "stacking"):
        raise UserError(f"--folds: is for --method stacking (or auto), not {args.method}")
    args.gpus = args.gpus.split(",") if args.gpus else []
    check_gpus(args.gpus)
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; expected a folder")
    if (folder / "run.json").exists():
        raise UserError(f"--output_dir {folder}: holds a run already; remove it or give another")
    return args
# fmt: on


# -- choosing ---------------------------------------------------------------------------------------------------


def choose(args: argparse.Namespace, team: Team, members: Members) -> Chosen:
    """Method and combination by the rows that choose; all rows combined."""
    methods = METHODS if args.method == "auto" else tuple(dict.fromkeys(("mean", args.method)))
    bar = tqdm(methods, desc="choose", unit=" method", disable=None)
    fair = {method: fair_logits(method, members) for method in bar}
    method, told = choose_method(fair, members)
    method = method if args.method == "auto" else args.method
    if method == "stacking":
        members = replace(members, strength=stacking_strength(members))
    combination = fit(method, members)
    logits = {
        name: combine(split.logits, combination, team.multi_label) for name, split in team.splits.items()
    }
    logits[team.chosen_on] = fair[method]
    return Chosen(method, combination, logits, told, leave_one_out(method, members))


def cook(args: argparse.Namespace, team: Team, folder: Path) -> Chosen:
    """The average of the weights, written as the folder's best_model/ and scored."""
    average_models(team.folders, folder / "best_model")
    return Chosen(SOUP, None, score_splits(folder / "best_model", team, args.device), {}, None)


# -- worth ------------------------------------------------------------------------------------------------------


def compare_split(team: Team, members: Members, chosen: Chosen, name: str) -> dict:
    """Every member and the ensemble on one split, with intervals, and the ensemble's gain over each member.

    Several labels: at cross-fitted thresholds on the rows that choose, elsewhere at those that are best on these, each
    member at its own.

    Returns: {"members": M of {"value", "low", "high"}, "ensemble": the same, "gains": M of {"difference", "low",
             "high", "p"}: positive where the ensemble is better}; 95 % intervals, paired bootstrap over rows.
    """
    split, tuned = team.splits[name], team.splits[team.chosen_on]
    members = replace(members, truth=split.truth)
    sign, found, samples = (-1 if members.metric == "loss" else 1), [], []
    for logits, others in zip(
        [*split.logits, chosen.logits[name]], [*tuned.logits, chosen.logits[tuned.name]], strict=True
    ):
        cuts = None
        if team.multi_label and split is not tuned:
            cuts = best_thresholds(probabilities(others, True), tuned.truth)
        samples.append(resample(logits, members, cuts))
        low, high = percentile_interval(samples[-1])
        found.append({"value": score(logits, members, cuts), "low": low, "high": high})
    *alone, whole = found
    gains = []
    for own, own_samples in zip(alone, samples[:-1], strict=True):
        difference = sign * (samples[-1] - own_samples)
        low, high = percentile_interval(difference)
        gain = {"difference": sign * (whole["value"] - own["value"]), "low": low, "high": high}
        gains.append(gain | {"p": bootstrap_p(difference)})
    return {"members": alone, "ensemble": whole, "gains": gains}


def measure_worth(team: Team, members: Members, chosen: Chosen) -> dict:
    """What each member is worth, and the ensemble beside the best of them: of run.json, "ensemble"."""
    splits = {name: compare_split(team, members, chosen, name) for name in team.splits}
    here, sign = splits[team.chosen_on], -1 if members.metric == "loss" else 1
    decisions = np.stack([decide(own, members.truth, team.multi_label) for own in members.logits])
    apart = disagreement(decisions)
    weights = [None] * len(team)
    if chosen.combination is not None:
        found = member_weights(chosen.combination, len(team), team.multi_label)
        weights = [None if np.isnan(weight) else float(weight) for weight in found]
    about = []
    for m, own in enumerate(here["members"]):
        told = {"weight": weights[m], "value": own["value"]}
        told["without"] = chosen.without and chosen.without[m]
        told["worth"] = chosen.without and sign * (here["ensemble"]["value"] - chosen.without[m])
        others = np.delete(apart[m], m)
        about.append(told | {"disagreement": float(others.mean())})
    best = max(range(len(team)), key=lambda m: sign * about[m]["value"])
    return {"members": about, "best_member": best, "disagreement": apart.tolist(), "splits": splits}


def metric_name(metric: str, multi_label: bool) -> str:
    """The name in metrics.json."""
    several = {"macro_f1": "macro_f1_tuned", "accuracy": "subset_accuracy_tuned"}
    return several.get(metric, metric) if multi_label else metric


def verdict(team: Team, worth: dict, name: str, metric: str) -> str:
    """One sentence: the ensemble against its best member on a split."""
    found, best = worth["splits"][name], worth["best_member"]
    gain, values = found["gains"][best], (found["ensemble"]["value"], found["members"][best]["value"])
    scale, unit = (1, "nats") if metric == "loss" else (100, "points")
    difference, low, high = (scale * gain[key] for key in ("difference", "low", "high"))
    which = f"{name} rows" + (" (cross-fitted)" if name == team.chosen_on else "")
    is_shown = "" if low > 0 else " (worse)" if high < 0 else " (not shown to differ)"
    return (
        f"{which}: ensemble {values[0]:.4f}, best member {team.folders[best]} {values[1]:.4f}: gain {difference:+.2f} "
        f"{unit}, 95 % interval {low:+.2f} to {high:+.2f}{is_shown}"
    )


def report(team: Team, chosen: Chosen, worth: dict, metric: str, wanted: str) -> None:
    """Print what was chosen, what each member is worth, and whether it was worth it."""
    named = metric_name(metric, team.multi_label)
    if chosen.methods:
        table = [(name, {named: told["value"], "gain over mean": told["gain"], "its standard error": told["gain_se"]})
                 for name, told in chosen.methods.items()]  # fmt: skip
        print(f"\n{format_table(table, [named, 'gain over mean', 'its standard error'])}")
    print(f"method: {chosen.method}" + (" (chosen)" if wanted == "auto" else ""))
    columns = ["weight", named, "without it", "worth", "disagreement"]
    table = []
    for folder, about in zip(team.folders, worth["members"], strict=True):
        named_values = {named: about["value"], "without it": about["without"]}
        table.append((str(folder), about | named_values))
    value = worth["splits"][team.chosen_on]["ensemble"]["value"]
    table.append(("ensemble", {named: value}))
    print(f"\n{format_table(table, columns)}\n")
    print(
        f"on {len(team.splits[team.chosen_on])} {team.chosen_on} rows, which choose; worth: what the ensemble loses"
    )
    print(
        "without the member, its weights chosen anew; disagreement: share of rows decided unlike the others\n"
    )
    for name in team.splits:
        print(verdict(team, worth, name, metric))
    here = worth["splits"][team.chosen_on]["gains"][worth["best_member"]]
    if chosen.method == SOUP and here["difference"] < 0:
        print(
            f"the average of the weights is worse than its best member: use {team.folders[worth['best_member']]}, "
            "or --method auto; weights from other seeds of the head often have no good mean"
        )


def main(argv=None) -> dict:
    """Combine, measure, write; returns the method, the metric by split and the gains over the best member."""
    args = parse_args(argv)
    folder, team = Path(args.output_dir), read_team(args.runs)
    for note in [*team.notes, *check_choice(team)]:
        print(note)
    split = team.splits[team.chosen_on]
    metric = "macro_f1" if args.metric == "auto" else ALSO.get(args.metric, args.metric)
    members = Members(split.logits, split.truth, team.multi_label, metric, args.seed)
    with disk_errors(folder, "--output_dir"):
        if args.folds:
            oof = out_of_fold(team, folder, args.folds, args.seed, args.gpus)
            members = replace(members, oof=oof)
        chosen = cook(args, team, folder) if args.method == SOUP else choose(args, team, members)
        worth = measure_worth(team, members, chosen)
        about = {"method": chosen.method, "methods": chosen.methods, "folds": args.folds}
        metrics = write_ensemble(folder, args, team, chosen.combination, chosen.logits, about | worth,
                                 metric_name(metric, team.multi_label))  # fmt: skip
    report(team, chosen, worth, metric, args.method)
    gains = {name: found["gains"][worth["best_member"]] for name, found in worth["splits"].items()}
    result = {"run": str(folder), "method": chosen.method, **metrics, "gain_over_best": gains}
    print(f"\nrun folder: {folder}\n{json.dumps(result)}")
    return result


if __name__ == "__main__":
    run_main(main)
