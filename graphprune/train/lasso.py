"""Group lasso over coupled channels (Wen et al., Structured Sparsity Learning, 2016; Yuan and Lin, 2006)."""

from __future__ import annotations

from torch import Tensor

from .penalty import Penalty


class GroupLasso(Penalty):
    """sum_i sqrt(n_i) ||g_i||, n_i the size of channel i's slices. The score is the norm.

    As in the papers, over the slices that are coupled together [derived: there, of one layer]. The shrinkage is the
    same for all, so the small ones go: magnitude decides, unlike in Catalyst.
    """

    BESIDE = 0.25

    def value(self) -> Tensor:
        return (self.channels.numel().sqrt() * self.channels.norms()).sum()
