"""Low-rank repair of a quantized model."""

from collections.abc import Callable

import mlx.nn as nn

from .._mlx import fail
from ._adapter import Adapter
from ._collect import ActivationStatistics
from ._layers import dense_weight, linear_layers, weight_shape
from ._low_rank import Correction, Norm, check_norm, correction


def compensate(
    quantized: nn.Module,
    model: nn.Module,
    stats: ActivationStatistics,
    rank: int = 32,
    *,
    norm: Norm = "activations",
    each: Callable[[str], None] | None = None,
) -> Adapter:
    r"""The low-rank corrections after which the layers of a quantized model do most nearly what the original ones do.

    For each quantized linear layer with weight Q in place of W, the correction :math:`BA` of the given rank with the
    smallest mean of :math:`|(W - Q - BA) x|^2` over the tokens x that ``stats`` has seen: a closed form in float64, in
    which no small eigenvalue is divided by. Embeddings and layers that are not quantized are left as they are.

    Args:
        quantized (nn.Module): The quantized model, as ``mlx_lm.load`` returns it.
        model (nn.Module): The original.
        stats (ActivationStatistics): Of the original, from :func:`collect`.
        rank (int): Rank of each correction. Default: ``32``.
        norm (str): ``"activations"`` is the above. To compare: ``"diagonal"`` knows of the activations the mean square
            of each feature alone, ``"plain"`` nothing (the truncated SVD of W - Q). Default: ``"activations"``.
        each (Callable): Called with the name of each layer before it is corrected, for a progress bar.

    Returns:
        Adapter: The corrections, which ``mlx_lm.load(..., adapter_path=)`` reads once it is saved.

    Raises:
        ValueError: A layer has no counterpart in ``model`` or no statistics, or ``rank`` or ``norm`` does not exist.

    References:
        S.-Y. Liu et al., EoRA: Fine-tuning-free compensation for compressed LLM with eigenspace low-rank approximation,
        2024, arXiv 2410.21271, section 3.
        C. Zhang et al., QERA: An analytical framework for quantization error reconstruction, ICLR 2025, arXiv
        2410.06040, Theorem 1 (``"activations"``), Theorem 2 (``"diagonal"``).
        C. Zhang et al., LQER: Low-rank quantization error reconstruction for LLMs, ICML 2024, arXiv 2402.02446.

    Examples:
        .. code-block:: python

            original, quantized = (mlx_lm.load(folder) for folder in ("MODEL", "MODEL-2bit"))
            stats = surgery.collect(original, "DATA")
            adapter = surgery.compensate(quantized[0], original[0], stats, rank=32)
            adapter.save("ADAPTER")
            model, tokenizer = mlx_lm.load("MODEL-2bit", adapter_path="ADAPTER")
    """
    check_norm("compensate", norm)
    check_rank(rank)
    packed = quantized_layers(quantized, model)
    skipped = tuple(name for name in packed if name in stats.skipped)
    found: dict[str, Correction] = {}
    for name, (layer, original) in packed.items():
        if name in skipped:
            continue
        if each is not None:
            each(name)
        weight, second = dense_weight(original), stats.second_moment(name)
        if len(second) != weight.shape[1]:
            rule, got = f"{name} must have inputs of size {weight.shape[1]} in the statistics", f"{len(second)}"
            fail("compensate", rule, got, "Collect them on the original.")
        found[name] = correction(weight, dense_weight(layer), second, rank, norm)
    return Adapter(found, rank, skipped)


def check_rank(rank: int) -> None:
    """Raise ValueError unless ``rank`` is a whole number, 1 or more."""
    if not isinstance(rank, int) or rank < 1:
        fail("compensate", "rank must be a whole number, 1 or more", rank, "Pass 32, say.")


def quantized_layers(quantized: nn.Module, model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The quantized linear layers by name, each with the one of the original that it stands for.

    Raises:
        ValueError: There are none, or the original has no layer of that name and shape.
    """
    originals = linear_layers(model)
    packed = {n: m for n, m in linear_layers(quantized).items() if isinstance(m, nn.QuantizedLinear)}
    if not packed:
        rule = "the quantized model must have quantized linear layers"
        fail("compensate", rule, "none", "Quantize it with mlx_lm.convert or nn.quantize.")
    for name, layer in packed.items():
        shape = weight_shape(layer)
        got = weight_shape(originals[name]) if name in originals else None
        if got != shape:
            rule = f"the original must have the linear layer {name} of shape {shape}"
            fail("compensate", rule, got, "Pass the model that was quantized.")
    return {name: (layer, originals[name]) for name, layer in packed.items()}
