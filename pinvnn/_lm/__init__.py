"""Language models of mlx-lm: loading, texts, hidden states, checkpoints; what heads and surgery share.

What the layers above (heads, surgery) may use of this room is imported here, and only here.
"""

from .accumulate import accumulate as accumulate
from .accumulate import reduced as reduced
from .command import run_command as run_command
from .data import Dataset as Dataset
from .data import Label as Label
from .data import Row as Row
from .data import Split as Split
from .data import Task as Task
from .data import check_length as check_length
from .data import check_task as check_task
from .data import fail_at as fail_at
from .data import read_dataset as read_dataset
from .data import read_rows as read_rows
from .data import read_texts as read_texts
from .extract import Pooling as Pooling
from .extract import check_layers as check_layers
from .extract import check_pooling as check_pooling
from .extract import first_array as first_array
from .extract import hidden_states as hidden_states
from .extract import pad as pad
from .extract import pool as pool
from .extract import read_features as read_features
from .extract import reporting as reporting
from .extract import tokens_needed as tokens_needed
from .files import CHECKPOINT as CHECKPOINT
from .files import Checkpoint as Checkpoint
from .files import check_folder as check_folder
from .files import write_whole as write_whole
from .model import OTHER_MODEL as OTHER_MODEL
from .model import PROBE as PROBE
from .model import SAME_MODEL as SAME_MODEL
from .model import LanguageModel as LanguageModel
from .model import ModelLike as ModelLike
from .model import load_model as load_model
from .model import similarity as similarity
from .model import versions as versions
from .stream import CHUNK as CHUNK
from .stream import Chunk as Chunk
from .stream import Clock as Clock
from .stream import Reader as Reader
from .stream import TextReader as TextReader
from .stream import Texts as Texts
from .stream import check_batch_size as check_batch_size
