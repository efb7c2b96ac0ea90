"""The result of a run: readouts of every layer and penalty, their scores, and the best head."""

from dataclasses import dataclass, field

import mlx.core as mx

from .._lm import Clock, Dataset, LanguageModel, Pooling
from ._head import Head, HeadConfig, readout_of
from ._options import ReadoutKind


@dataclass
class Atlas:
    """What :func:`atlas` returns.

    Attributes:
        source: The model.
        dataset: The task, the classes and the files of the data.
        pooling: How a text becomes one vector.
        states: Number of the model's states.
        layers: The layers, by number: 0 is the embedding, ``states - 1`` the final norm.
        l2: The grid of penalties.
        weights: One array for each layer, ``(len(l2), outputs, dims)``.
        biases: One array for each layer, ``(len(l2), outputs)``.
        gcv: Generalized cross validation (GCV) score on the training texts, ``[layer][l2]``; smaller is better.
        valid: Accuracy of a classification or R^2 of a regression on the validation texts, ``[layer][l2]``; None
            without ``valid.jsonl``.
        chosen: For each layer the index in ``l2`` of its best penalty, by ``valid`` or, without it, by ``gcv``.
        test: For each layer the score of that penalty on the test texts; None without ``test.jsonl``.
        clock: Seconds that each part of the run took, and the number of tokens.
        resumed: Number of texts that a checkpoint held already.
        scale: Probabilities are ``softmax(scale * outputs)`` with the scale, ``[layer][l2]``, of the smallest log-loss
            on the validation texts; None for a regression and without ``valid.jsonl``, as all that follows.
        valid_log_loss: Mean cross-entropy on the validation texts, ``[layer][l2]``.
        valid_calibration_error: Expected calibration error on the validation texts, ``[layer][l2]``, in 15 bins.
        test_log_loss: Mean cross-entropy on the test texts of the best penalty of each layer.
        test_calibration_error: Expected calibration error on the test texts of the best penalty of each layer.
        readout: What was fitted, ``"ridge"`` or ``"logistic"``. A logistic readout has its own probabilities, of scale
            1, and no GCV score (NaN).
        ridge: Beside logistic readouts the ridge readouts of the same texts; otherwise None.
    """

    source: LanguageModel
    dataset: Dataset
    pooling: Pooling
    states: int
    layers: list[int]
    l2: list[float]
    weights: list[mx.array] = field(repr=False)
    biases: list[mx.array] = field(repr=False)
    gcv: list[list[float]]
    valid: list[list[float]] | None
    chosen: list[int]
    test: list[float] | None
    clock: Clock
    resumed: int = 0
    scale: list[list[float]] | None = None
    valid_log_loss: list[list[float]] | None = None
    valid_calibration_error: list[list[float]] | None = None
    test_log_loss: list[float] | None = None
    test_calibration_error: list[float] | None = None
    readout: ReadoutKind = "ridge"
    ridge: "Atlas | None" = field(default=None, repr=False)

    def layer_name(self, index: int) -> str:
        """The layer at ``index`` in :attr:`layers`: ``"embedding"``, ``"norm"``, or its number."""
        layer = self.layers[index]
        return {0: "embedding", self.states - 1: "norm"}.get(layer, str(layer))

    def score(self, index: int) -> float:
        """Score of the layer at ``index`` with its best penalty; the best layer is the one with the largest."""
        column = self.chosen[index]
        return -self.gcv[index][column] if self.valid is None else self.valid[index][column]

    @property
    def best(self) -> int:
        """Index of the best layer in :attr:`layers`; of equal ones the first."""
        return max(range(len(self.layers)), key=self.score)

    def head(self, index: int | None = None) -> Head:
        """A head of one layer, with the best penalty of that layer.

        Args:
            index (int): Place of the layer in :attr:`layers`. Default: the best layer.
        """
        index = self.best if index is None else index
        column = self.chosen[index]
        weight, bias = self.weights[index][column], self.biases[index][column]
        readout = readout_of(self.readout, weight, self.l2[column])
        readout.load_weights([("weight", weight), ("bias", bias)])
        kinds = ("", "_log_loss", "_calibration_error")
        names = [split + kind for split in ("valid", "test") for kind in kinds]
        found = {name: part[index] for name in names if (part := getattr(self, name)) is not None}
        scores = {name: row[column] if isinstance(row, list) else row for name, row in found.items()}
        config = HeadConfig(
            model=self.source.name,
            model_type=self.source.model_type,
            states=self.states,
            dims=weight.shape[1],
            layer=self.layers[index],
            pooling=self.pooling,
            max_length=self.source.max_length,
            task=self.dataset.task,
            labels=self.dataset.classes,
            l2=self.l2[column],
            scores=scores,
            scale=None if self.scale is None else self.scale[index][column],
            readout=self.readout,
        )
        return Head(config, self.source, readout)
