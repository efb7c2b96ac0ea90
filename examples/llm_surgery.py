"""Surgery on a language model by least squares: repair it after quantization, take out layers, erase a concept.

SmolLM2-135M and definitions of WordNet, some to fit on and others to score:
  - quantized to 2 and 3 bits, and repaired by corrections of rank 8, 32 and 64, each the best in one of three norms;
  - 1, 2, 4 and 8 layers taken out, and the layer before refitted: not at all, by least squares, by ridge;
  - the class of a noun erased from a layer in the middle, beside subtracting the means of the classes.

    python examples/llm_surgery.py      (see llm_atlas.py for what to install, and for the environment)
"""

import argparse
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from _common import SMALL, picture
from llm_atlas import prepare_model, write_data
from mlx.utils import tree_unflatten

from pinvnn import surgery
from pinvnn.heads import extract, load_model

OUTPUT = picture("llm_surgery")
BITS, RANKS = ((2,), (2, 4)) if SMALL else ((2, 3), (8, 32, 64))
NORMS: dict[Any, str] = {"plain": "SVD", "diagonal": "LQER", "activations": "exact"}
PENALTIES = {"dropped": math.inf, "least squares": 0.0, "ridge": None}
LAYER, ERASED = (2, 200) if SMALL else (15, 700)
SKIPS = (1, 2) if SMALL else (1, 2, 4, 8)


def say(*words):
    print(*words, flush=True)


def load(folder):
    source = load_model(folder)
    return source.model, source.tokenizer


def peak() -> str:
    import resource
    import sys

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    return f"peak memory {size:.2f} GiB"


def repair(folder: Path, data: Path) -> None:
    model, tokenizer = load(folder)
    valid = data / "valid.jsonl"
    start = time.perf_counter()
    stats = surgery.collect((model, tokenizer), data, progress=True)
    spent = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in stats.clock.seconds.items())
    say(f"Statistics of {stats.tokens} tokens in {time.perf_counter() - start:.1f} s ({spent}), {peak()}")
    original = surgery.perplexity((model, tokenizer), valid)
    say(f"perplexity of the original: {original:.3f}")
    found: dict[str, dict[int, float]] = {}
    for bits in BITS:
        quantized = load(folder)[0]
        group = 32 if SMALL else 64
        nn.quantize(quantized, group, bits, class_predicate=lambda _, module: isinstance(module, nn.Linear))
        packed = [pair for pair in quantized.named_modules() if isinstance(pair[1], nn.QuantizedLinear)]
        errors = {}
        for norm, title in NORMS.items():
            start = time.perf_counter()
            adapter = surgery.compensate(quantized, model, stats, max(RANKS), norm=norm)
            seconds, errors[norm] = time.perf_counter() - start, adapter
            row = found.setdefault(f"{bits} bits, {title}", {})
            for rank in RANKS if norm != "plain" else (0, *RANKS):
                # Dense weights: MLX's quantized products are slow on a Linux CPU.
                row[rank] = surgery.perplexity((adapter.truncated(rank).apply(quantized), tokenizer), valid)
                quantized.update_modules(tree_unflatten(packed))
                say(f"{bits} bits, {title}, rank {rank}: perplexity {row[rank]:.3f}")
            say(f"  closed forms {seconds:.1f} s")
        for rank in RANKS:
            parts = {norm: adapter.truncated(rank).errors() for norm, adapter in errors.items()}
            for worse, better in [("plain", "diagonal"), ("diagonal", "activations"), ("plain", "activations")]:
                names = parts[worse]
                right = sum(parts[better][name][1] <= parts[worse][name][1] * (1 + 1e-9) for name in names)
                say(f"  rank {rank}: error of {NORMS[better]} <= {NORMS[worse]} in {right} of {len(names)} layers")
    write("repair", {"original": original, "repaired": found, "tokens": stats.tokens})
    draw("repair", found, "rank", {"original": original})


def shorten(folder: Path, data: Path) -> None:
    source, valid = load(folder), data / "valid.jsonl"
    original = surgery.perplexity(source, valid)
    say(f"perplexity of the original: {original:.3f}")
    lines: dict[str, dict[int, float]] = {title: {0: original} for title in PENALTIES}
    for skip in SKIPS:
        start = time.perf_counter()
        ridge = surgery.replace_layers(source, data, skip, progress=True)
        spent = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in ridge.clock.seconds.items())
        say(f"{skip} layers: {ridge.tokens} tokens in {time.perf_counter() - start:.1f} s ({spent}), {peak()}")
        for title, l2 in PENALTIES.items():
            found = ridge if l2 is None else ridge.with_l2(l2)
            with found.applied():
                lines[title][skip] = surgery.perplexity(source, valid)
            fit = next(fit for fit in found.fits if fit["start"] == found.start)
            errors = ", ".join(f"{key} {fit[key]:.4f}" for key in ("dropped", "fitted", "predicted"))
            say(f"{skip} layers after {found.start}, {title}: perplexity {lines[title][skip]:.3f} (error {errors})")
    write("shorten", {"perplexity": lines, "tokens": ridge.tokens})
    draw("shorten", lines, "layers removed", {})


def erase(folder: Path, _: Path) -> None:
    data = write_data(OUTPUT / "erase", {"train": ERASED, "valid": 30 if SMALL else 100})
    source, valid = load(folder), data / "valid.jsonl"
    texts, labels = read(data, "train")
    held_out, true = read(data, "valid")
    start = time.perf_counter()
    leace = surgery.erase(source, data, LAYER, pooling="mean", progress=True)
    say(f"LEACE at layer {LAYER} from {len(texts)} texts in {time.perf_counter() - start:.1f} s, {peak()}")
    x, x_valid = (np.array(extract(source, part, layers=[LAYER], pooling="mean")[0]) for part in (texts, held_out))
    means = {label: x[[i for i, other in enumerate(labels) if other == label]].mean(axis=0) for label in set(labels)}
    erasers = {"LEACE": leace, "projection": projection(leace, x, np.stack(list(means.values())))}
    rows = {"original": (x, x_valid)}
    for name, eraser in erasers.items():
        rows[name] = np.array(eraser(mx.array(x))), np.array(eraser(mx.array(x_valid)))
    # Needs the label of each text, so that it is no map of states; the held-out texts are left as they are.
    rows["class means subtracted"] = np.stack([a - means[label] for a, label in zip(x, labels, strict=True)]), x_valid
    majority = max(labels, key=labels.count)
    shares = [part.count(majority) / len(part) for part in (labels, true)]
    say(f"the majority, {majority}: {shares[0]:.4f} of the texts, {shares[1]:.4f} of the held-out ones")
    spread, y = x.std(axis=0), one_hot(labels)
    found: dict[str, dict[str, Any]] = {"majority": {"train": shares[0], "valid": shares[1]}}
    for name, parts in rows.items():
        scores = {title: score(make, spread, parts, (labels, true)) for title, make in readouts().items()}
        left = float(np.linalg.norm(covariance(parts[0], y)) / np.linalg.norm(covariance(x, y)))
        moved = float(np.linalg.norm(parts[0] - x) / np.linalg.norm(x - x.mean(axis=0)))
        found[name] = {"cross_covariance": left, "moved": moved, **scores}
        if name in ("original", *erasers):
            with erasers[name].installed(source[0]) if name in erasers else nullcontext():
                found[name]["perplexity"] = surgery.perplexity(source, valid)
        say(f"{name}: cross-covariance {left:.1e}, moved {moved:.3f}, {scores}, {found[name].get('perplexity')}")
    write("erase", found)
    draw_scores(found)


def read(data: Path, name: str) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def one_hot(labels):
    return np.array([[label == other for other in sorted(set(labels))] for label in labels], np.float64)


def covariance(x, y):
    x = x.astype(np.float64)
    return (x - x.mean(axis=0)).T @ (y - y.mean(axis=0))


def projection(eraser: surgery.Eraser, x, means) -> surgery.Eraser:
    """The orthogonal projection off the differences of the class means: also an erasure, but not the least one."""
    centre = x.mean(axis=0)
    u, s, _ = np.linalg.svd((means - centre).T.astype(np.float64), full_matrices=False)
    u = u[:, s > 1e-6 * s[0]]
    basis = mx.array(u.astype(np.float32))
    return surgery.Eraser(eraser.config, basis, basis.T, mx.array(centre))


def readouts() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression, RidgeClassifier

    return {"ridge": lambda: RidgeClassifier(1.0), "logistic": lambda: LogisticRegression(max_iter=200)}


def score(make, spread, parts, labels) -> list[float]:
    """Accuracy on the texts of the fit, and on the others; the features in units of their spread before."""
    x, x_valid = (np.asarray(part, np.float64) / np.where(spread > 0, spread, 1) for part in parts)
    centre = x.mean(axis=0)
    readout = make().fit(x - centre, labels[0])
    return [round(float(readout.score(a - centre, b)), 4) for a, b in zip((x, x_valid), labels, strict=True)]


def draw_scores(found: dict[str, dict[str, Any]]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names = [name for name in found if name != "majority"]
    for i, title in enumerate(readouts()):
        places = [place + 0.35 * i for place in range(len(names))]
        axes.bar(places, [found[name][title][0] for name in names], 0.3, label=f"{title} readout")
    axes.axhline(found["majority"]["train"], ls="--", color="gray", label="majority")
    axes.set_xticks([place + 0.18 for place in range(len(names))], names)
    axes.set(ylabel="accuracy on the erased texts")
    axes.legend()
    figure.savefig(OUTPUT.parent / "llm_surgery_erase.png", dpi=120)


def write(name: str, values: dict) -> None:
    (OUTPUT / f"{name}.json").write_text(json.dumps(values, indent=4) + "\n")


def draw(name: str, lines: dict[str, dict[int, float]], label: str, levels: dict[str, float]) -> None:
    """Perplexities over ranks or layers."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for title, row in lines.items():
        axes.plot(list(row), list(row.values()), "o-", ms=4, label=title)
    for title, level in levels.items():
        axes.axhline(level, ls="--", color="gray", label=title)
    axes.set(xlabel=label, ylabel="perplexity", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(OUTPUT.parent / f"llm_surgery_{name}.png", dpi=120)


PARTS = {"repair": repair, "shorten": shorten, "erase": erase}


def main():
    parser = argparse.ArgumentParser(description="Repair, shorten and erase.")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="What to do.")
    parser.add_argument("--train", type=int, default=100 if SMALL else 500, help="Texts to fit on.")
    parser.add_argument("--valid", type=int, default=30 if SMALL else 200, help="Texts to score.")
    args = parser.parse_args()

    mx.random.seed(0)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    data = write_data(OUTPUT / "data", {"train": args.train, "valid": args.valid})
    folder = prepare_model()
    for part in args.parts:
        PARTS[part](folder, data)


if __name__ == "__main__":
    main()
