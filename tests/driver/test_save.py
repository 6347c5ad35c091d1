"""A model saved to a file: whole, over what is there by force only, the weights beside it too."""

from __future__ import annotations

import resource
from contextlib import contextmanager

import nets
import numpy as np
import onnx
import pytest
from onnx import helper as oh
from onnx import numpy_helper

import graphprune as gp
from graphprune.driver.rebuilding import write_widths
from graphprune.driver.save import save
from graphprune.errors import OutputError


@pytest.fixture
def beside(tmp_path):
    """A small model whose weights are in a file of their own, cut once, with its plan."""
    rng = np.random.default_rng(0)
    weights = [("a", (6, 64)), ("b", (64, 4))]
    graph = oh.make_graph(
        [oh.make_node("MatMul", ["x", "a"], ["h"]), oh.make_node("MatMul", ["h", "b"], ["y"])],
        "net",
        [oh.make_tensor_value_info("x", 1, (2, 6))],
        [oh.make_tensor_value_info("y", 1, (2, 4))],
        [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in weights],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.onnx.data")
    return gp.run("group,score,mask{channels=0.5x},propagate", gp.load(tmp_path / "net.onnx"))


@contextmanager
def no_file_above(size):
    """As on a full disk: writes beyond ``size`` bytes fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def outputs(path):
    program = gp.load(path)
    return program.host.run([np.ones((2, 6), np.float32)])[0]


def test_a_model_with_weights_beside_it_replaces_itself(beside, tmp_path):
    want, out = beside.host.run([np.ones((2, 6), np.float32)])[0], tmp_path / "net.onnx"
    with pytest.raises(OutputError, match="exists"):
        save(beside, out)
    for _ in range(3):  # from name to name of the file beside it, and none is left over
        save(beside, out, force=True)
        np.testing.assert_allclose(outputs(out), want, rtol=1e-6)
        assert len(list(tmp_path.iterdir())) == 2
    assert outputs(out).shape == want.shape


def test_a_file_that_happens_to_be_beside_it_stays(beside, tmp_path):
    (tmp_path / "b.onnx.data").write_text("mine")
    save(beside, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx.data").read_text() == "mine" and (tmp_path / "b.onnx.1.data").is_file()
    outputs(tmp_path / "b.onnx")


def test_links_stay_links(beside, tmp_path):
    program = nets.program("MLP")
    save(program, tmp_path / "real.pt2")
    (tmp_path / "link.pt2").symlink_to("real.pt2")
    before = (tmp_path / "real.pt2").read_bytes()
    save(gp.run("group,score,mask{channels=0.5x},propagate", program), tmp_path / "link.pt2", force=True)
    assert (tmp_path / "link.pt2").is_symlink() and (tmp_path / "real.pt2").read_bytes() != before
    (tmp_path / "link.onnx").symlink_to("net.onnx")
    with pytest.raises(OutputError, match="is a link, and its weights go into a file beside it"):
        save(beside, tmp_path / "link.onnx", force=True)


@pytest.mark.parametrize("host", ["torch", "onnx"])
def test_a_file_that_appears_is_not_replaced(beside, tmp_path, host):
    out = tmp_path / f"new.{'pt2' if host == 'torch' else 'onnx'}"
    out.write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        (nets.program("MLP") if host == "torch" else beside).host.save(out, replace=False)
    assert out.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "net.onnx.data", out.name}


@pytest.mark.parametrize("size", [0, 100, 2000, 10000], ids=str)
@pytest.mark.parametrize("net", ["MLP", "onnx"])
def test_where_nothing_more_can_be_written_nothing_is_left(net, size, beside, tmp_path):
    """Also where torch's writer tries again as it is taken down, which would end the process; and of no temporary
    path is spoken."""
    program = beside if net == "onnx" else gp.load(nets.module(net), nets.ZOO[net].inputs())
    there = sorted(tmp_path.iterdir())
    with no_file_above(size), pytest.raises(OutputError, match="cannot be written") as refused:
        gp.compile(program, channels=0.9, measure=False, verify=False, out=tmp_path / "out")
    assert str(tmp_path / "out") in refused.value.message
    assert ".graphprune" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == there


def test_weights_for_the_users_class_that_cannot_be_written_are_an_error(tmp_path):
    program = gp.load(nets.module("MLP"), nets.ZOO["MLP"].inputs())
    with no_file_above(2000), pytest.raises(OSError, match="too large"):
        write_widths(tmp_path, program)
