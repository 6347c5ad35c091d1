"""Recurrent layers beyond the law and the oracle, which run on those of nets.py and test_onnx_rules.py."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.cost import static as costs
from graphprune.cost.latency.workload import works
from graphprune.facts import Groups, Keep

LAYERS = {
    "LSTM": (nn.LSTM, 4, {}),
    "GRU": (nn.GRU, 3, {"bidirectional": True}),
    "RNN": (nn.RNN, 1, {"num_layers": 2, "batch_first": True}),
    "projected": (nn.LSTM, 4, {"proj_size": 3}),
}


class Net(nn.Module):
    """A recurrent layer and what reads it."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = layer
        self.head = nn.Linear((layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional), 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_macs_are_those_of_every_time_step(name):
    kind, gates, options = LAYERS[name]
    net, (steps, batch, inputs, hidden) = Net(kind(6, 5, **options)), (7, 3, 6, 5)
    shape = (batch, steps, inputs) if options.get("batch_first") else (steps, batch, inputs)
    program = gp.load(net, torch.randn(shape))
    seen, ways = options.get("proj_size", hidden), 1 + options.get("bidirectional", False)
    each = [gates * hidden * ((ways * seen if layer else inputs) + seen) for layer in range(net.rnn.num_layers)]
    projected = hidden * seen if "proj_size" in options else 0
    want = steps * batch * (ways * (sum(each) + projected) + ways * seen * 2)
    cost = costs.macs(program.graph, program.host)
    assert cost() * costs.samples(program.graph, program.host) == want


def lstm(**attributes) -> onnx.ModelProto:
    """Two directions of 5 hidden, of 7 steps, 3 samples, 6 inputs."""
    rng = np.random.default_rng(0)
    weights = {"W": (2, 20, 6), "R": (2, 20, 5), "B": (2, 40), "v": (5, 3)}
    node = oh.make_node("LSTM", ["x", "W", "R", "B"], ["l"], hidden_size=5, direction="bidirectional", **attributes)
    graph = oh.make_graph(
        [node, oh.make_node("MatMul", ["l", "v"], ["y"])],
        "net",
        [oh.make_tensor_value_info("x", 1, [7, 3, 6])],
        [oh.make_tensor_value_info("y", 1, [7, 2, 3, 3])],
        [nh.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in weights.items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def test_macs_in_onnx_too_and_latency_is_keyed_by_the_products_of_a_step():
    program = gp.load(lstm())
    cost = costs.macs(program.graph, program.host)
    assert cost() == 7 * 3 * 2 * (20 * 6 + 20 * 5 + 5 * 3)
    first, second, _ = works(program.graph, program.host)
    assert first.family.sizes == (7 * 3 * 2,) and second.family.sizes == (3 * 2,)
    assert second.widths({}, program.host.sizes()) == (5, 20, 7)  # seven times one after the other


def test_the_hidden_size_is_written_into_the_node():
    program = gp.run("group,score{by=l1},mask{channels=0.6x},propagate", gp.load(lstm()))
    (node,) = [node for node in program.model.graph if node.op_type == "LSTM"]
    assert node.attributes["hidden_size"].value == 3
    assert {v.name: v.const_value.shape.numpy() for v in program.model.graph.initializers.values()} == {
        **{"W": (2, 12, 6), "R": (2, 12, 3), "B": (2, 24), "v": (3, 3)}
    }
    check, *_ = gp.verify(program)
    assert check.error <= 1e-5


def test_a_dynamically_quantised_lstm_is_read_and_says_why_it_stays():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> net (float[4,2,6] x) => (float[4,1,2,3] y) {'
        "l = com.microsoft.DynamicQuantizeLSTM<hidden_size=5>(x, W, R, B, , , , , s, z, s, z) y = MatMul(l, v) }"
    )
    arrays = {"W": np.ones((1, 6, 20), np.int8), "R": np.ones((1, 5, 20), np.int8), "B": np.ones((1, 40), np.float32)}
    arrays |= {"s": np.full(1, 0.1, np.float32), "z": np.zeros(1, np.int8), "v": np.ones((5, 3), np.float32)}
    model.graph.initializer.extend(nh.from_array(array, name) for name, array in arrays.items())
    program = gp.load(model)
    assert program.graph.parameters.keys() >= {"W", "R", "B", "v"}
    with pytest.raises(gp.GraphpruneError, match="quantises its state anew at every step"):
        gp.run("group", program)


def test_gates_write_and_the_recurrent_weight_reads():
    groups = gp.run("group", gp.load(Net(nn.LSTM(6, 5)), torch.randn(4, 2, 6))).fact(Groups)
    roles = {str(member): member.role for member in next(iter(groups)).members}
    assert roles["rnn.weight_hh_l0[0]"] == roles["rnn.weight_ih_l0[0]"] == roles["rnn.bias_hh_l0[0]"] == "writer"
    assert roles["rnn.weight_hh_l0[1]"] == roles["head.weight[1]"] == "reader"


def test_a_projection_never_gets_as_wide_as_what_it_projects():
    program = gp.run("group", gp.load(Net(nn.LSTM(6, 5, proj_size=3)), torch.randn(4, 2, 6)))
    whole = {group.name: np.arange(group.size) for group in program.fact(Groups)}
    (hidden,) = [name for name, kept in whole.items() if len(kept) == 5]
    done = gp.run("propagate", program.learn(Keep({**whole, hidden: np.arange(3)})))
    assert done.host.parameter("rnn.weight_hr_l0").shape == (3, 4)
    assert any("one hidden channel more" in note for note in done.notes)
    assert all(check.holds for check in gp.verify(done))


def test_a_channel_that_only_the_layer_itself_reads_is_not_dead():
    net = Net(nn.GRU(6, 5))
    with torch.no_grad():
        net.head.weight[:, 1:3] = 0  # of these two only the second is read, by the layer
        net.rnn.weight_hh_l0[:, 1] = 0
    program = gp.run("group,dead", gp.load(net, torch.randn(4, 2, 6)))
    assert program.fact(Keep).keep["rnn.weight_ih_l0.1"].tolist() == [0, 2, 3, 4]
    done = gp.run("propagate", program)
    assert [check.what for check in gp.verify(done)][1] == "pruned = original, float64"
