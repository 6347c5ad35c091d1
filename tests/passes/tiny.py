"""Three networks small enough to read, on both hosts, with the same weights under the same names."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from nets import randomise
from torch import nn

import graphprune as gp
from graphprune.ir.program import Program

HOSTS = ("torch", "onnx")


class Chain(nn.Module):
    """One layer of each kind that a cut meets: a writer, what goes along, what does not care, a reader."""

    ONNX = """
        conv2d = Conv <kernel_shape = [3, 3]> (x, "conv.weight")
        batch_norm = BatchNormalization (conv2d, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        relu = Relu (batch_norm)
        conv2d_1 = Conv (relu, "head.weight", "head.bias")
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.bn(self.conv(x))))
        return out


class Fork(nn.Module):
    """Two readers of the same channels, which may want different ones."""

    ONNX = """
        conv2d = Conv (x, "stem.weight", "stem.bias")
        relu = Relu (conv2d)
        conv2d_1 = Conv (relu, "left.weight", "left.bias")
        conv2d_2 = Conv (relu, "right.weight", "right.bias")
        add = Add (conv2d_1, conv2d_2)
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        both: torch.Tensor = self.left(x) + self.right(x)
        return both


class Skip(nn.Module):
    """A residual branch."""

    ONNX = """
        conv2d = Conv (x, "stem.weight", "stem.bias")
        conv2d_1 = Conv (conv2d, "inner.weight", "inner.bias")
        relu = Relu (conv2d_1)
        conv2d_2 = Conv (relu, "outer.weight", "outer.bias")
        add = Add (conv2d, conv2d_2)
        conv2d_3 = Conv (add, "head.weight", "head.bias")
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.inner, self.outer = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        out: torch.Tensor = self.head(x + self.outer(torch.relu(self.inner(x))))
        return out


NETS = {net.__name__.lower(): net for net in (Chain, Fork, Skip)}


@cache
def module(net: str) -> nn.Module:
    return randomise(NETS[net]().double().eval())


@cache
def program(net: str, host: str) -> Program:
    """The network on a host, without facts. Programs do not change."""
    made = module(net)
    if host == "torch":
        return gp.load(made, torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    weights = {k: v.numpy().astype(np.float32) for k, v in made.state_dict().items() if v.is_floating_point()}
    text = NETS[net].ONNX
    last = text.strip().rpartition("\n")[2].split()[0]
    for name in weights:  # the syntax has no dots
        text = text.replace(f'"{name}"', name.replace(".", "__"))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 13]> net (float[N,3,5,5] x) => (float[] {last}) {{ {text} }}'
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for node in model.graph.node:
        node.name = node.output[0]
        node.input[:] = [name.replace("__", ".") for name in node.input]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return gp.load(model)


def without(program: Program, parameter: str, axis: int, channel: int = 1) -> Program:
    """The same program, as it was given, with zeros in one channel of one axis of a weight."""
    host = program.host.copy()
    host.zero(parameter, axis, np.array([channel]))
    return Program(host=host, source=host)
