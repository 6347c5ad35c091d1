"""Training towards pruning, in the user's own loop on the user's own module: see ``penalty``."""

from __future__ import annotations

from .bip import BiP
from .catalyst import Catalyst
from .lasso import GroupLasso
from .penalty import Penalty
from .var import VAR

__all__ = ["VAR", "BiP", "Catalyst", "GroupLasso", "Penalty"]
