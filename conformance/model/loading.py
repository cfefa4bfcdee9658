"""How a check loads other checkpoints than the session's, and the logits that it then reads."""

from collections.abc import Callable
from pathlib import Path

from ..guard import GuardedModel

Load = Callable[[Path], GuardedModel]
