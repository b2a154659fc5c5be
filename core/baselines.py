"""What a classifier must beat, as scores for the same table: the class prior, and a linear model on TF-IDF.

Legend: n rows, C classes. The scores serve as `logits` in core/metrics.py: they are log-probabilities, or
log-odds for several labels at once.
"""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

PRIOR_ROWS = 0.5  # Jeffreys prior: half a row for each outcome keeps the logarithm finite
ENOUGH_ROWS = 100  # assumption: with fewer training rows a word that occurs once is kept
# Of 1, 3 and 10 the best or within 0.025 of it in macro F1 on the dev rows of seven public tasks, and well
# ahead where classes are rare: GoEmotions 0.316 against 0.274 at 3 (measured, 2026-11-20).
INVERSE_L2 = 10.0
# GoEmotions dev: average precision 0.417, as liblinear; lbfgs at 1e-3 stops at 0.312 (measured, 2026-11-20).
TOLERANCE = 1e-5


def majority_scores(
    train_labels: np.ndarray, num_rows: int, num_classes: int, multi_label: bool
) -> np.ndarray:
    """The class prior of the training rows, the same for every row: its highest entry is the majority class.

    Args:    train_labels: (n,) int in 0..C-1, or with multi_label (n, C) of 0 and 1.
             num_rows: rows wanted.
    Returns: (num_rows, C) float64: log-probabilities, or log-odds with multi_label; always finite.
    Raises:  ValueError when the labels do not fit num_classes.
    """
    train_labels = _checked(train_labels, num_classes, multi_label)
    if multi_label:
        positive = train_labels.sum(axis=0)
        scores = np.log(positive + PRIOR_ROWS) - np.log(len(train_labels) - positive + PRIOR_ROWS)
    else:
        counts = np.bincount(train_labels, minlength=num_classes) + PRIOR_ROWS
        scores = np.log(counts / counts.sum())
    return np.tile(scores, (num_rows, 1))


def tfidf_scores(
    train_texts: list[str],
    train_labels: np.ndarray,
    texts: list[str],
    num_classes: int,
    multi_label: bool,
    seed: int = 0,
) -> np.ndarray:
    """Scores of a logistic regression on TF-IDF of words and word pairs, one for each class with multi_label.

    What cannot be learnt keeps the score of majority_scores: a class without training rows, with multi_label
    also one that every row has, and everything when there is only one class or no word to learn from
    (two letters or digits in a row; from ENOUGH_ROWS rows on, in two rows).

    Args:    train_texts, texts: plain strings; of length n and m.
             train_labels: (n,) int, or with multi_label (n, C) of 0 and 1.
             seed: handed to the solver, which does not use chance as it is set here.
    Returns: (m, C) float64: log-probabilities, or log-odds with multi_label.
    Cost:    43,410 rows x 28 labels 7 s, 3,100 rows x 16 classes under 1 s (measured, one core, 2026-11-20).
    """
    train_labels = _checked(train_labels, num_classes, multi_label)
    if len(train_labels) != len(train_texts):
        raise ValueError(f"{len(train_texts)} training texts but {len(train_labels)} rows of labels")
    scores = majority_scores(train_labels, len(texts), num_classes, multi_label)
    min_rows = 2 if len(train_texts) >= ENOUGH_ROWS else 1
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_rows)
    try:
        train_features = vectorizer.fit_transform(train_texts)
    except ValueError:  # empty vocabulary
        return scores
    if len(texts) == 0:
        return scores
    features = vectorizer.transform(texts)
    model = LogisticRegression(
        C=INVERSE_L2, solver="newton-cg", tol=TOLERANCE, max_iter=1000, random_state=seed
    )
    if multi_label:
        # OneVsRestClassifier does the same, but warns and answers 0 or 1 for a class that does not vary.
        for column in np.flatnonzero(train_labels.any(axis=0) & ~train_labels.all(axis=0)):
            scores[:, column] = model.fit(train_features, train_labels[:, column]).decision_function(features)
    elif len(np.unique(train_labels)) > 1:
        model.fit(train_features, train_labels)
        scores[:, model.classes_] = model.predict_log_proba(features)
    return scores


def _checked(labels: np.ndarray, num_classes: int, multi_label: bool) -> np.ndarray:
    """Labels as (n,) int64 or (n, C) bool, or a ValueError that says what does not fit."""
    labels = np.asarray(labels)
    if multi_label:
        fits = labels.ndim == 2 and labels.shape[1] == num_classes and np.isin(labels, (0, 1)).all()
        expected = f"(n, {num_classes}) of 0 and 1"
    else:
        fits = labels.ndim == 1 and ((labels >= 0) & (labels < num_classes)).all()
        expected = f"(n,) in 0..{num_classes - 1}"
    if not fits:
        raise ValueError(
            f"train_labels must be {expected}, found {labels.shape} with values {np.unique(labels)[:5]}"
        )
    return labels.astype(bool if multi_label else np.int64)
