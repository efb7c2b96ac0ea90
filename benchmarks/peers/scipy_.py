from functools import partial
from typing import Any

import numpy as np
import scipy
import scipy.linalg

from .base import RTOL, ForwardPeer, hand_written_ridge


class Peer(ForwardPeer):
    def versions(self):
        return f"scipy {scipy.__version__}"

    def pinv(self, case, data):
        return scipy.linalg.pinv(data.a, rtol=RTOL[case.dtype], check_finite=False)

    def lstsq(self, case, data):
        found: Any = scipy.linalg.lstsq(data.a, data.b, RTOL[case.dtype], lapack_driver="gelsy", check_finite=False)
        return found[0]

    def ridge(self, case, data):
        eye = np.eye(min(case.m, case.n), dtype=case.dtype)
        solve = partial(scipy.linalg.solve, assume_a="pos", check_finite=False)
        return hand_written_ridge(solve, data.a, data.a.mT, data.b, data.l2, eye)
