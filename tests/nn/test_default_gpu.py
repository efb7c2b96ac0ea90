"""Nothing in float64 lands on a default GPU: it is emulated by tests/support/emulated_gpu.py."""

import mlx.core as mx
import pytest

from pinvnn._factor import newton
from pinvnn.nn import LeastSquaresReadout, LogisticReadout, PseudoInverse, RidgeClassifier
from tests.support.emulated_gpu import finite, placed

M, N, K = 9, 3, 2


def arrays(dtype):
    with mx.stream(mx.cpu):
        x, y, w = (mx.random.normal(s, key=mx.random.key(i)) for i, s in enumerate([(M, N), (M, K), (M,)]))
        out = x.astype(dtype), y.astype(dtype), mx.abs(w).astype(dtype)
        mx.eval(out)
        return out


def penalties(kind):
    with mx.stream(mx.cpu):
        return {"none": 0.0, "number": 0.5, "target": mx.array([0.5, 1.0]), "feature": mx.array([[0.5]] * N)}[kind]


METHODS = {
    "adapt": lambda r, x, y, w: r.adapt(x, y, x, w),
    "projected_loss": lambda r, x, y, w: r.projected_loss(x, y, w),
    "loo_loss": lambda r, x, y, w: r.loo_loss(x, y, w),
    "loo_loss, wide": lambda r, x, y, w: r.loo_loss(x[:2], y[:2]),
    "loo_loss, few": lambda r, x, y, w: r.loo_loss(x[:4], y[:4]),
    "unit": lambda r, x, y, w: r.loo_predictions(x, y, w, removed="unit"),
    "gcv": lambda r, x, y, w: r.gcv(x, y, w),
    "uncertainty": lambda r, x, y, w: r.uncertainty(x, y, w).predictive_std(x),
}
TRANSFORMS = {
    "value": lambda fn, x: fn(x),
    "vjp": lambda fn, x: mx.grad(lambda x: mx.sum(fn(x)))(x),
    "jvp": lambda fn, x: mx.jvp(fn, [x], [x])[1],
    "vjp of vjp": lambda fn, x: mx.grad(lambda x: mx.sum(mx.grad(lambda x: mx.sum(fn(x)))(x)))(x),
    "vmap": lambda fn, x: mx.vmap(fn)(mx.stack([x, x])),
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.bfloat16], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("method", METHODS)
def test_the_readout(gpu, method, transform, dtype):
    x, y, w = arrays(dtype)
    for kind in ("none", "number", "target", "feature"):
        readout = LeastSquaresReadout(N, K, l2=penalties(kind))
        for weights in (None, w):
            with placed(dtype):
                out = TRANSFORMS[transform](lambda x: METHODS[method](readout, x, y, weights), x)  # noqa: B023
            assert finite(out)
            assert gpu.calls.total() > 0
            gpu.calls.clear()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_evidence(gpu, transform, dtype):
    x, y, w = arrays(dtype)
    for kind in ("number", "target", "feature"):
        for rows in (M, 2):
            readout = LeastSquaresReadout(N, K, l2=penalties(kind))
            with placed(dtype):
                weights = w if rows == M else None
                fn = lambda x: readout.log_evidence(x, y[:rows], weights)  # noqa: B023, E731
                assert finite(TRANSFORMS[transform](fn, x[:rows]))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_fits_and_classifiers(gpu, dtype):
    x, y, w = arrays(dtype)
    fitted = LeastSquaresReadout(N, K, l2=0.5, learn_l2=True).fit(x, y, w)
    bounded = LeastSquaresReadout(N, K, bounds=(0, None))
    labels = mx.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    classifier = RidgeClassifier(N, 3, class_weights="balanced").fit(x, labels, w)
    assert "l2=0.5" in repr(fitted)
    with placed(dtype):
        assert finite(fitted(x), fitted.to_linear()(x), PseudoInverse()(x), fitted.l2)
        for name in ("adapt", "projected_loss", "loo_loss"):
            rest = (x, w) if name == "adapt" else (w,)
            assert finite(mx.grad(lambda x: mx.sum(getattr(bounded, name)(x, y, *rest)))(x))  # noqa: B023
        assert finite(classifier.predict_proba(x), classifier.predict(x), classifier.to_linear()(x))
        assert finite(mx.grad(lambda x: mx.sum(classifier.adapt(x, labels, x, w)))(x))
        for weights in (w, None):  # refits, and one factorization a class
            assert finite(mx.grad(lambda x: classifier.loo_loss(x, labels, weights))(x))  # noqa: B023


LOGISTIC = {
    "solve": lambda r, x, y, w: mx.concatenate([part.reshape(-1) for part in r.solve(x, y, w)]),
    "adapt": lambda r, x, y, w: r.adapt(x, y, x, w),
    "projected_loss": lambda r, x, y, w: r.projected_loss(x, y, w),
    "loo_predictions": lambda r, x, y, w: r.loo_predictions(x, y, w, refits=0),
    "loo_loss": lambda r, x, y, w: r.loo_loss(x, y, w),
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.bfloat16], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("method", LOGISTIC)
def test_the_logistic_readout(gpu, method, transform, dtype):
    x, _, w = arrays(dtype)
    labels = mx.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    for kind in ("number", "class", "feature"):
        l2 = penalties("number" if kind == "class" else kind)
        with mx.stream(mx.cpu):
            l2 = mx.array([0.5, 1.0, 2.0]) if kind == "class" else l2
        for weights in (None, w):
            readout = LogisticReadout(N, 3, l2=l2)
            with placed(dtype):
                out = TRANSFORMS[transform](lambda x: LOGISTIC[method](readout, x, labels, weights), x)  # noqa: B023
                assert finite(out)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("large", [False, True])
def test_a_logistic_fit(gpu, large, dtype, monkeypatch):
    if large:
        monkeypatch.setattr(newton.hessian, "DENSE", 0)
    x, _, w = arrays(dtype)
    labels = mx.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    readout = LogisticReadout(N, 3, l2=0.5, learn_l2=True, class_weights="balanced").fit(x, labels, w)
    with placed(dtype):
        assert finite(readout(x), readout.predict_proba(x), readout.predict(x), readout.to_linear()(x), readout.l2)
        assert finite(mx.grad(lambda x: mx.sum(readout.adapt(x, labels, x, w)))(x))
        for weights in (w, None):  # refits, and one fit a class
            assert finite(mx.grad(lambda x: readout.loo_loss(x, labels, weights))(x))  # noqa: B023
