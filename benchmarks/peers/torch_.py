import torch  # pyright: ignore[reportMissingImports]

from .base import RTOL, Unsupported, hand_written_ridge
from .base import Peer as Base


class Peer(Base):
    """PyTorch, eager, with autograd; on the CPU or on the default GPU."""

    uses_numpy = False

    def __init__(self, name="", device="cpu"):
        super().__init__(name, device)
        self.target = torch.device("cpu" if device == "cpu" else "cuda" if torch.cuda.is_available() else "mps")

    def versions(self):
        gpu = f" on {torch.cuda.get_device_name()}" if self.target.type == "cuda" else ""
        return f"torch {torch.__version__}{gpu}"

    def blas(self):
        return ["Intel MKL, linked in"] if torch.backends.mkl.is_available() else []

    def load(self, path):
        array = torch.from_numpy(super().load(path))
        if self.target.type == "mps" and array.dtype == torch.float64:
            raise Unsupported("no float64 on this GPU")
        return array.to(self.target)

    def prepare(self, case, mode, data):
        function = getattr(self, case.op)(case)

        def forward(data):
            with torch.no_grad():
                return (function(data),)

        def backward(data):
            wanted = {"pinv": ["a"], "readout": ["w", "c"]}.get(case.op, ["a", "b"])
            wanted = [getattr(data, name).requires_grad_() for name in wanted]
            value = function(data)
            return value.detach(), *torch.autograd.grad(value, wanted, getattr(data, "bar", None))

        return forward if mode == "forward" else backward

    def finish(self, outputs):
        if self.target.type == "cuda":
            torch.cuda.synchronize()
        elif self.target.type == "mps":
            torch.mps.synchronize()

    def numpy(self, array):
        return array.detach().cpu().numpy()

    def pinv(self, case):
        return lambda data: torch.linalg.pinv(data.a, rtol=RTOL[case.dtype])

    def lstsq(self, case):
        rcond = RTOL[case.dtype] if self.target.type == "cpu" else None  # the GPU driver (gels) takes none
        return lambda data: torch.linalg.lstsq(data.a, data.b, rcond=rcond).solution

    def ridge(self, case):
        eye = self._eye(min(case.m, case.n), case)
        return lambda data: hand_written_ridge(torch.linalg.solve, data.a, data.a.mT, data.b, data.l2, eye)

    def readout(self, case):
        eye = self._eye(case.n, case)

        def loss(data):
            h = torch.tanh(data.x @ data.w + data.c)
            h, y = h - h.mean(0), data.y - data.y.mean(0)
            weight = torch.linalg.solve(h.T @ h + data.l2 * eye, h.T @ y)
            return (((y - h @ weight) ** 2).sum() + data.l2 * (weight**2).sum()) / y.numel()

        return loss

    def _eye(self, n, case):
        return torch.eye(n, dtype=getattr(torch, case.dtype), device=self.target)
