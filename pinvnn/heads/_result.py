"""What a run finds: readouts of every layer and penalty, their scores, and the best head."""

from dataclasses import dataclass, field

import mlx.core as mx

from ..nn import LeastSquaresReadout
from ._data import Dataset
from ._extract import Pooling
from ._head import Head, HeadConfig
from ._model import LanguageModel
from ._stream import Clock


@dataclass
class Atlas:
    """What :func:`atlas` returns.

    Attributes:
        source: The model.
        dataset: What is known of the data.
        pooling: How a text becomes one vector.
        states: Number of the model's states.
        layers: The layers, by number: 0 is the embedding, ``states - 1`` the final norm.
        l2: The grid of penalties.
        weights: For each layer ``(len(l2), outputs, dims)``.
        biases: For each layer ``(len(l2), outputs)``.
        gcv: Generalized cross validation score on the training texts, ``[layer][l2]``; smaller is better.
        valid: Accuracy of a classification or R^2 of a regression on the validation texts, ``[layer][l2]``; None
            without ``valid.jsonl``.
        chosen: For each layer the index of its best penalty, by ``valid`` or, without it, by ``gcv``.
        test: For each layer the score of that penalty on the test texts; None without ``test.jsonl``.
        clock: Seconds and tokens of the parts of the run.
        resumed: Number of texts that a checkpoint held already.
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

    def layer_name(self, index: int) -> str:
        """Name of the layer at ``index`` in :attr:`layers`."""
        layer = self.layers[index]
        return {0: "embedding", self.states - 1: "norm"}.get(layer, str(layer))

    def score(self, index: int) -> float:
        """Score of the layer at ``index`` with its best penalty: what the best layer is chosen by; larger is better."""
        column = self.chosen[index]
        return -self.gcv[index][column] if self.valid is None else self.valid[index][column]

    @property
    def best(self) -> int:
        """Index of the best layer in :attr:`layers`; the lowest of equals."""
        return max(range(len(self.layers)), key=self.score)

    def head(self, index: int | None = None) -> Head:
        """The head of the layer at ``index`` in :attr:`layers` with its best penalty. Default: of the best layer."""
        index = self.best if index is None else index
        column = self.chosen[index]
        weight, bias = self.weights[index][column], self.biases[index][column]
        readout = LeastSquaresReadout(weight.shape[1], weight.shape[0], l2=self.l2[column])
        readout.load_weights([("weight", weight), ("bias", bias)])
        scores = {}
        if self.valid is not None:
            scores["valid"] = self.valid[index][column]
        if self.test is not None:
            scores["test"] = self.test[index]
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
        )
        return Head(config, self.source, readout)
