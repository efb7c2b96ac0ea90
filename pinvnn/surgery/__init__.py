"""Surgery on language models of mlx-lm by least squares: repair quantized ones, take out layers, erase a concept.

Needs ``pinvnn[heads]``.
"""

from ._adapter import Adapter as Adapter
from ._cli import add_commands as add_commands
from ._collect import ActivationStatistics as ActivationStatistics
from ._collect import collect as collect
from ._compensate import compensate as compensate
from ._erase import erase as erase
from ._eraser import Eraser as Eraser
from ._eraser import EraserConfig as EraserConfig
from ._perplexity import perplexity as perplexity
from ._replace import Shortened as Shortened
from ._replace import replace_layers as replace_layers
