"""The atlas against scikit-learn on features that are held in memory, and its report."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import log_loss

from pinvnn.heads import Head, atlas, extract, fit_head, plot, report, save
from pinvnn.heads._options import L2_GRID, check_grid
from pinvnn.heads._report import seconds, table
from pinvnn.nn import LogisticReadout
from tests.support.topics import write_folder, write_rows

L2 = [0.01, 1.0, 100.0]


def read(folder, name):
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def held(loaded, folder, name, pooling):
    texts, labels = read(folder, name)
    return [np.array(part, dtype=np.float64) for part in extract(loaded, texts, pooling=pooling)], labels


@pytest.fixture(scope="module", params=["last", "mean", 0])
def classified(request, tiny, topics):
    return atlas(str(tiny), topics, l2=L2, pooling=request.param)


def test_every_readout_is_that_of_scikit_learn(classified, loaded, topics):
    result = classified
    assert (result.layers, result.states, result.dataset.classes) == ([0, 1, 2, 3, 4], 5, ("animal", "food", "place"))
    train, labels = held(loaded, topics, "train", result.pooling)
    valid, valid_labels = held(loaded, topics, "valid", result.pooling)
    test, test_labels = held(loaded, topics, "test", result.pooling)
    for i in range(5):
        for j, penalty in enumerate(L2):
            other = RidgeClassifier(alpha=penalty).fit(train[i], labels)
            np.testing.assert_allclose(result.weights[i][j], other.coef_, rtol=2e-3, atol=2e-3 * abs(other.coef_).max())
            assert abs(result.valid[i][j] - other.score(valid[i], valid_labels)) <= 1 / 60
            if j == result.chosen[i]:
                assert abs(result.test[i] - other.score(test[i], test_labels)) <= 1 / 60
        assert result.valid[i][result.chosen[i]] == max(result.valid[i])
    assert max(map(max, result.valid)) == result.valid[result.best][result.chosen[result.best]]


def test_the_head_of_an_atlas_scores_as_the_atlas_says(classified, topics):
    for index in (None, 1):
        head = classified.head(index)
        texts, labels = read(topics, "test")
        right = sum(a == b for a, b in zip(head(texts), labels, strict=True))
        assert right / len(labels) == pytest.approx(head.config.scores["test"])
    assert head.config.layer == 1


@pytest.fixture(scope="module")
def regressed(tiny, lengths):
    return atlas(str(tiny), lengths, l2=L2, pooling="mean")


def test_a_regression_is_that_of_scikit_learn(regressed, loaded, lengths):
    train, labels = held(loaded, lengths, "train", "mean")
    test, test_labels = held(loaded, lengths, "test", "mean")
    assert (regressed.dataset.task, regressed.dataset.output_dims) == ("regression", 1)
    for i in range(5):
        other = Ridge(alpha=L2[regressed.chosen[i]]).fit(train[i], labels)
        assert regressed.test[i] == pytest.approx(other.score(test[i], test_labels), abs=1e-3)
    head = regressed.head()
    texts, labels = read(lengths, "test")
    errors = np.array(head(texts)) - labels
    score = 1 - (errors**2).sum() / ((labels - np.mean(labels)) ** 2).sum()
    # On a GPU the head is a linear layer, with one TF32 product, and the scores of the atlas have three.
    assert score == pytest.approx(head.config.scores["test"], rel=1e-6 if mx.default_device() == mx.cpu else 1e-3)


def test_fit_head_is_the_atlas_of_one_layer(tiny, topics, classified):
    for layer in (2, -1):
        head = fit_head(str(tiny), topics, layer, l2=L2, pooling=classified.pooling)
        expected = classified.head(layer)
        assert head.config == expected.config
        # The batches are the same; what was compiled or cached may differ, so not the bits.
        np.testing.assert_allclose(head.readout.weight, expected.readout.weight, rtol=1e-4, atol=1e-5)


def test_without_validation_texts_gcv_chooses(tiny, topics, tmp_path, classified):
    (tmp_path / "train.jsonl").write_bytes((topics / "train.jsonl").read_bytes())
    with pytest.raises(ValueError, match=r"valid.jsonl: the file must be readable"):
        atlas(str(tiny), tmp_path, l2=L2)
    head = fit_head(str(tiny), tmp_path, 1, l2=L2, pooling=classified.pooling)
    assert head.config.l2 == L2[int(np.argmin(classified.gcv[1]))]
    assert head.config.scores == {}


def test_one_penalty_is_a_grid_of_one(tiny, topics):
    assert fit_head(str(tiny), topics, 1, l2=3.0).config.l2 == 3.0
    assert check_grid(L2_GRID) == list(L2_GRID)


def test_memory_does_not_grow_with_the_texts(loaded, tmp_path):
    peaks = []
    for count in (600, 600, 2400):  # the first run is for what is made once
        mx.reset_peak_memory()
        atlas(loaded, write_folder(tmp_path / str(count), count, 40), l2=[1.0])
        peaks.append(mx.get_peak_memory())
    assert peaks[2] < 1.1 * peaks[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": []}, r"l2 must be one or more finite numbers, 0 or larger, but got \[\]"),
        ({"l2": [-1.0]}, r"l2 must be .* but got \[-1.0\]"),
        ({"l2": float("nan")}, "l2 must be .* but got nan"),
        ({"layers": [9]}, "layer must be between -5 and 4, but got 9"),
        ({"batch_size": 0}, "batch_size must be 1 or more, but got 0"),
        ({"pooling": "first"}, "pooling must be"),
        ({"pooling": 12}, r"train.jsonl:\d+: the text must have 13 or more tokens"),
    ],
)
def test_bad_arguments(tiny, topics, options, message):
    with pytest.raises(ValueError, match=message):
        atlas(str(tiny), topics, **options)


def test_states_that_are_not_finite_are_named(loaded, topics):
    from mlx_lm.models import llama

    model, tokenizer = loaded
    broken = llama.Model(model.args)
    broken.update(model.parameters())
    broken.layers[1].mlp.down_proj.weight = broken.layers[1].mlp.down_proj.weight * mx.inf
    with pytest.raises(ValueError, match="states of layer 2 must be finite, but got others"):
        atlas((broken, tokenizer), topics)


def test_files_of_an_atlas(tmp_path, classified, tiny, topics):
    (tmp_path / "mine.txt").write_text("kept")
    save(classified, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas.json", "atlas.png", "head", "mine.txt"]
    assert (tmp_path / "atlas.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((tmp_path / "atlas.json").read_text())
    assert found == json.loads(json.dumps(report(classified)))
    assert [layer["name"] for layer in found["layers"]] == ["embedding", "1", "2", "3", "norm"]
    best = classified.best
    assert found["best"]["layer"] == best
    assert found["layers"][best]["valid"] == classified.valid[best]
    assert found["data"]["train"]["texts"] == 300
    assert set(found["seconds"]) >= {"forward", "statistics", "solve", "score"}
    head = Head.load(tmp_path / "head")
    assert head.config.layer == best and head.config.model == str(tiny)
    assert head(read(topics, "test")[0]) == classified.head()(read(topics, "test")[0])


def test_the_report_is_json_also_where_gcv_is_not_a_number(tiny, tmp_path):
    # 20 rows and 32 features: without a penalty there are no degrees of freedom left.
    write_folder(tmp_path / "data", 20, 5)
    write_rows(tmp_path / "data" / "train.jsonl", [{"text": t, "label": x} for t, x in zip(*texts(20), strict=True)])
    write_rows(tmp_path / "data" / "valid.jsonl", [{"text": t, "label": x} for t, x in zip(*texts(5), strict=True)])
    (tmp_path / "data" / "test.jsonl").unlink()
    result = atlas(str(tiny), tmp_path / "data", l2=[0.0, 1.0])
    assert any(math.isnan(value) for row in result.gcv for value in row)
    json.dumps(report(result), allow_nan=False)
    assert result.test is None
    plot(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()


def texts(count):
    from tests.support.topics import rows

    found = rows(count, 7)
    return [row["text"] for row in found], ["animal" if row["label"] == "animal" else "other" for row in found]


def test_the_table_marks_the_best_layer(classified):
    lines = table(classified).splitlines()
    assert len(lines) == 6
    assert [line.endswith("best") for line in lines[1:]].index(True) == classified.best
    assert "tokens" in seconds(classified)


# --- Logistic readouts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logistic(tiny, topics):
    return atlas(str(tiny), topics, l2=L2, pooling="mean", readout="logistic")


def test_logistic_readouts_are_near_those_of_scikit_learn(logistic, loaded, topics):
    train, labels = held(loaded, topics, "train", "mean")
    valid, valid_labels = held(loaded, topics, "valid", "mean")
    for i in range(5):
        for j, penalty in enumerate(L2):
            other = LogisticRegression(C=1 / penalty, max_iter=10000, tol=1e-8).fit(train[i], labels)
            found = train[i] @ np.array(logistic.weights[i][j]).T + np.array(logistic.biases[i][j])
            objective = log_loss(labels, softmax(found, axis=1)) * 300 + penalty * (
                np.sum(np.array(logistic.weights[i][j], np.float64) ** 2) / 2
            )
            best = log_loss(labels, other.predict_proba(train[i])) * 300 + penalty * np.sum(other.coef_**2) / 2
            assert best * (1 - 1e-6) <= objective <= best * 1.002
            held_out = log_loss(valid_labels, other.predict_proba(valid[i]))
            assert logistic.valid_log_loss[i][j] == pytest.approx(held_out, rel=0.03, abs=3e-3)


def test_a_logistic_atlas_has_the_ridge_readouts_beside(logistic, tiny, topics):
    ridge = atlas(str(tiny), topics, l2=L2, pooling="mean")
    assert (logistic.readout, logistic.ridge.readout) == ("logistic", "ridge")
    assert (ridge.readout, ridge.ridge) == ("ridge", None)
    for name in ("valid", "test", "chosen", "gcv", "scale", "valid_log_loss", "test_log_loss"):
        assert getattr(logistic.ridge, name) == getattr(ridge, name)
    written = report(logistic)
    assert written["readout"] == "logistic" and len(written["ridge"]) == len(written["layers"]) == 5
    assert written["layers"][0]["gcv"] == [None] * 3 and written["layers"][0]["valid_log_loss"] is not None
    assert "ridge" not in report(ridge)
    lines = table(logistic).splitlines()
    assert lines[0] == "logistic readouts:" and "ridge readouts of the same texts:" in lines and len(lines) == 14


def test_a_logistic_head_is_saved_with_its_kind_and_has_its_own_probabilities(logistic, tiny, topics, tmp_path):
    head = logistic.head(2)
    assert isinstance(head.readout, LogisticReadout) and head.config.scale == 1
    head.save(tmp_path)
    again = Head.load(tmp_path, str(tiny))
    assert isinstance(again.readout, LogisticReadout) and again.config.readout == "logistic"
    texts, labels = read(topics, "test")
    right = sum(a == b for a, b in zip(again(texts), labels, strict=True))
    assert right / len(labels) == pytest.approx(logistic.test[2])


def test_an_interrupted_logistic_run_goes_on_from_its_rows(tiny, topics, tmp_path, monkeypatch, logistic):
    def stop(*_):
        raise KeyboardInterrupt

    options = dict(l2=L2, pooling="mean", readout="logistic", output=tmp_path, save_every=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pinvnn.heads._atlas.fit_layers", stop)
        atlas(str(tiny), topics, **options)
    with pytest.raises(ValueError, match="checkpoint must be of the same run, but got readout 'logistic' there"):
        atlas(str(tiny), topics, **{**options, "readout": "ridge"})
    result = atlas(str(tiny), topics, **options)
    assert result.resumed == 300 and not (tmp_path / "checkpoint").exists()
    for one, other in zip(result.weights, logistic.weights, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(readout="probit"), "readout must be \"ridge\" or \"logistic\", but got 'probit'"),
        (dict(readout="logistic", l2=[0.0, 1.0]), "l2 of a logistic readout must be positive"),
        (dict(readout="logistic", task="regression"), "readout needs a classification, but got a regression"),
    ],
)
def test_bad_readouts(tiny, lengths, change, match):
    with pytest.raises(ValueError, match=match):
        atlas(str(tiny), lengths, **change)
