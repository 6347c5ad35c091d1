"""Networks of the ops that people write beside layers: positions by number or mask, weights of a sample's own,
Fourier transforms, sizes that depend on data. Entered into ``nets.ZOO``: the law and the oracle run on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nets import INPUT, OUTPUT, image, net, vectors
from torch import nn


class Around(nn.Module):
    """A linear layer before and one behind what ``inside`` does to (samples, 5 tokens, 6 channels)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 3)

    def inside(self, h, x):
        raise NotImplementedError

    def forward(self, x):
        return self.leave(self.inside(torch.tanh(self.enter(x)), x))


def around(**more):
    return net(vectors(2, 5, 4), {"enter": 6}, {"enter.weight[1]": INPUT, "leave": OUTPUT}, **more)


@around()
class Scattered(Around):
    """Written and added to tokens by number."""

    def inside(self, h, x):
        ids = torch.tensor([0, 2, 1, 2, 0])
        wide = ids[None, :, None].expand_as(h)
        few = torch.zeros(h.shape[0], 3, 6, dtype=h.dtype)
        few = few.scatter_add(1, wide, h) + few.scatter_reduce(1, wide, h, "amax")
        few = few.index_add(1, ids, h) + few.scatter(1, wide, h).scatter(1, wide[:, :1], 0.5)
        few.index_add_(1, torch.tensor([1]), h[:, :1])
        h = h.index_copy(1, torch.tensor([4, 1, 0]), few).index_fill(1, torch.tensor([2]), 0.25)
        return h + h.index_reduce(1, ids, h, "mean")


@around()
class Assigned(Around):
    """Slices with a step, numbers, masks and a diagonal that are assigned to, all of tokens."""

    def inside(self, h, x):
        h, ids, mask = h.clone(), torch.tensor([0, 3]), x[:, :, 0] > 0
        h[:, ::2] = h[:, 1:4] * 2
        h[:, ids] = h[:, ids + 1].cos()
        h[mask] = h[mask] * 3
        h[x[..., 1] > 1] = 0.5
        h[:, 0] = h[:, -1]
        h = h + h[:, torch.tensor([[0, 1, 1, 2, 4], [1, 3, 0, 0, 2]])].mean(1)
        first = h.movedim(1, 0)
        h = first.index_put((torch.tensor([0, 0, 3]),), first[:3].sin(), accumulate=True).movedim(0, 1)
        h = h.slice_scatter(h[:, :2].exp(), 1, 3, 5).select_scatter(h[:, 2].cos(), 1, 0)
        weights = torch.softmax(x @ x.mT, -1)
        return weights.diagonal_scatter(weights.diagonal(0, 1, 2) * 0, 0, 1, 2) @ h


@net(vectors(2, 5, 4), {"enter": 6}, {"leave": OUTPUT})
class Masked(Around):
    """Tokens where something holds: as many as the data says."""

    def inside(self, h, x):
        mask = x[..., :1] > 0
        h = h.masked_scatter(mask.expand_as(h), h.flip(1) * 2).masked_scatter(mask, h.cos())
        h = h * (1 + torch.masked_select(x, x > 0).mean())
        flat = h.flatten(0, 1)
        chosen = flat[x.flatten(0, 1)[:, 0] > 0]
        where = torch.argwhere(mask[..., 0].flatten())[:, 0]
        _, inverse = torch.unique((x[..., 1] > 0).long(), return_inverse=True)
        h = h * (inverse[..., None] + 1)
        return h + torch.zeros_like(flat).index_add(0, where, chosen).unflatten(0, (-1, 5))


@net(
    vectors(7, 4),
    {"enter": 6, "gate": 3, "experts.0": 5, "experts.1": 5, "experts.2": 5},
    {"leave": OUTPUT},
    router={"gate": "gate.weight"},
)
class Experts(nn.Module):
    """A mixture of experts: the two that a gate chooses for a token."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.leave = nn.Linear(4, 6), nn.Linear(6, 3, bias=False), nn.Linear(6, 3)
        self.experts, self.back = (
            nn.ModuleList(nn.Linear(a, b, bias=False) for _ in range(3)) for a, b in ((6, 5), (5, 6))
        )

    def forward(self, x):
        x = torch.tanh(self.enter(x))
        share, chosen = self.gate(x).topk(2, -1)
        out = torch.zeros_like(x)
        for k, (expert, back) in enumerate(zip(self.experts, self.back, strict=True)):
            token, place = torch.where(chosen == k)
            out.index_add_(0, token, back(F.relu(expert(x[token]))) * share[token, place, None].sigmoid())
        return self.leave(out)


@net(
    image(),
    {"style": 6, "again": 5, "turned": 4},
    {"style.weight[1]": INPUT, "kernel": "conv2d_1 (conv_per_sample) tells its positions apart", "last": OUTPUT},
)
class PerSample(nn.Module):
    """StyleGAN: every sample has weights of its own, so that the batch is folded into the groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(4, 3, 1)
        self.style, self.again = nn.Linear(3, 6), nn.Linear(3, 5)
        self.kernel, self.turned = nn.Parameter(torch.ones(5, 6, 3, 3)), nn.Parameter(torch.ones(4, 5, 3, 3))

    def forward(self, x):
        style, again = self.style(x.mean((2, 3))), self.again(x.mean((2, 3)))
        x = torch.tanh(self.stem(x))
        b, c, h, w = x.shape
        kernel = (self.kernel * style[:, None, :, None, None]).view(-1, c, 3, 3)
        x = F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b).view(b, -1, h, w)
        kernel = (self.turned * again[:, None, :, None, None]).transpose(1, 2).flatten(0, 1)
        x = F.conv_transpose2d(torch.tanh(x).reshape(1, -1, h, w), kernel, stride=2, groups=b)
        return self.last(torch.tanh(x.reshape(b, -1, *x.shape[2:])))


@net(
    image(),
    {"stem": 5, "low": 4},
    {"stem.weight[1]": INPUT, "low[3]": "fft_rfft2 (along) tells its positions apart", "last": OUTPUT},
)
class Fourier(nn.Module):
    """A Fourier neural operator: complex weights for low frequencies, and a convolution beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.beside, self.last = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)
        self.low = nn.Parameter(torch.randn(5, 4, 3, 3, dtype=torch.complex128))

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        seen = torch.fft.fftshift(torch.fft.ifftshift(torch.fft.rfft2(x), dim=2), dim=2)
        made = torch.zeros(x.shape[0], 4, 8, 5, dtype=torch.complex128)
        made[:, :, :3, :3] = torch.einsum("nixy,ioxy->noxy", seen[:, :, :3, :3], self.low)
        return self.last(F.gelu(torch.fft.irfft2(made, s=(8, 8)) + self.beside(x)))


@net(vectors(2, 5, 4), {"enter": 6}, {"enter.weight[1].1": INPUT, "leave": OUTPUT})
class FourierTokens(Around):
    """A convolution with all tokens by Fourier transforms; magnitudes and angles."""

    def inside(self, h, x):
        spectrum = torch.fft.rfft(h, n=10, dim=1) * torch.fft.rfft(x[:, :, :1], n=10, dim=1)
        h = torch.fft.irfft(spectrum, n=10, dim=1)[:, :5]
        whole = torch.fft.fftn(h[:, None], dim=(1, 2))[:, 0]
        turned = torch.polar(whole.abs() + 1, whole.angle()).conj()
        return torch.fft.ifft(torch.complex(turned.real, turned.imag * 2), dim=1).real + h


@net(
    vectors(2, 5, 4),
    {"q.0": 3, "k.1": 2, "v.1": 4},
    {"q.weight[1]": INPUT, "q.2": "view_as_complex (as_complex) tells its positions apart", "out": OUTPUT},
)
class ComplexRotary(nn.Module):
    """Llama's rotary embedding: pairs of a head's entries as complex numbers, turned."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 3)
        angles = torch.outer(torch.arange(9.0, dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def turned(self, x):
        pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns[: x.shape[1], None]).flatten(3).type_as(x)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (3, -1)) for layer in (self.q, self.k, self.v))
        parts = [part.transpose(1, 2) for part in (self.turned(q), self.turned(k), v)]
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


@net(
    vectors(2, 4),
    {"a": 6, "b": 5, "both": 7},
    {"a.weight[1]": INPUT, "last": OUTPUT},
)
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both, self.last = (
            nn.Linear(4, 6),
            nn.Linear(4, 5),
            nn.Bilinear(6, 5, 7),
            nn.Linear(7, 3),
        )

    def forward(self, x):
        return self.last(torch.tanh(self.both(torch.tanh(self.a(x)), torch.tanh(self.b(x)))))


@net(
    vectors(2, 5, 4),
    {"enter.0": 3, "enter.1": 2},
    {"leave.weight[1].1": "repeat_interleave_2 (interleave) tells its positions apart", "leave": OUTPUT},
)
class Repeated(nn.Module):
    """A cache that begins empty, tiles, and entries several times in a row, the size written down."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, x):
        h = torch.cat([torch.tensor([]), torch.tanh(self.enter(x))], -2)
        h = torch.cat([h.new_empty(h.shape[0], 0, 6), torch.zeros(h.shape[0], 0, 6), h], 1)
        h = h * torch.linspace(1, 2, 5, dtype=h.dtype)[:, None].tile(1, 1) + h.tile(2, 1, 1)[: h.shape[0]]
        h = h.repeat_interleave(torch.tensor([1, 2, 0, 1, 1]), dim=1, output_size=5)
        h = h.repeat_interleave(torch.tensor([1, 2, 0, 2, 1]), dim=1)[:, :5]
        h = h.unflatten(-1, (3, 2)).repeat_interleave(2, dim=-2, output_size=6)
        return self.leave(h.flatten(2))


@around()
class Checked(Around):
    """Numbers out of tensors: a check, a factor, a length."""

    def inside(self, h, x):
        torch._check((x > 3).sum().item() < 100)
        length = (x[0, :, 0] > -9).sum().item()
        torch._check(length >= 2)
        torch._check(length <= 5)
        return h[:, :length] * x.amax().item()


@around()
class Ordered(Around):
    """Along tokens: the largest, sorted, differences, statistics; axes moved."""

    def inside(self, h, x):
        most, _ = h.topk(3, 1)
        h = torch.cat([most, h.sort(dim=1, stable=True).values[:, :1], h.diff(dim=1)[:, :1]], 1)
        h = h.cummax(1).values + h.logcumsumexp(1) + h.rot90(2, (0, 1))
        var, mean = torch.var_mean(h, 1, keepdim=True)
        low, high = torch.aminmax(h, dim=1, keepdim=True)
        h = (h - mean) / (var + 1) + low * high + h.kthvalue(2, 1, keepdim=True).values
        return h.movedim(1, 0).movedim((0, 1), (1, 0)) + h.nansum(1, keepdim=True) + h.median(1, True).values


@net(
    vectors(2, 5, 4),
    {},
    {
        "enter": "cdist (distance) tells its positions apart",
        "other": "cosine_similarity (similarity) tells its positions apart",
        "leave": OUTPUT,
    },
)
class Distances(Around):
    """Distances and angles: a channel that only one side has not is no channel that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.leave = nn.Linear(4, 6), nn.Linear(5, 3)

    def inside(self, h, x):
        other = torch.tanh(self.other(x))
        return torch.cdist(h, h) * F.cosine_similarity(other, x.mean(-1, keepdim=True) + other, dim=-1)[..., None]


@net(
    vectors(2, 5, 4),
    {"up": 7},
    {"enter.weight[1]": INPUT, "leave": OUTPUT},
    mixed={"enter": 6},
)
class WrittenNorms(Around):
    """RMSNorm, LayerNorm in two forms, L2 and global response normalisation, in sums and square roots."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 6)
        self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))

    def inside(self, h, x):
        h = self.weight * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        centred = h - h.mean(-1, keepdim=True)
        h = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * self.weight + self.bias
        var, mean = torch.var_mean(h, -1, keepdim=True)
        h = (h + self.bias - mean) / (var + 1e-6).sqrt()
        h = h + self.down(torch.tanh(self.up(F.normalize(h, dim=-1))))
        response = torch.linalg.vector_norm(h, dim=1, keepdim=True)
        return h + h * (response / (response.mean(-1, keepdim=True) + 1e-6)) * self.weight
