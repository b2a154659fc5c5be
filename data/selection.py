"""Which wrong candidates stand beside the right one, so that nothing but the question tells them apart.

Many sets are drawn from a question's pool and one is kept. Three things, one after the other, decide which:

1. A probe learns to tell right programs from mutants one by one; mutants that look as likely as right ones are drawn
   more often. Each set is drawn around a centre, which is the right program once in K times, so that it is not what
   the others have in common.
2. In each round a probe that sees the whole set learns to pick the right one; sets in which it does lose weight
   (Freund, Schapire 1999, "Adaptive game playing using multiplicative weights": the mean of the weights tends to what
   no such probe can beat). Probes score questions on pages that they were not fitted on.
3. Of the weighted sets one a question is chosen, by data/balance.py.

Legend:  Q questions, P candidates of a pool (the right one first), B sets drawn from a pool, K candidates of a set.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data.balance import above_mean, balance, common_words
from data.probes import (
    Array,
    Pool,
    hash_words,
    linear_probe,
    log_softmax,
    page_folds,
    set_features,
    tree_probe,
)

SETS, KEPT = 72, 24  # sets drawn for each question, and how many of them step 3 chooses from
ROUNDS, SAMPLED, FOLDS = 5, 5, 3  # of probes; sets of each question that one is fitted on; parts of the pages
FEWEST = 20  # questions; with fewer no probe is fitted, and sets are drawn around centres alone
# how closely a set stands around its centre: what the share of parts in common weighs against log odds
CENTRES = (0.0, 4.0, 8.0, 12.0)
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


class Game:
    """The pools of all questions, and the probes' scores of them."""

    def __init__(self, texts: list[list[str]], pages: list[str], size: int, seed: int):
        self.texts, self.pages, self.size = texts, pages, size
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.pools = [Pool.of(own) for own in texts]
        self.words = hash_words([text for own in texts for text in own])
        self.start = np.cumsum([0] + [len(own) for own in texts])
        self.questions = range(len(texts))

    def words_of(self, question: int) -> csr_matrix:
        return self.words[self.start[question] : self.start[question + 1]]

    def linear_scores(self, fold: Array, sets: list[Array]) -> list[Array]:
        """(P,) for each question: a linear probe's scores, fitted on the sets of the other folds."""
        scores: list[Array] = [np.zeros(0)] * len(self.texts)
        for f in range(FOLDS):
            rows = np.concatenate([self.start[q] + sets[q].ravel() for q in self.questions if fold[q] != f])
            right = np.concatenate([sets[q].ravel() == 0 for q in self.questions if fold[q] != f])
            probe = linear_probe(self.words[rows], right)
            for q in np.flatnonzero(fold == f):
                scores[q] = probe.decision_function(self.words_of(q))
        return scores

    def word_scores(self, sets: list[Array]) -> list[Array]:
        """(P,) for each question: a cautious linear probe's scores, fitted on one set of each question."""
        rows = np.concatenate([self.start[q] + sets[q] for q in self.questions])
        probe = linear_probe(self.words[rows], np.tile(np.arange(self.size) == 0, len(sets)), strength=0.03)
        return np.split(probe.decision_function(self.words), self.start[1:-1])

    def likeness(self) -> list[Array]:
        """(P,) for each question: log odds that a candidate on its own is a right one."""
        fold = page_folds(self.pages, FOLDS, self.rng)
        some = [
            np.concatenate([[0], 1 + self.rng.permutation(len(own) - 1)[: 3 * self.size]])
            for own in self.texts
        ]
        linear = self.linear_scores(fold, some)
        features = [
            np.column_stack([pool.numbers, own]) for pool, own in zip(self.pools, linear, strict=True)
        ]
        scores: list[Array] = [np.zeros(0)] * len(self.texts)
        for f in range(FOLDS):
            x = np.concatenate([features[q][some[q]] for q in self.questions if fold[q] != f])
            right = np.concatenate([some[q] == 0 for q in self.questions if fold[q] != f])
            probe = tree_probe(x, right, self.seed)
            for q in np.flatnonzero(fold == f):
                scores[q] = probe.decision_function(features[q])
        return scores

    def draw_sets(self, scores: list[Array]) -> list[Array]:
        """(SETS, K) for each question, the right candidate first: step 1."""
        drawn = []
        for pool, own in zip(self.pools, scores, strict=True):
            odds = np.clip(own[1:], -6, 2)
            size = pool.parts.sum(1)
            both = pool.parts @ pool.parts.T
            likeness = both / np.maximum(1, size[:, None] + size - both)  # (P, P) share of parts in common
            chance = np.exp(odds - odds.max())
            centre = 1 + self.rng.choice(len(odds), SETS, p=chance / chance.sum())
            centre[self.rng.random(SETS) < 1 / self.size] = 0
            near = self.rng.choice(CENTRES, SETS)[:, None] * likeness[centre][:, 1:]
            order = np.argsort(-(odds + near + self.rng.gumbel(size=near.shape)), 1)[:, : self.size - 1]
            drawn.append(np.concatenate([np.zeros((SETS, 1), int), 1 + order], 1))
        return drawn

    def play(self, sets: list[Array]) -> Iterator[tuple[Array, Array]]:
        """Each round's weights of the sets (Q, B), and the probe's scores of their candidates (Q, B, K): step 2."""
        lost = np.zeros((len(sets), SETS))
        for step in tqdm(range(ROUNDS), desc="choice", unit=" rounds", disable=None):
            weights = np.exp(log_softmax(-lost))
            fold = page_folds(self.pages, FOLDS, self.rng)
            sampled = [self.rng.choice(SETS, SAMPLED, p=own) for own in weights]
            linear = self.linear_scores(fold, [own[i] for own, i in zip(sets, sampled, strict=True)])
            x = np.stack([set_features(self.pools[q], sets[q], linear[q]) for q in self.questions])
            scores = np.zeros(x.shape[:3])
            for f in range(FOLDS):
                fitted, scored = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
                rows = np.concatenate([x[q][sampled[q]].reshape(-1, x.shape[3]) for q in fitted])
                right = np.tile(np.arange(self.size) == 0, len(fitted) * SAMPLED)
                probe = tree_probe(rows, right, self.seed + step)
                scores[scored] = probe.decision_function(x[scored].reshape(-1, x.shape[3])).reshape(
                    len(scored), SETS, self.size
                )
            told = {
                t: log_softmax(t * scores)[:, :, 0] for t in TEMPERATURES
            }  # a probe that knows little says so
            lost += max(told.values(), key=lambda logp: (weights * logp).sum(1).mean())
            yield weights, scores
        yield np.exp(log_softmax(-lost)), scores


@threadpool_limits.wrap(limits=1)  # with more, the probes' sums, and so the sets, hang on the machine's cores
def choose_sets(texts: list[list[str]], pages: list[str], size: int, seed: int, kept: int) -> list[Array]:
    """(K,) for each question, places in its pool, the right one (place 0) first.

    Args:    texts: of each question's pool, the right candidate's first | pages: of the questions | size: K |
             kept: how many questions, from the first, the rows are for; the others only help to fit the probes.
    """
    if not texts:
        return []
    game = Game(texts, pages, size, seed)
    few = len(texts) < FEWEST or len(set(pages)) < 2 * FOLDS
    sets = game.draw_sets([np.zeros(len(own)) for own in texts] if few else game.likeness())
    if few:
        return [own[0] for own in sets]
    mean, rounds = np.zeros((len(texts), SETS)), []
    for step, (weights, scores) in enumerate(game.play(sets)):
        if step >= ROUNDS // 2:
            mean += weights
            rounds.append(scores)
    mean /= mean.sum(1, keepdims=True)
    noise = game.rng.gumbel(size=mean.shape)
    likely = np.argsort(-(np.log(mean + 1e-12) + noise), 1)[:, :KEPT]  # drawn by weight, none twice
    at = np.arange(len(texts))[:, None]
    some = [own[i] for own, i in zip(sets, likely, strict=True)]
    scores = np.stack([own[at, likely] for own in rounds[:-1]], 2)
    columns = common_words(game.words)
    words = [game.words_of(q)[:, columns].toarray() for q in game.questions]
    words = np.stack([above_mean(own[s][None])[0] for own, s in zip(words, some, strict=True)])
    x = np.stack([set_features(pool, s) for pool, s in zip(game.pools, some, strict=True)])
    groups = [0] * kept + [1] * (len(texts) - kept)

    def by_words(chosen: Array) -> Array:
        own = [s[c] for s, c in zip(some, chosen, strict=True)]
        scores = game.word_scores(own)
        return np.stack([score[s] for score, s in zip(scores, some, strict=True)])

    chosen = balance(x, words, scores, pages, groups, by_words, game.rng)
    return [some[q][chosen[q]] for q in range(kept)]
