"""Probes: which of some twenty classes is a noun in, by a readout of a language model's layers, beside TF-IDF.

SmolLM2-135M reads definitions of WordNet, as in examples/llm_atlas.py, which says what must be installed; put a fast
BLAS under MLX for it (LD_PRELOAD). The mean over the tokens of each layer goes, standardized, into RidgeClassifier or
LogisticReadout; the search chooses layer and penalty. TF-IDF goes into the best of four classifiers, whose scores are
calibrated by cross-validation where they are no probabilities. Settings are judged on texts of their own by their
cross-entropy; pairs are ten parts of the test texts.
"""

from __future__ import annotations

import os
import tempfile
import time

import mlx.core as mx
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from pinvnn import nn

from .example import example
from .networks import standardized
from .search import Choice, Log, draws
from .table import Row, Table

SIZES, BUDGET, PARTS = {"train": 1000, "valid": 250, "test": 500}, 24, 10
LEAST = 10  # training texts of a class; the others are left out, since calibration by folds needs some of each
CLASSIFIERS = {
    "logistic": lambda penalty: LogisticRegression(C=10 / penalty, max_iter=300),
    "naive Bayes": lambda penalty: ComplementNB(alpha=penalty),
    "ridge": lambda penalty: CalibratedClassifierCV(RidgeClassifier(penalty), cv=3),
    "support vectors": lambda penalty: CalibratedClassifierCV(LinearSVC(C=1 / penalty), cv=3),
}
TFIDF = {"kind": Choice(tuple(CLASSIFIERS)), "penalty": Log(0.03, 10.0), "words": Choice((1, 2)),
         "sublinear": Choice((False, True))}


def corpus(small: bool) -> tuple[dict[str, tuple[list[str], np.ndarray]], dict[str, np.ndarray]]:
    """``(texts, labels)`` of each part, labels from 0; and the states of all layers ``(layers, texts, features)``."""
    if small:
        os.environ["PINVNN_EXAMPLE_SIZE"] = "small"
        os.environ.setdefault("PINVNN_EXAMPLE_OUTPUT", tempfile.mkdtemp())
    atlas = example("llm_atlas")
    from pinvnn.heads import extract

    data = atlas.write_data(atlas.OUTPUT / "evidence", {"train": 60, "valid": 30, "test": 40} if small else SIZES)
    model, parts = atlas.prepare_model(), {}
    for name in SIZES:
        texts, labels = atlas.read(data, name)
        parts[name] = texts, np.array(labels)
    names, counts = np.unique(parts["train"][1], return_counts=True)
    names = names[counts >= LEAST]
    for name, (texts, labels) in parts.items():
        kept = np.flatnonzero(np.isin(labels, names))
        parts[name] = [texts[i] for i in kept], np.searchsorted(names, labels[kept])
    states = {name: extract(str(model), texts, pooling="mean") for name, (texts, _) in parts.items()}
    return parts, {name: np.stack([np.array(s.astype(mx.float32)) for s in found]) for name, found in states.items()}


def by_readout(layer, parts, states, known, at, l2):
    """Probabilities for the parts ``known`` of a readout of layer ``at`` that is fitted to the training texts."""
    x = np.concatenate([states[name][int(at)] for name in ("train", *known)])
    train = np.arange(len(x)) < len(parts["train"][1])
    x = mx.array(standardized(x, train), mx.float32)
    labels = mx.array(parts["train"][1])
    count = len(labels)
    head = layer(x.shape[1], int(labels.max().item()) + 1, l2).fit(x[:count], labels)
    return np.array(mx.softmax(head(x[count:]), axis=-1))


def by_words(parts, known, kind, penalty, words, sublinear):
    texts, labels = parts["train"]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, words), sublinear_tf=sublinear), CLASSIFIERS[kind](penalty))
    model.fit(texts, labels)
    found = np.full((sum(len(parts[name][0]) for name in known), labels.max() + 1), 1e-6)
    found[:, model.classes_] = model.predict_proba([text for name in known for text in parts[name][0]])
    return found


def misfits(probabilities, labels):
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-6))


def run(small: bool, say, only=None) -> list[Table]:
    start = time.process_time()
    parts, states = corpus(small)
    reading = time.process_time() - start
    say(f"states of all layers: {reading:.0f} s")
    of_states = {"at": Choice(tuple(range(len(states["train"])))), "l2": Log(1.0, 1e5)}
    rivals = {
        "TF-IDF": (lambda known, **s: by_words(parts, known, **s), TFIDF),
        "ridge": (lambda known, **s: by_readout(nn.RidgeClassifier, parts, states, known, **s), of_states),
        "logistic": (lambda known, **s: by_readout(nn.LogisticReadout, parts, states, known, **s), of_states),
    }
    valid, test = parts["valid"][1], parts["test"][1]
    count = len(test) // PARTS * PARTS
    right, loss = (Row(f"WordNet, {len(parts['train'][1])} texts", {}) for _ in range(2))
    seconds, notes = {}, {}
    for rival, (predict, space) in rivals.items():
        if only and rival not in only:
            continue
        start = time.process_time()
        tried = draws(space, 2 if small else BUDGET)
        errors = [misfits(predict(("valid",), **s), valid).mean() for s in tried]
        best = tried[int(np.argmin(errors))]
        found = predict(("test",), **best)
        seconds[rival] = time.process_time() - start + (0 if rival == "TF-IDF" else reading)
        notes[rival] = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in best.items())
        hits = (found.argmax(axis=1) == test)[:count]
        right.scores[rival] = hits.reshape(PARTS, -1).mean(axis=1).tolist()
        loss.scores[rival] = misfits(found, test)[:count].reshape(PARTS, -1).mean(axis=1).tolist()
        say(f"{rival}: {hits.mean():.3f}, {misfits(found, test).mean():.3f}, {notes[rival]}")
    return [Table("Probes", "accuracy", "higher", "ridge", [right], seconds, notes),
            Table("Probes", "cross-entropy", "lower", "ridge", [loss])]
