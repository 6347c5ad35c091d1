"""What must hold of every network: the law and the oracle, on both hosts."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper as nh
import torch
from numpy.typing import NDArray

from graphprune.axes.index import Index, coordinates
from graphprune.coupling.groups import find_groups
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.facts import Group, Groups, Keep, Member
from graphprune.ir.host import Host
from graphprune.ir.program import Program
from graphprune.passes.propagate import Propagate
from graphprune.pipeline import verify as proof
from graphprune.pipeline.compare import relative
from graphprune.pipeline.run import run_pass

from .network import Module, Network, data, to_onnx

Outputs = list[NDArray[Any]]
EXACT = {"torch": 1e-12, "onnx": 1e-5}
NOISE = {"torch": 1e-15, "onnx": 1e-7}  # about one rounding error
STILL = {"torch": 1e-12, "onnx": 1e-4}  # less than this is rounding
MOVES = {"torch": 1e-9, "onnx": 1e-3}


class Broken(AssertionError):
    """A network that breaks the law or the oracle."""


def check(net: Network, *, onnx_too: bool, masks: int = 2) -> Counter[str]:
    """Everything that must hold of one network. Returns counts of what was checked; raises Broken,
    or whatever graphprune raised."""
    module = Module(net).eval()
    inputs = tuple(map(torch.from_numpy, data(net)))
    with torch.no_grad():
        outputs = [out.numpy() for out in module(*inputs)]
    if not all(np.isfinite(out).all() and np.abs(out).max(initial=0) < 1e6 for out in outputs):
        return Counter({"networks that overflow, left out": 1})
    tally = Counter({"networks": 1})
    host = TorchHost.export(copy.deepcopy(module), inputs)
    program = Program(host=host, source=host, seed=net.seed)
    _agree(net, outputs, host.run(host.example()), host, "torch.export computes what the module does")
    tally += _law(net, program)
    for number in range(masks):
        tally += _oracle(net, program, number, lambda plan: _masked_module(module, plan, inputs))
    if onnx_too:
        tally += check_onnx(net, masks)
    return tally


def check_onnx(net: Network, masks: int = 2) -> Counter[str]:
    proto = to_onnx(net)
    example = [x.astype(np.float32) if x.dtype == np.float64 else x for x in data(net)]
    host = OnnxHost(copy.deepcopy(proto), example)
    program = Program(host=host, source=host, seed=net.seed)
    tally = Counter({"networks in ONNX": 1})
    tally += _law(net, program)
    for number in range(masks):
        tally += _oracle(net, program, number, lambda plan: _masked_file(proto, plan, example))
    return tally


# ---- the law -----------------------------------------------------------------------------------------


def _law(net: Network, program: Program) -> Counter[str]:
    """Permuting a group changes nothing; leaving one member out does, where it and another one have effect."""
    host, kind = program.host, program.host.kind
    groups = find_groups(program.graph, normalised=True)
    before = host.run(host.example())
    tally = Counter({"groups": len(groups), "frozen dims": len(groups.frozen)})
    for group in groups:
        if group.size == 1:
            continue
        index = Index({group.dim: np.roll(np.arange(group.size), 1)})
        after = _permuted(program, index)
        _agree(net, before, after, host, f"{kind}: permuting {group.name} ({group.size}) moves the output")
        if all(member.role == "reader" for member in group.members):
            continue  # nothing stored makes it: padding, whose channels are all alike
        for member in group.members:
            if _shows(program, group, member, before):
                tally["members"] += 1
            elif _matters(program, group, member, before) and any(
                _matters(program, group, other, before) for other in group.members if other is not member
            ):
                raise Broken(f"{kind}: {group.name} does not need {member} ({member.role}){net!r}")
            else:
                tally["members without effect"] += 1
    return tally


def _shows(program: Program, group: Group, member: Member, before: Outputs) -> bool:
    """Whether some permutation of the group without the member moves the output."""
    rng = np.random.default_rng(group.size)
    for order in (np.roll(np.arange(group.size), 1), np.arange(group.size)[::-1], rng.permutation(group.size)):
        if distance(before, _permuted(program, Index({group.dim: order}), leave_out=member)) > STILL[program.host.kind]:
            return True
    return False


def _permuted(program: Program, index: Index, leave_out: Member | None = None) -> Outputs:
    host = program.host.copy()
    for value in program.graph.parameters.values():
        for axis, dim in enumerate(value.dims):
            left = leave_out is not None and (value.name, axis) == (leave_out.parameter, leave_out.axis)
            if index.touches(dim) and not left:
                host.take(value.name, axis, index(dim))
    return list(host.run(host.example()))


def _matters(program: Program, group: Group, member: Member, before: Outputs) -> bool:
    """Whether the member's slices reach the output, and differ. Only then must leaving it out show.

    Noise that differs from channel to channel of the group, on its positions alone, must move the
    output, whichever noise it is: an activation may be saturated there, or the slices not be read.
    """
    host, at = program.host, coordinates(member.dim, group.dim)
    value = np.asarray(host.parameter(member.parameter), np.float64)
    order = Index({group.dim: np.roll(np.arange(group.size), 1)})(member.dim)
    if np.array_equal(value, value.take(order, member.axis)):
        return False
    rng = np.random.default_rng(0)
    shape = [n if axis == member.axis else 1 for axis, n in enumerate(value.shape)]
    for _ in range(3):
        noise = np.where(at >= 0, rng.standard_normal(group.size)[at], 0).reshape(shape)
        noisy = host.copy()
        noisy.set_parameter(member.parameter, value + 0.5 * np.abs(value).mean() * noise)
        if distance(before, noisy.run(noisy.example())) <= MOVES[host.kind]:
            return False
    return True


# ---- the oracle --------------------------------------------------------------------------------------


def _oracle(net: Network, program: Program, number: int, masked: Any) -> Counter[str]:
    """A random mask, in a random order of what is kept: the cut network computes what the masked one
    does. The mask is put on the user's own model, outside of everything that graphprune read."""
    host, kind = program.host, program.host.kind
    groups = find_groups(program.graph)
    if not groups.groups:
        return Counter()
    keep = _random_keep(groups, np.random.default_rng([net.seed, number]))
    pruned = run_pass(Propagate(), program.learn(groups).learn(keep))
    cut = pruned.host.run(pruned.host.example())
    kept = {name: k.tolist() for name, k in keep.keep.items()}
    _agree(net, masked(pruned.plan["parameters"]), cut, host, f"{kind}: pruned is not masked, keep={kept}")
    if number == 0:
        proof.verify(pruned, batches=1)
    return Counter({"masks": 1, "channels cut": sum(g.size - len(keep.keep[g.name]) for g in groups)})


def _random_keep(groups: Groups, rng: np.random.Generator) -> Keep:
    """Any subset of every group in any order; some whole, some down to one channel."""
    sizes = {g: int(rng.choice([1, g.size, rng.integers(1, g.size + 1), rng.integers(1, g.size + 1)])) for g in groups}
    keep = {g.name: rng.permutation(g.size)[:n] for g, n in sizes.items()}
    return Keep({name: np.sort(kept) if rng.random() < 0.5 else kept for name, kept in keep.items()})


def _zeroed(array: NDArray[Any], axes: Mapping[str, Any]) -> NDArray[Any]:
    out = np.array(array)
    for axis, entry in axes.items():
        if entry["role"] == "reader":
            drop = np.setdiff1d(np.arange(out.shape[int(axis)]), entry["keep"])
            out[(slice(None),) * int(axis) + (drop,)] = 0
    return out


def _masked_module(module: Module, plan: Mapping[str, Any], inputs: Sequence[torch.Tensor]) -> Outputs:
    masked = copy.deepcopy(module)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, axes in plan.items():
            if name in tensors:
                tensors[name].copy_(torch.from_numpy(_zeroed(tensors[name].numpy(), axes)))
        return [out.numpy() for out in masked(*inputs)]


def _masked_file(proto: onnx.ModelProto, plan: Mapping[str, Any], example: Sequence[NDArray[Any]]) -> Outputs:
    import onnxruntime as ort

    masked = copy.deepcopy(proto)
    for tensor in masked.graph.initializer:
        if tensor.name in plan:
            tensor.CopyFrom(nh.from_array(_zeroed(nh.to_array(tensor), plan[tensor.name]), tensor.name))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(masked.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, {f"x{k}": x for k, x in enumerate(example)}))


# ---- comparing ---------------------------------------------------------------------------------------


def distance(a: Outputs, b: Outputs) -> float:
    """max |a - b| / max |a|, the worst of all outputs."""
    return max(relative(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(a, b, strict=True))


def _agree(net: Network, a: Outputs, b: Outputs, host: Host, what: str) -> None:
    """Raises Broken where the two differ by more than a badly conditioned network makes of rounding."""
    error = distance(a, b)
    if error <= EXACT[host.kind]:
        return
    amplified = 1e3 * _conditioning(host)
    if error > min(amplified, 1e-6 if host.kind == "torch" else 1e-2):
        raise Broken(f"{what}: {error:.3g} (rounding explains {amplified:.3g}){net!r}")


def _conditioning(host: Host) -> float:
    """How far the output moves when every weight moves by a rounding error."""
    rng, noisy = np.random.default_rng(0), host.copy()
    for name, value in host.lift().parameters.items():
        if value.dtype.startswith("float"):
            weight = np.asarray(host.parameter(name), np.float64)
            noise = NOISE[host.kind] * rng.choice([-1, 1], weight.shape)
            noisy.set_parameter(name, (weight * (1 + noise)).astype(value.dtype))
    return distance(host.run(host.example()), noisy.run(noisy.example()))
