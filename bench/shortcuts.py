"""What a model could guess from made candidates alone, by probes fitted on one file and scored on another.

    python -m bench.shortcuts --fit train_candidates.jsonl --score dev_candidates.jsonl

The pipeline (data/candidates.py, data/selection.py) chooses wrong candidates against probes inside one file; what is
left between files is the honest number. Probes, none of which sees question or context: a logistic regression on
n-grams and numbers at several strengths, the same with what a candidate shows beside the others of its set, and boosted
trees on the latter at several sizes. The last line is one JSON object.
"""

import argparse

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bench.results import print_result
from core.errors import UserError, run_main
from core.results_table import format_table
from core.rows import BadRows, read_rows
from data.probes import tree_probe
from data.shortcuts import accuracy, features_of

STRENGTHS, ROUNDS = (0.03, 0.3, 3.0), (60, 200)


def parse_args(argv=None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", required=True, metavar="FILE", help="rows of data.finqa candidates")
    parser.add_argument("--score", required=True, metavar="FILE", help="other rows, from other pages")
    return parser.parse_args(argv)


def read_candidates(path: str, flag: str) -> list[dict]:
    """The rows of a file. Raises UserError when one has no candidates with a gold one."""
    bad, rows = BadRows(path), []
    for line, row in read_rows(path, bad, flag):
        if not isinstance(row.get("candidates"), list) or not isinstance(row.get("gold"), int):
            bad.add(line, "expected candidates and gold, as data.finqa candidates writes them")
        rows.append(row)
    bad.raise_if_any()
    if not rows:
        raise UserError(f"{flag} {path}: has no rows")
    return rows


@threadpool_limits.wrap(limits=1)
def measure(fit: list[dict], score: list[dict]) -> dict[str, float]:
    """The pick accuracy of each probe on the rows to score."""
    words, beside = features_of([*fit, *score])
    num_fit = sum(len(row["candidates"]) for row in fit)
    right = np.concatenate([np.arange(len(row["candidates"])) == row["gold"] for row in [*fit, *score]])
    question = np.repeat(np.arange(len(score)), [len(row["candidates"]) for row in score])
    scaled = StandardScaler().fit(beside[:num_fit]).transform(beside)
    both = hstack([words, csr_matrix(0.3 * scaled)]).tocsr()
    found = {}
    for name, features in (("n-grams, numbers", words), ("with set features", both)):
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, solver="liblinear", max_iter=300, random_state=0)
            scores = model.fit(features[:num_fit], right[:num_fit]).decision_function(features[num_fit:])
            found[f"{name}, C {strength:g}"] = accuracy(scores, right[num_fit:], question)
    for rounds in ROUNDS:
        model = tree_probe(beside[:num_fit], right[:num_fit], 0, rounds)
        scores = model.decision_function(beside[num_fit:])
        found[f"trees, set features, {rounds} rounds"] = accuracy(scores, right[num_fit:], question)
    return found


def main(argv=None) -> dict:
    """Print each probe's accuracy beside chance; returns what the last line says."""
    args = parse_args(argv)
    fit, score = read_candidates(args.fit, "--fit"), read_candidates(args.score, "--score")
    found = measure(fit, score)
    chance = float(np.mean([1 / len(row["candidates"]) for row in score]))
    error = (chance * (1 - chance) / len(score)) ** 0.5
    rows = [(name, {"accuracy": value, "above_chance": value - chance}) for name, value in found.items()]
    print(f"{len(score)} questions, chance {chance:.3f}, one standard error {error:.3f}")
    print(format_table(rows, ["accuracy", "above_chance"]))
    return print_result(args, accuracy=found, chance=chance, standard_error=error)


if __name__ == "__main__":
    run_main(main)
