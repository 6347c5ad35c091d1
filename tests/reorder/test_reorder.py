"""Readers with channels of their own: exact on every topology, constrained as the special case, copies
planned away."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys

import branches
import nets
import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.cost import static as costs
from graphprune.cost.latency.model import LatencyModel
from graphprune.cost.latency.tabulated import Sheet
from graphprune.cost.latency.workload import works
from graphprune.ir.facts import Groups, Keep, Order
from graphprune.passes.loosen import Loosen
from graphprune.passes.propagate import Propagate
from graphprune.passes.reorder import Reorder
from graphprune.pipeline import verify as proof
from graphprune.pipeline.replay import replay
from graphprune.pipeline.run import run_pass
from graphprune.reorder.copy_costs import PRICES
from graphprune.reorder.per_reader import Links
from graphprune.reorder.reindex import reindexes
from graphprune.reorder.segments import Segments

EXACT = 1e-12
NAMES = sorted(branches.NETS)


def loosened(name, writers=False):
    program = gp.run("group,score", branches.program(name))
    return run_pass(Loosen(writers=writers), program)


def random_keep(program, seed):
    """A random list for everything that may have one of its own, and what follows from it; what is weighed by a
    softmax stays whole, since zeros do not mask it."""
    links, rng = Links(program.graph, program.fact(Groups)), np.random.default_rng(seed)
    free = {g.name: np.sort(rng.permutation(g.size)[: rng.integers(1, g.size + 1)]) for g in links.free()}
    free |= {g.name: np.arange(g.size) for g in links.free() if g.dim in program.graph.weighed}
    return Keep(links.complete(free))


def masked_outputs(name, plan):
    """The user's own module with zeros where the plan has them, outside of everything that was traced."""
    module = copy.deepcopy(branches.module(name))
    tensors = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers()])
    with torch.no_grad():
        for parameter, axes in plan["parameters"].items():
            for axis, entry in axes.items():
                if entry["role"] == "reader":
                    tensor = tensors[parameter]
                    drop = set(range(tensor.shape[int(axis)])) - set(entry["keep"]) | set(entry.get("blank", ()))
                    tensor.index_fill_(int(axis), torch.tensor(sorted(drop), dtype=torch.int64), 0)
    return nets.outputs(module, branches.inputs())


def check(name, program):
    outputs = nets.outputs(program.model, branches.inputs())
    assert nets.relative_error(masked_outputs(name, program.plan), outputs) <= EXACT


# ---- exact, or refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_readers_that_choose_for_themselves_are_these(name):
    assert len(list(reindexes(loosened(name).graph))) == branches.NETS[name][1]


@pytest.mark.parametrize("writers", [False, True], ids=["readers", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_any_mask_is_computed_exactly(name, writers):
    program = loosened(name, writers)
    menus = ("view", "view|gather|sink", "view|gather|widen|sink|constrain")
    for seed, menu in enumerate(menus):
        known = program.learn(random_keep(program, seed))
        check(name, gp.run(gp.Recipe((Reorder(menu=menu, target=("torch", "onnx", "tvm")[seed]), Propagate())), known))
    naive = gp.run(gp.Recipe((Propagate(),)), program.learn(random_keep(program, 7)))
    check(name, naive)


@pytest.mark.parametrize("name", ["residual", "dense", "both orders", "flatten", "tuple and shared"])
@pytest.mark.parametrize("opset", [9, 18])
def test_the_same_on_onnx_with_the_opset_kept(name, opset, tmp_path):
    path = tmp_path / "model.onnx"
    with torch.no_grad():
        model = branches.module(name).float()
        torch.onnx.export(model, (branches.inputs()[0].float(),), path, dynamo=False, opset_version=opset)
    for mode in ("readers", "both"):
        recipe = f"group,score,mask{{channels=0.6x unconstrained={mode}}},reorder{{menu=view|sink}},propagate"
        done = gp.run(recipe, gp.load(path))
        assert done.model.graph.opset_imports[""] == opset
        assert len(done.plan["steps"][0]["reindex"]) >= branches.NETS[name][1]
        assert not any(node.op_type == "Identity" for node in done.model.graph)
        assert all(one.error <= one.tolerance for one in proof.verify(done))


def test_the_oracle_notices_a_channel_too_few():
    program = loosened("residual")
    done = gp.run(gp.Recipe((Propagate(),)), program.learn(random_keep(program, 0)))
    plan = copy.deepcopy(dict(done.plan))
    entry = next(a["1"] for a in plan["parameters"].values() if a.get("1", {}).get("role") == "reader")
    entry["keep"] = entry["keep"][1:]
    outputs = nets.outputs(done.model, branches.inputs())
    assert nets.relative_error(masked_outputs("residual", plan), outputs) > 1e-4


def test_the_plan_alone_gives_the_same_network():
    program = branches.program("dense")
    done = gp.run("group,score,mask{channels=0.6x unconstrained=both},reorder,propagate", program)
    again = replay(done.plan, program.host)
    assert again.graph.text() == done.graph.text()
    for name in done.graph.parameters:
        assert np.array_equal(done.host.parameter(name), again.host.parameter(name))


# ---- constrained is a special case -------------------------------------------------------------------------


def test_readers_that_agree_need_nothing():
    """With one list for all of them the network is the constrained one, op for op and bit for bit."""
    program = gp.run("group,score", branches.program("residual"))
    groups = program.fact(Groups)
    keep = {group.name: np.arange(0, group.size, 2) for group in groups}
    plain = gp.run(gp.Recipe((Propagate(),)), program.learn(Keep(keep)))
    loose = run_pass(Loosen(), program)
    same = {group.name: np.arange(0, group.size, 2) for group in loose.fact(Groups)}
    done = gp.run(gp.Recipe((Reorder(), Propagate())), loose.learn(Keep(same)))
    assert done.graph.text() == plain.graph.text()
    assert all(np.array_equal(done.host.parameter(n), plain.host.parameter(n)) for n in plain.graph.parameters)


def test_a_model_without_shared_channels_is_left_as_it_was():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 3))
    program = gp.load(model, branches.inputs()[0].float())
    plain = gp.run("group,score,mask{channels=0.5x},propagate", program)
    loose = gp.run("group,score,mask{channels=0.5x unconstrained=readers},reorder,propagate", program)
    assert loose.plan["parameters"] == plain.plan["parameters"]
    assert [set(step) for step in loose.plan["steps"]] == [{"edit", "keep", "pass"}]


# ---- what is kept ------------------------------------------------------------------------------------------


def test_a_producer_keeps_what_some_reader_takes():
    program = gp.run(
        "group,score{by=l2},mask{channels=0.5x unconstrained=readers floor=0}", branches.program("residual")
    )
    links, keep = Links(program.graph, program.fact(Groups)), program.fact(Keep).keep
    (shared,) = links.followers
    taken = [keep[name] for name in keep if name.endswith("weight[1]")]
    assert len(taken) == 4 and all(len(one) == 5 for one in taken)
    assert sorted(keep[shared]) == sorted(set(np.concatenate(taken)))


@pytest.mark.parametrize("mode", ["readers", "both"])
def test_what_producers_keep_is_a_multiple_of_the_grain_too(mode):
    """Not only what readers take: a target is as slow with odd widths of either."""
    program = gp.load(Rough().eval(), torch.randn(1, 3, 8, 8))
    done = gp.run(f"group,score,mask{{channels=0.5x floor=0 grain=4 unconstrained={mode}}},reorder,propagate", program)
    widths = {name: done.host.parameter(name).shape[:2] for name in ("stem.weight", "a.weight", "b.weight", "c.weight")}
    assert widths["stem.weight"][0] > 8  # three readers, each with 8 of 16
    assert all(
        width % 4 == 0 for width in (widths["stem.weight"][0], *(one[1] for one in widths.values())) if width > 3
    )
    assert all(one.error <= one.tolerance for one in proof.verify(done))


@pytest.mark.parametrize(("share", "grain"), [(0.3, 2), (0.3, 3), (0.6, 3), (0.6, 5)])
def test_readers_agree_on_a_multiple_of_the_grain(share, grain):
    program = gp.load(Rough().eval(), torch.randn(1, 3, 32, 32))
    recipe = f"group,score,mask{{params={share}x floor=0 grain={grain} unconstrained=mixed target=onnx}}"
    counts = {name: len(kept) for name, kept in gp.run(recipe, program).fact(Keep).keep.items()}
    assert len(counts) == 4 and all(count % grain == 0 or count == 16 for count in counts.values()), counts


class Rough(torch.nn.Module):
    """A stem, a branch that adds to it, and three readers of the sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.branch = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(3, 16, 1)
        self.a, self.b, self.c = (torch.nn.Conv2d(16, 5, size, padding=size // 2) for size in (3, 1, 3))

    def forward(self, x):
        x = torch.relu(self.stem(x) + self.branch(x))
        return torch.relu(self.a(x)), torch.relu(self.b(x)), self.c(x)


@pytest.mark.parametrize("unit", ["params", "macs", "memory"])
@pytest.mark.parametrize("allocate", ["uniform", "global"])
def test_budgets_count_what_is_really_left(unit, allocate):
    """The union that producers keep is part of the price."""
    program = branches.program("dense")
    recipe = f"group,score,mask{{{unit}=0.5x allocate={allocate} unconstrained=readers}},propagate"
    cost = getattr(costs, unit)
    done = gp.run(recipe, program)
    left = cost(done.graph, done.host)() / cost(program.graph, program.host)()
    assert 0.4 < left <= 0.5


@pytest.mark.parametrize("on", ["torch", "onnx", "tvm"])
@pytest.mark.parametrize("name", ["plain", "residual", "dense", "attention"])
def test_readers_agree_where_that_is_no_slower(name, on):
    """mixed: within the same budget, and never predicted to take longer than all readers choosing."""
    program = branches.program(name)
    recipe = f"group,score,mask{{{{params=0.6x unconstrained={{}} target={on}}}}},reorder{{{{target={on}}}}},propagate"
    free, mixed = (gp.run(recipe.format(mode), program) for mode in ("readers", "mixed"))
    assert costs.params(mixed.graph, mixed.host)() <= 0.6 * costs.params(program.graph, program.host)()
    time = {}
    for mode, done in (("free", free), ("mixed", mixed)):
        copied = sum(one["ours"]["us"] + one["ours"]["concat_us"] for one in done.plan.get("segments", ()))
        time[mode] = copied + PRICES[on].mac * 2 / 1e6 * costs.macs(done.graph, done.host)()
    assert time["mixed"] <= time["free"] * (1 + 1e-9)
    check(name, mixed)


@pytest.mark.parametrize("slope", [0.0, 1e3])
def test_extra_channels_cost_what_the_latency_table_says(slope):
    """Where wider convolutions take no longer nothing is copied; where they do nothing is widened."""
    program = loosened("plain")
    program = program.learn(random_keep(program, 4))
    found = tuple(works(program.graph, program.host))
    surfaces = {work.family: lambda inner, outer: 1.0 + slope * inner * outer for work in found}
    dims = {group.name: group.dim for group in program.fact(Groups)}
    model = LatencyModel(Sheet(found, surfaces, dims, program.host.sizes()), 1.0, "a table")
    done = gp.run(gp.Recipe((Reorder(target="onnx"), Propagate())), program.learn(model))
    hows = {taker["how"] for one in done.plan["segments"] for taker in one["takers"]} - {"all"}
    assert hows and hows <= ({"view", "gather"} if slope else {"widen", "constrain"})
    check("plain", done)


class Wide(torch.nn.Module):
    """A cheap producer and three readers, none of which fits beside both others."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 12, 1)
        self.readers = torch.nn.ModuleList(torch.nn.Conv2d(12, 40, 1) for _ in range(3))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return torch.cat([reader(x) for reader in self.readers], 1)


def test_a_channel_may_be_made_twice_where_that_is_cheaper():
    torch.manual_seed(0)
    model, x = Wide().double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    program = gp.run("group,score,loosen", gp.load(model, (x,)))
    lists = ([*range(0, 5), 9], [*range(4, 9), 9, 10], [0, 1, *range(6, 11), 11])
    names = [f"readers.{k}.weight[1]" for k in range(3)]
    links = Links(program.graph, program.fact(Groups))
    keep = Keep(links.complete({name: np.array(own) for name, own in zip(names, lists, strict=True)}))
    done = gp.run(gp.Recipe((Reorder(menu="view|gather|duplicate"), Propagate())), program.learn(keep))
    width = done.host.parameter("stem.weight").shape[0]
    assert width > 12 and copies(done) == 0
    whole = model.state_dict()
    with torch.no_grad():
        for k, own in enumerate(lists):
            drop = [c for c in range(12) if c not in own]
            whole[f"readers.{k}.weight"][:, drop] = 0
        model.load_state_dict(whole)
        assert nets.relative_error([model(x).numpy()], [done.model(x).numpy()]) <= EXACT
    assert all(one.error <= one.tolerance for one in proof.verify(done))


def test_a_layer_that_nobody_reads_keeps_a_channel():
    program = loosened("dense lists")
    links = Links(program.graph, program.fact(Groups))
    keep = links.complete({group.name: np.array([0]) for group in links.free()})
    assert all(len(kept) for kept in keep.values())
    done = gp.run(gp.Recipe((Reorder(), Propagate())), program.learn(Keep(keep)))
    check("dense lists", done)


def test_a_writer_leaves_out_channels_of_a_sum():
    """What it does not write costs nothing, and nobody can read it from there."""
    program = branches.program("residual")
    done = gp.run("group,score,mask{channels=0.5x unconstrained=both},propagate", program)
    assert done.host.parameter("blocks.0.3.weight").shape[0] < done.host.parameter("stem.weight").shape[0]
    targets = [str(node.target) for node in done.model.graph.nodes]
    assert any("pad" in target for target in targets)


# ---- copies ------------------------------------------------------------------------------------------------


def test_tvm_selects_within_the_convolutions():
    """Neither a slice nor a gather is a kernel of its own there, padded or not, and sums still follow in the same
    kernel: just as many kernels as the unpruned network has, and none that only moves channels."""
    pytest.importorskip("tvm")
    from graphprune.backends.target import target
    from graphprune.backends.tvm.lower import imported, lowered, toolchain

    program = gp.load(Rough().eval(), torch.randn(1, 3, 8, 8))
    naive = gp.run("group,score,mask{channels=0.5x floor=0 unconstrained=readers},propagate", program)
    ordered = gp.run("group,score,mask{channels=0.5x floor=0 unconstrained=readers},reorder,propagate", program)
    cpu, found = toolchain().target.Target.from_device("cpu"), []
    for one in (program, naive, ordered):
        names = [var.name_hint for var, func in lowered(imported(one.host)[0], cpu).functions_items()]
        found.append(sorted(name for name in names if "transpose" not in name and name != "main"))
        assert not any(name.startswith(("take", "strided_slice")) for name in names)
    assert copies(naive) == 3
    assert len(found[1]) == len(found[2]) == len(found[0])
    inputs = [torch.randn(1, 3, 8, 8).numpy()]
    for want, have in zip(naive.host.run(inputs), target("tvm").run(naive, inputs), strict=True):
        assert nets.relative_error([want], [have]) <= 1e-5


def copies(program):
    targets = [str(node.target) for node in program.model.graph.nodes if node.op == "call_function"]
    assert not any("alias" in target for target in targets)
    return sum("index_select" in target for target in targets)


def interval_keep(program, seed):
    """Readers whose channels are runs in some hidden order of each producer."""
    links, rng = Links(program.graph, program.fact(Groups)), np.random.default_rng(seed)
    hidden = rng.permutation(WIDTH)
    free = {}
    for group in links.free():
        start = int(rng.integers(0, 5))
        whole = hidden[start : start + int(rng.integers(3, 8))] if group.size == WIDTH else np.arange(group.size)
        free[group.name] = np.sort(whole)
    return Keep(links.complete(free))


WIDTH = branches.WIDTH


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_a_hidden_order_are_found(seed):
    program = loosened("plain")
    program = program.learn(interval_keep(program, seed))
    ordered = gp.run(gp.Recipe((Reorder(menu="view|gather"), Propagate())), program)
    assert copies(ordered) == 0
    check("plain", ordered)


def test_nothing_is_gathered_into_a_concatenation_twice():
    """DenseNet: the selections go into the concatenations, and the old ones are gone."""
    for name, concatenations in (("dense", 4), ("dense lists", 4)):
        program = loosened(name)
        sinks = [op.name for op in reindexes(program.graph) if "cat" in op.inputs[0].name]
        known = program.learn(random_keep(program, 0)).learn(Order(dict.fromkeys(sinks, 100)))
        done = gp.run(gp.Recipe((Propagate(),)), known)
        assert len(sinks) == 4 and copies(done) <= 1  # the stem has no concatenation
        assert sum("cat" in str(node.target) for node in done.model.graph.nodes) == concatenations
        check(name, done)


def test_the_chosen_layout_is_never_dearer_than_the_published_one():
    for name in ("plain", "residual", "dense", "sppf", "both orders"):
        loose = loosened(name)
        for seed in range(2):
            program = loose.learn(random_keep(loose, seed))
            for target in ("torch", "onnx", "tvm"):
                order = Reorder(target=target).run(program).fact(Order)
                for segment in order.segments:
                    ours = segment["ours"]["us"] + segment["ours"]["concat_us"]
                    for other in ("naive", "upscale"):
                        assert ours <= segment[other]["us"] + segment[other]["concat_us"] + 1e-9, (name, other)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_hash_seed():
    code = (
        "import branches, hashlib, graphprune as gp\n"
        "recipe = 'group,score,mask{channels=0.6x unconstrained=both},reorder,propagate'\n"
        "p = gp.run(recipe, branches.program('dense'))\n"
        "state = b''.join(p.host.parameter(n).tobytes() for n in p.graph.parameters)\n"
        "print(hashlib.sha256(state).hexdigest(), p.graph.text(), p.plan)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("mask{channels=0.5x unconstrained=reader}", "`unconstrained` cannot be `reader`"),
        ("reorder{menu=view|gathr}", "`menu` has no `gathr`"),
        ("reorder{target=gpu}", "`target` cannot be `gpu`"),
        ("reorder{order=bset}", "`order` cannot be `bset`"),
    ],
)
def test_a_wrong_option_is_named(recipe, words):
    with pytest.raises(gp.GraphpruneError, match=words.replace("|", r"\|")):
        gp.Recipe.parse(recipe)


def test_a_reader_cannot_keep_what_is_not_made():
    program = loosened("plain")
    keep = dict(random_keep(program, 0).keep)
    (shared,) = Links(program.graph, program.fact(Groups)).followers
    keep[shared] = keep[shared][:-1]
    with pytest.raises(gp.GraphpruneError, match="takes channel"):
        gp.run(gp.Recipe((Propagate(),)), program.learn(Keep(keep)))


def test_compile_proves_and_reports_it(tmp_path):
    """Through compensation and folding, with the code of the target compared and the segments in the report."""
    model, rng = branches.module("residual").float(), np.random.default_rng(0)
    data = [rng.standard_normal((4, 3, 8, 8)).astype(np.float32)]
    recipe = "group,score{by=wifv},mask{channels=0.6x unconstrained=readers},reorder,propagate,compensate,fold"
    made = gp.compile(
        model, (branches.inputs()[0].float(),), recipe=recipe, data=data, targets=("onnx",), measure=False,
        out=tmp_path / "out",
    )  # fmt: skip
    assert all(one["max_relative_error"] <= one["tolerance"] for one in made.report["verification"]["checks"])
    assert {group["name"] for group in made.report["groups"]} >= {"stem", "head.weight[1]"}
    (segment,) = made.report["segments"]
    assert len(segment["takers"]) == 4
    assert "fallback" not in made.report  # nothing was measured
    assert "Readers that choose their own channels" in (tmp_path / "out" / "report.html").read_text()
    again = gp.apply(tmp_path / "out" / "plan.json", model, (branches.inputs()[0].float(),))
    for name in made.program.graph.parameters:
        assert np.array_equal(again.host.parameter(name), made.program.host.parameter(name))


@pytest.mark.parametrize(
    ("shares", "tried", "copied"),
    [
        ([1.01], 1, True),  # no slower: as it was asked for
        ([1.5, 0.9], 2, None),  # multiples of eight, because the target likes that
        ([1.5, 1.4, 1.0], 3, False),  # no copies
        ([1.5, 1.4, 1.3, 1.01], 4, False),  # readers agree
        ([1.5, 1.4, 1.3, 1.2, 1.3, 1.3, 1.2], 6, False),  # all slower: the fastest, measured once more
    ],
)
def test_what_is_slower_than_the_original_chooses_less(shares, tried, copied):
    """Whatever the plan promised, the target is asked."""
    from graphprune.backends.measure import Comparison
    from graphprune.driver.no_slower import Tried, chooses, guarded
    from graphprune.ir.facts import Latency

    def write(made):
        return {"c": Comparison(Latency(1.0, 0.0, 5, 1, "c"), Latency(asked.pop(0), 0.0, 5, 1, "c"))}

    program = gp.load(Rough().eval(), torch.randn(1, 3, 8, 8))
    recipe = gp.Recipe.parse("group,score,mask{channels=0.7x unconstrained=readers},reorder{menu=gather},propagate")
    given, asked = gp.run(recipe, program), list(shares)
    found, facts = guarded(program, Tried(given, recipe, write(given)), 8, write)
    assert not asked and len(facts.get("tried", [0])) == tried and found.worst.share == shares[-1]
    assert copied is None or (copies(found.program) > 0) is copied
    assert gp.run(found.recipe, program).graph.text() == found.program.graph.text()
    assert chooses(found.recipe) is (tried < 4)
    assert all(one.error <= one.tolerance for one in proof.verify(found.program))


def test_prices_of_a_machine_come_from_a_file(tmp_path):
    """Where multiplying is dear readers gather; where it costs nothing they take all there is."""
    from graphprune.reorder.copy_costs import MEASURED

    program = loosened("plain")
    program = program.learn(random_keep(program, 3))
    for mac, how in ((1e6, "gather"), (1e-6, "constrain")):
        path = tmp_path / f"{how}.json"
        path.write_text(json.dumps({"prices": {"onnx": dict.fromkeys(MEASURED, 1.0) | {"mac": mac}}}))
        (segment,) = Reorder(target="onnx", prices=str(path)).run(program).fact(Order).segments
        assert {taker["how"] for taker in segment["takers"]} <= {how, "view", "all"}
        assert any(taker["how"] == how for taker in segment["takers"])
    with pytest.raises(gp.GraphpruneError, match="no prices of target `tvm`"):
        Reorder(target="tvm", prices=str(path)).run(program)


@pytest.mark.parametrize("order", ["best", "upscale", "given"])
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_the_budget_of_the_mask_holds_in_every_order(unit, order):
    recipe = (
        f"group,score,mask{{{unit}=0.5x unconstrained=readers floor=0}},reorder{{menu=widen|constrain order={order}}}"
    )
    done = gp.run(recipe, branches.program("both orders"))
    cost = {"macs": costs.macs, "params": costs.params}[unit](done.graph, done.host)
    keep = done.fact(Keep).keep
    assert cost({g.dim: len(keep[g.name]) for g in done.fact(Groups)}) <= 0.5 * cost() * (1 + 1e-9)
    assert not any("asked for" in note for note in done.notes)


def test_idle_channels_beyond_a_budget_of_channels_are_told():
    recipe = "group,score,mask{channels=0.5x unconstrained=readers},reorder{menu=constrain order=given}"
    done = gp.run(recipe, branches.program("both orders"))
    (note,) = (note for note in done.notes if note.startswith("`reorder"))
    assert re.search(r" 1x of channels are left where 0\.5x was asked for, with channels that count for nothing", note)


def test_what_is_exact_stays_so_in_another_order():
    program = gp.run("group", branches.program("residual"))
    keep = {group.name: np.arange(group.size) for group in program.fact(Groups)}
    done = gp.run("loosen", program)
    keep = {group.name: np.arange(group.size)[::2] for group in done.fact(Groups)}
    keep = Links(done.graph, done.fact(Groups)).complete(keep)
    ordered = Reorder().run(done.learn(Keep(keep, exact=True, constant=True)))
    assert ordered.fact(Keep).exact and ordered.fact(Keep).constant


def test_prices_are_of_the_samples_that_costs_are_counted_by():
    """Of an input whose first axis is no batch the whole example is one sample."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

        def forward(self, scales, x):
            z = torch.relu(self.one(x)) * scales.mean()
            return self.left(z), self.right(z)

    program = gp.load(Net().double().eval(), (torch.randn(7).double(), torch.randn(2, 5, 6).double()))
    loose = gp.run("group,score,loosen,mask{channels=0.5x}", program)
    segments = Segments(loose, loose.fact(Groups), loose.fact(Keep).keep)
    assert segments.batch == costs.samples(loose.graph, loose.host) == 1
