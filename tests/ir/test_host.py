"""What both hosts answer for themselves."""

from __future__ import annotations

import pytest

from graphprune.backends.target import target
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.host import SUFFIXES


@pytest.mark.parametrize("host", [TorchHost, OnnxHost])
def test_a_host_says_what_differs_from_the_others(host: type[TorchHost] | type[OnnxHost]) -> None:
    assert host.suffix in SUFFIXES
    assert target(host.native_target).name == host.native_target
    assert (host.proof_dtype, host.tolerance) == {"torch": ("float64", 1e-12), "onnx": ("float32", 1e-5)}[host.kind]
    assert host.trainable == (host is TorchHost)
