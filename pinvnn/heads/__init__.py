"""Closed-form heads on language models of mlx-lm: fit, predict, an atlas of every layer. Needs ``pinvnn[heads]``."""

from .._lm import LanguageModel as LanguageModel
from .._lm import hidden_states as hidden_states
from .._lm import load_model as load_model
from .._lm import pool as pool
from ._atlas import atlas as atlas
from ._atlas import fit_head as fit_head
from ._cli import add_commands as add_commands
from ._features import extract as extract
from ._head import Head as Head
from ._head import HeadConfig as HeadConfig
from ._options import L2_GRID as L2_GRID
from ._report import plot as plot
from ._report import report as report
from ._report import save as save
from ._result import Atlas as Atlas
