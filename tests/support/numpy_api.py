"""NumPy's linear-algebra functions in terms of pinvnn's, for test suites written against NumPy.

Where the two agree nothing is done. What is translated, because pinvnn differs by design:

- dtypes: NumPy computes integers in float64, pinvnn in float32; MLX has no complex128, so that complex128 goes through
  the real embedding [[Re, -Im], [Im, Re]] in float64;
- ``rcond``, ``rtol`` and ``tol`` have one name each in pinvnn (``rtol``, ``atol``), and a negative ``rcond`` is eps;
- ``matrix_rank`` of a vector or a number: pinvnn takes matrices only; it returns int32, NumPy intp;
- ``lstsq`` gives residuals for every problem, NumPy only for m > n and full rank, and as shape (1,) for a vector b.
"""

import mlx.core as mx
import numpy as np

import pinvnn

EPS = {np.float32: 2.0**-23, np.complex64: 2.0**-23}


def _mlx(x):
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.complex64):
        x = x.astype(np.float64)
    return mx.array(np.ascontiguousarray(x), dtype=mx.float64 if x.dtype == np.float64 else None)


def _embed(x):
    return np.concatenate([np.concatenate([x.real, -x.imag], -1), np.concatenate([x.imag, x.real], -1)], -2)


def _is_complex128(*arrays):
    return np.result_type(*[np.asarray(x) for x in arrays]) == np.complex128


def pinv(a, rcond=None, hermitian=False, *, rtol=None):
    if rcond is not None and rtol is not None:
        raise ValueError("`rtol` and `rcond` can't be both set.")
    rtol = rcond if rtol is None else rtol
    a = np.asarray(a)
    if _is_complex128(a):
        p = np.array(pinvnn.pinv(_mlx(_embed(a)), rtol=rtol, hermitian=hermitian))
        n, m = a.shape[-1], a.shape[-2]
        return p[..., :n, :m] + 1j * p[..., n:, :m]
    return np.array(pinvnn.pinv(_mlx(a), rtol=rtol, hermitian=hermitian))


def matrix_rank(a, tol=None, hermitian=False, *, rtol=None):
    if tol is not None and rtol is not None:
        raise ValueError("`tol` and `rtol` can't be both set.")
    a = np.asarray(a)
    if a.ndim < 2:
        return int(not np.all(a == 0))
    if _is_complex128(a):
        rank = np.array(pinvnn.matrix_rank(_mlx(_embed(a)), rtol=rtol, atol=tol, hermitian=hermitian)) // 2
    else:
        rank = np.array(pinvnn.matrix_rank(_mlx(a), rtol=rtol, atol=tol, hermitian=hermitian))
    return rank.astype(np.intp)


def lstsq(a, b, rcond=None):
    a, b = np.asarray(a), np.asarray(b)
    if rcond is not None and rcond < 0:
        rcond = EPS.get(np.result_type(a, b).type, 2.0**-52)
    vector, (m, n) = b.ndim == 1, a.shape
    if _is_complex128(a, b):
        columns = b[:, None] if vector else b
        right = np.concatenate([columns.real, columns.imag])
        result = pinvnn.lstsq(_mlx(_embed(a)), _mlx(right), rtol=rcond)
        x, rest, rank, s = (np.array(part) for part in result)
        x, rank, s = x[:n] + 1j * x[n:], rank // 2, s[::2]
        x, rest = (x[:, 0], rest[0]) if vector else (x, rest)
    else:
        x, rest, rank, s = (np.array(part) for part in pinvnn.lstsq(_mlx(a), _mlx(b), rtol=rcond))
    known = m > n and rank == n
    return x, np.atleast_1d(rest) if known else np.zeros(0, rest.dtype), int(rank), s
