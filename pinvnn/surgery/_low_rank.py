r"""The best low-rank correction of a weight, in the norm of the activations.

Notation: W (o x n) the weight, Q what stands in its place, E = W - Q, C = mean x x^T (n x n) over the tokens, rank r.
The mean squared error of a correction K of rank r is

    mean |(E - K) x|^2 = tr (E - K) C (E - K)^T = |(E - K) R|_F^2,    C = R R^T.

By Eckart and Young its minimum over K R is the projection of E R on its r largest left singular vectors U, which are
eigenvectors of E C E^T. That is reached by

    K = U U^T E:    K R = U U^T (E R).

Neither a root of C nor its inverse is needed, so that no eigenvalue of C, however small, is divided by; the error that
is left is the sum of the other eigenvalues of E C E^T. QERA (Theorem 1) and EoRA (section 3) write the same minimizer
as SVD_r(E C^(1/2)) C^(-1/2), where that exists. LQER's diagonal scaling is this with the diagonal of C in place of C,
and the plain truncated SVD of E is this with C = I.

Where the text does not reach (fewer tokens than dimensions, or a rank above that of E C E^T), eigenvalues are rounding
errors, and their vectors arbitrary: from there on directions are chosen by the plain norm, as those of the largest
singular values of what is left of E.
"""

from typing import Literal, NamedTuple, TypeAlias, get_args

import mlx.core as mx
import numpy as np

from .._mlx import dtypes, fail

#: The norm in which a correction is the best.
Norm: TypeAlias = Literal["activations", "diagonal", "plain"]


class Correction(NamedTuple):
    """A correction ``b @ a`` of a weight ``(o, n)``, and what it does. The first k directions are the best of rank k.

    Attributes:
        b: ``(o, r)``, orthonormal columns.
        a: ``(r, n)``.
        size: Mean of ``|W x|^2`` over the tokens.
        error: Mean of ``|E x|^2`` over the tokens, without a correction.
        removed: By how much each direction lowers that, ``(r,)``.
    """

    b: np.ndarray
    a: np.ndarray
    size: float
    error: float
    removed: np.ndarray


def check_norm(name: str, norm: str) -> None:
    """Raise ValueError for a norm that does not exist."""
    if norm not in get_args(Norm):
        fail(name, f"norm must be one of {get_args(Norm)}", repr(norm), 'Pass "activations".')


def correction(weight: np.ndarray, quantized: np.ndarray, second: np.ndarray, rank: int, norm: Norm) -> Correction:
    """The best correction of ``quantized`` (o, n) towards ``weight`` (o, n) of rank ``rank`` or less, in float64.

    Args:
        weight: W.
        quantized: Q.
        second: C, ``(n, n)``.
        rank: r.
        norm: ``"activations"`` for C itself, ``"diagonal"`` for its diagonal, ``"plain"`` for the identity.
    """
    e = weight - quantized
    weighted = e @ second if norm == "activations" else e * (second.diagonal() if norm == "diagonal" else 1.0)
    u = _directions(e, weighted, min(rank, *e.shape))
    a = u.T @ e
    # tr(K C E^T), which is tr(K C K^T) where U are eigenvectors: what a direction takes off the error. In other norms
    # |(E - K) x|^2 = tr(E C E^T) - sum_j u_j^T E C E^T u_j, too, since K is a projection of E from the left.
    removed = np.einsum("ij,ij->i", a @ second, a)
    of_e = weighted if norm == "activations" else e @ second
    size, error = (float(np.einsum("ij,ij->", a, b)) for a, b in ((weight @ second, weight), (of_e, e)))
    return Correction(u, a, size, error, removed)


def _directions(e: np.ndarray, weighted: np.ndarray, rank: int) -> np.ndarray:
    """U ``(o, rank)`` from E and E C."""
    basis = None
    if e.shape[0] > e.shape[1]:  # U lies in the range of E, whose dimension is n at most
        basis, e = np.linalg.qr(e)
        weighted = basis.T @ weighted
    gram = weighted @ e.T
    values, z = np.linalg.eigh((gram + gram.T) / 2)
    values, z = values[::-1], z[:, ::-1]
    kept = min(rank, int(np.sum(values > len(values) * dtypes.eps(mx.float64) * max(values[0], 0.0))))
    if kept < rank:
        rest = z[:, kept:]
        u, _, _ = np.linalg.svd(rest.T @ e, full_matrices=False)
        z = np.hstack([z[:, :kept], rest @ u])
    z = z[:, :rank]
    return z if basis is None else basis @ z
