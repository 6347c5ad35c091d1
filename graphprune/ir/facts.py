"""What passes tell each other: frozen dataclasses, learned by one pass and read by the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from ..axes.dim import Dim
from ..axes.index import Index, Indices
from .graph import Branch

if TYPE_CHECKING:
    import networkx as nx

Role = Literal["writer", "reader", "carrier"]


@dataclass(frozen=True)
class Member:
    """One parameter axis of a group. Its positions may be a product or sum that the group is part of.

    writer: makes the channels (a conv's output channels). reader: contracts over them (the next
    conv's input channels). carrier: goes along (BatchNorm, bias, depthwise, PReLU). ``across``: it is zeroed in the
    masked model although it reads nothing, since an RMS norm takes a mean over what it writes.
    """

    parameter: str
    axis: int
    role: Role
    dim: Dim  # the whole axis
    across: bool = False

    @property
    def zeroed(self) -> bool:
        """Whether it is zero in the masked model where a channel goes."""
        return self.across or self.role == "reader"

    def __str__(self) -> str:
        return f"{self.parameter}[{self.axis}]"


@dataclass(frozen=True)
class Group:
    """A leaf dim with every parameter axis that contains it: what lives or dies together.

    With ``branches`` it is a gate: a dim of size one, kept or not, that these branches of the network pass.
    Its members are what is zero in the masked model when it goes: the last that each branch is multiplied by.
    ``chosen``: so many of its channels an op chooses, and no fewer may be left. ``multiple``: what an op that reads
    them takes a multiple of, unless they are whole.
    """

    name: str
    dim: Dim
    size: int
    members: tuple[Member, ...]
    branches: tuple[Branch, ...] = ()
    chosen: int = 1
    multiple: int = 1

    @property
    def least(self) -> int:
        """How many must stay."""
        return 0 if self.branches else self.chosen


@dataclass(frozen=True)
class Frozen:
    """A dim that parameters have and that may not be pruned."""

    name: str
    size: int | str
    reason: str


@dataclass(frozen=True)
class Groups:
    """What can be pruned, what cannot and why, and the dependency graph.

    ``graph`` has a node per parameter axis (``kind="axis"``) and per dim (``kind="dim"``, with
    ``size`` and ``frozen``); an edge says that the axis contains the dim, with the ``role`` of the
    axis and the ``ops`` that couple them. A group is a dim and its neighbours; the connected
    components are the segments that share axes. ``made``: the pass that finds them again, as a recipe has it.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    graph: nx.Graph
    made: str = ""

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def channels(self) -> Groups:
        """The groups of channels alone."""
        return replace(self, groups=tuple(group for group in self.groups if not group.branches))

    @property
    def gates(self) -> Groups:
        """The groups of branches alone."""
        return replace(self, groups=tuple(group for group in self.groups if group.branches))


@dataclass(frozen=True)
class Scores:
    """Per group, one number a channel: higher is more worth keeping.

    ``made``: the pass that makes them again for other groups, as a recipe has it; of scores without it
    (a user's own, those of training) nothing can be made but themselves. ``dataclasses.replace`` leaves it
    out: other numbers are the user's own.
    """

    by: str
    scores: Mapping[str, NDArray[Any]]
    made: str = field(default="", init=False)

    def signed(self, step: str) -> Scores:
        """The same scores, which ``step`` makes again."""
        scores = replace(self)
        object.__setattr__(scores, "made", step)
        return scores

    def __getitem__(self, group: Group) -> NDArray[Any]:
        return self.scores[group.name]


@dataclass(frozen=True)
class Losses:
    """Per group and count, what the network loses when the group keeps so many of its best channels."""

    losses: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Keep:
    """Per group, the ordered indices that survive. A group that is not listed keeps all; of branches none may.

    ``blank``: survivors that count for nothing all the same, per group; what reads them is zero. They fill
    the gaps between the channels that a reader takes, so that it takes a run. A channel that is listed
    twice is made twice. ``exact``: what goes counts for nothing, so that the cut network computes what the
    original does; with ``constant`` once `compensate{by=mean}` has added the part of what never changes to biases.
    ``whole``: of the layers that became two, by the name of their first op, those that are one again, whatever is kept
    of their ranks; None: those that are no smaller as two.
    """

    keep: Mapping[str, Indices]
    blank: Mapping[str, Indices] = field(default_factory=dict)
    exact: bool = False
    constant: bool = False
    whole: frozenset[str] | None = None

    def index(self, groups: Groups) -> Index:
        """The same, as a function from any axis to its surviving positions."""
        return Index({group.dim: self.keep[group.name] for group in groups if group.name in self.keep})


@dataclass(frozen=True)
class Budget:
    """What may remain: at most ``limit`` of ``unit``, see cost.units, of which there was ``whole``."""

    unit: str
    limit: float
    whole: float

    def exceeded(self, left: float) -> bool:
        """Whether more than that is ``left``."""
        return left > self.limit * (1 + 1e-9)

    def told(self, left: float) -> str:
        """What was asked for and what is left, for notes."""
        return f"{left / self.whole:.3g}x of {self.unit} are left where {self.limit / self.whole:.3g}x was asked for"


@dataclass(frozen=True)
class Order:
    """How readers with a choice of their own get their channels.

    ``sinks``: the ``reindex`` ops whose selection goes into the concatenation that they read. What is taken
    of one part of it in up to so many runs is put together of slices, else it is gathered.
    ``segments``: what the report says of each set of layers that share channels.
    """

    sinks: Mapping[str, int] = field(default_factory=dict)
    segments: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Latency:
    """A measurement on a target. Units: milliseconds; spread is the interquartile range."""

    median_ms: float
    spread_ms: float
    repeats: int
    threads: int
    target: str
