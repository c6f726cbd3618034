"""How far word counts alone tell the better of two texts: the baseline a preference model must beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from truing.stats.intervals import Array

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[!?]")


def words_of(text: str) -> Counter[str]:
    """Counts of the words of a text, in lower case; ! and ? count as words.

    >>> dict(words_of("I don't know. Don't ask!"))
    {'i': 1, "don't": 2, 'know': 1, 'ask': 1, '!': 1}
    """
    return Counter(_WORD.findall(text.lower()))


def word_differences(chosen: Sequence[str], rejected: Sequence[str], vocabulary: dict[str, int]) -> csr_matrix:
    """Counts of each known word in the chosen text minus those in the rejected one, sparse [P, V]."""
    rows, columns, values = [], [], []
    for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)):
        difference = words_of(a)
        difference.subtract(words_of(b))
        for word, count in difference.items():
            if count and word in vocabulary:
                rows.append(i)
                columns.append(vocabulary[word])
                values.append(float(count))
    return csr_matrix((values, (rows, columns)), shape=(len(chosen), len(vocabulary)))


def fit_bradley_terry(x: csr_matrix, l2: float = 1.0) -> Array:
    """Weights [V] of Bradley-Terry on feature differences [P, V]: argmin Σ log(1 + e^(−xw)) + l2/2 · |w|².

    Logistic regression without intercept where every label is "chosen" (scikit-learn's C is 1/l2).
    """

    def loss(w: Array) -> tuple[float, Array]:
        margin = x @ w
        value = float(np.logaddexp(0.0, -margin).sum()) + l2 / 2 * float(w @ w)
        return value, -(x.T @ expit(-margin)) + l2 * w

    return minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x


def bag_of_words(
    train: tuple[Sequence[str], Sequence[str]], test: tuple[Sequence[str], Sequence[str]], *, l2: float = 10.0
) -> Array:
    """Score gaps [test pairs] of a Bradley-Terry model over word counts, fitted on (chosen, rejected) train texts.

    Words that fewer than two training texts hold are left out. A gap of 0 (no known word differs) decides nothing.
    """
    texts = Counter(word for side in train for text in side for word in words_of(text))
    vocabulary = {word: i for i, word in enumerate(sorted(w for w, n in texts.items() if n > 1))}
    if not vocabulary:
        return np.zeros(len(test[0]))
    weights = fit_bradley_terry(word_differences(*train, vocabulary), l2)
    return word_differences(*test, vocabulary) @ weights
