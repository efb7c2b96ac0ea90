"""Variable projection: separable nonlinear least squares, y = Phi(alpha) c with c solved for exactly inside."""

from ._math import cos as cos
from ._math import exp as exp
from ._math import sin as sin
from ._network import SeparableGaussNewton as SeparableGaussNewton
from ._network import SeparableStep as SeparableStep
from ._result import Prediction as Prediction
from ._result import StandardErrors as StandardErrors
from ._result import VarProResult as VarProResult
from ._varpro import VarProStep as VarProStep
from ._varpro import varpro as varpro
