"""Training towards pruning, in the user's own loop on the user's own module: see ``method``."""

from __future__ import annotations

from .acip import ACIP
from .adasap import AdaSAP
from .bip import BiP
from .catalyst import Catalyst
from .choice import diep
from .consensus import Consensus
from .distil import InnerDistillation, answers
from .dress import DReSS
from .gated import Gated
from .greg2 import GReg2
from .growing import GrowingRegularization
from .lapp import LAPP
from .lasso import GroupLasso
from .masked import Masked
from .movement import Movement
from .onthefly import OnTheFly
from .penalty import Penalty
from .polarized import Polarization
from .ranked import Ranked
from .recover import Recover
from .robust import HSICBottleneck
from .rollback import roll_back
from .schedule import cubic, linear, one_shot
from .slimming import Slimming
from .smallsteps import small_steps
from .smcp import SMCP
from .stochastic import StochasticMasks
from .transport import Transport
from .trp import TRP
from .var import VAR

__all__ = [
    "ACIP",
    "LAPP",
    "SMCP",
    "TRP",
    "VAR",
    "AdaSAP",
    "BiP",
    "Catalyst",
    "Consensus",
    "DReSS",
    "GReg2",
    "Gated",
    "GroupLasso",
    "GrowingRegularization",
    "HSICBottleneck",
    "InnerDistillation",
    "Masked",
    "Movement",
    "OnTheFly",
    "Penalty",
    "Polarization",
    "Ranked",
    "Recover",
    "Slimming",
    "StochasticMasks",
    "Transport",
    "answers",
    "cubic",
    "diep",
    "linear",
    "one_shot",
    "roll_back",
    "small_steps",
]
