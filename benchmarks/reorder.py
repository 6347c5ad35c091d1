"""Unconstrained pruning: copies, accuracy and latency beside constrained pruning, the naive export and
UPSCALE's order.

    python -m benchmarks.reorder copies                 # gathers and bytes at 30 %, from the plans alone
    python -m benchmarks.reorder peer                   # what apple-upscale itself gathers with those masks
    python -m benchmarks.reorder accuracy [--images N]  # CIFAR-10, no training, on the exported model
    python -m benchmarks.reorder speed                  # that and latency, at aligned widths; on a quiet machine
    python -m benchmarks.reorder latency [--net NAME]   # on a quiet machine: interleaved medians
    python -m benchmarks.reorder tables                 # Markdown from the results so far

Results go to --out (JSON, one entry a measurement), which a later run continues. One thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import graphprune as gp
from graphprune.axes.dim import leaves
from graphprune.backends.measure import Runnable, settled, share
from graphprune.backends.target import host_cpu, target
from graphprune.cost import static as costs
from graphprune.ir.facts import Groups, Keep, Order
from graphprune.ir.program import Program
from graphprune.reorder.copy_costs import PRICES
from graphprune.reorder.reindex import ends, reindexes

from .cifar import images, network, normalised
from .convnets import CONVNETS, make
from .results import Results

NETS = ("resnet20", "resnet32", "resnet56", "densenet40")
CRITERIA = ("l1", "l2", "lamp", "fpgm")
AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5)
MODES = ("constrained", "unconstrained")
GATHERED = "group,score{{over=readers normalize=none}},mask{{channels={share}x unconstrained=readers floor=0{more}}}"


# ---- copies ------------------------------------------------------------------------------------------


SIDES = {
    "naive": "order=given menu=gather",
    "UPSCALE": "order=upscale menu=view|gather",
    "order alone": "menu=view|gather",
    "with the menu": "",
}


def copies(results: Results, options: argparse.Namespace) -> None:
    """What moves, from the plans alone: nothing is run, and nothing depends on the machine."""
    for name in options.net or CONVNETS:
        missing = [(on, side) for on in PRICES for side in SIDES if f"copies/{name}/{on}/{side}" not in results]
        if missing:
            module, x = make(name)
            program = gp.run(GATHERED.format(share=0.7, more=""), gp.load(module, (x,)))
            for on, side in missing:
                given = SIDES[side]
                (step,) = gp.Recipe.parse(f"reorder{{target={on} {given}}}").steps
                segments = step.run(program).fact(Order).segments
                sums = {key: round(sum(segment["ours"][key] for segment in segments), 1) for key in KEYS}
                how = Counter(taker["how"] for segment in segments for taker in segment["takers"])
                exact = all(segment["exact"] for segment in segments)
                results.add(f"copies/{name}/{on}/{side}", {**sums, "how": dict(how), "exact": exact})


KEYS = ("copies", "moved_bytes", "us", "concat_bytes", "concat_us")


def peer(results: Results, options: argparse.Namespace) -> None:
    """What the authors' own code gathers, given the same masks (`pip install --no-deps apple-upscale`): readers
    whose channels are no run after its reorder, and the bytes that they copy."""
    from upscale.pruning import PruningManager
    from upscale.pruning.pruner import Subselect

    for name in options.net or CONVNETS:
        module, x = make(name)
        cut = _dropped(gp.run(GATHERED.format(share=0.7, more=""), gp.load(module, (x,))))
        manager = PruningManager(module)
        manager.compute([x], pruned_inputs=cut)
        manager.prune()
        moved: list[float] = []

        def count(select: Any, _: Any, y: torch.Tensor, moved: list[float] = moved) -> None:
            at = list(select.indices)
            if at != list(range(at[0], at[0] + len(at))):
                moved.append(y.numel() * 4)

        for part in module.modules():
            if isinstance(part, Subselect):
                part.register_forward_hook(count)
        with torch.no_grad():
            module(x)
        results.add(f"peer/{name}", {"copies": len(moved), "moved_bytes": sum(moved)})


def _dropped(program: Program) -> list[tuple[str, int]]:
    """(weight, input channel) of what readers with channels of their own do not keep."""
    own = {leaf for op in reindexes(program.graph) for leaf in leaves(ends(op)[1])}
    groups = program.fact(Groups)
    index, found = program.fact(Keep).index(groups), list[tuple[str, int]]()
    for group in groups:
        for member in group.members if group.dim in own else ():
            if member.role == "reader":
                shape = program.graph.parameters[member.parameter].shape
                assert shape is not None  # a parameter's always is known
                every = np.arange(shape[member.axis])
                found += [(member.parameter, int(c)) for c in np.setdiff1d(every, index(member.dim))]
    return found


# ---- accuracy ----------------------------------------------------------------------------------------


def cifar(count: int) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """``count`` images of the test zip, evenly spaced over all, normalised; and their labels."""
    pixels, labels = images("test")
    chosen = np.linspace(0, len(pixels) - 1, count).astype(int)
    return torch.from_numpy(normalised(pixels[chosen])), labels[chosen]


def as_onnx(net: torch.nn.Module, x: torch.Tensor) -> Program:
    """The network as an ONNX file, which is what is pruned and run; its BatchNorms are left as they are."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        keep = torch.onnx.TrainingMode.PRESERVE  # else BatchNorms are folded before they are scored
        torch.onnx.export(net, (x,), path, dynamo=False, opset_version=18, training=keep, do_constant_folding=False)
        return gp.load(path)


@cache
def trained(name: str, batch: int) -> Program:
    return as_onnx(network(name), torch.zeros(batch, 3, 32, 32))


def recipe(by: str, amount: float, mode: str, grain: int) -> str:
    own = " unconstrained=readers" if mode == "unconstrained" else ""
    order = ",reorder{target=onnx}" if own else ""
    return f"group,score{{by={by}}},mask{{params={1 - amount:g}x floor=0.02 grain={grain}{own}}}{order},propagate"


def settings(options: argparse.Namespace, grain: int = 1) -> Iterator[tuple[str, str, str]]:
    """(network, key, recipe); no recipe for the network as it is."""
    for name in options.net or NETS:
        yield name, f"{name}/unpruned", ""
        for amount in AMOUNTS:
            for by in options.by or CRITERIA:
                for mode in MODES:
                    yield name, f"{name}/{by}/{amount}/{mode}", recipe(by, amount, mode, grain)


def accuracy(results: Results, options: argparse.Namespace) -> None:
    """Top-1 of the network that ONNX Runtime is given, at any widths."""
    x, labels = cifar(options.images)
    for name, key, text in settings(options):
        if f"accuracy/{key}" in results:
            continue
        if made := pruned(key, text, trained(name, 100)):
            results.add(f"accuracy/{key}", seen(made, target("onnx").runnable(made), x.split(100), labels))


def pruned(key: str, text: str, program: Program) -> Program | None:
    """None, and said why, where the budget cannot be met."""
    try:
        return gp.run(text, program) if text else program
    except gp.GraphpruneError as error:
        print(key, error, file=sys.stderr)
        return None


def seen(
    made: Program, code: Runnable, batches: Sequence[torch.Tensor], labels: np.ndarray[Any, Any]
) -> dict[str, Any]:
    found = [code.run([batch.numpy()])[0].argmax(1) for batch in batches]
    size = {"params": costs.params(made.graph, made.host)(), "macs": costs.macs(made.graph, made.host)()}
    return {"accuracy": float((np.concatenate(found) == labels).mean()), **size, "images": len(labels)}


def speed(results: Results, options: argparse.Namespace) -> None:
    """The same with widths that ONNX Runtime likes, and the latency for one image as a share of the unpruned
    network's, the two in turns."""
    x, labels = cifar(options.images)
    on = target("onnx")
    for name, key, text in settings(options, on.grain):
        if f"speed/{key}" not in results:
            base = trained(name, 1)
            if (made := pruned(key, text, base)) is None:
                continue
            code = on.runnable(made)
            taken = share(on.runnable(base), code, seconds=options.seconds)
            results.add(f"speed/{key}", {**seen(made, code, x.split(1), labels), "latency": taken})


# ---- latency -----------------------------------------------------------------------------------------


def latency(results: Results, options: argparse.Namespace) -> None:
    for name in options.net or CONVNETS:
        for batch in options.batch or (1, 8):
            for on in options.target or ("onnx", "tvm"):
                key = f"latency/{name}/{on}/{batch}"
                if key not in results:
                    results.add(key, times(built(name, batch, on), options.seconds))


def built(name: str, batch: int, on: str) -> dict[str, Runnable]:
    """Every side, compiled for a target. Widths are multiples of what the target likes, on all sides."""
    module, x = make(name, batch)
    base = gp.load(module, (x,))
    where = target(on)
    gathered = GATHERED.format(share=0.7, more=f" grain={where.grain}")
    sides = {
        "unpruned": base,
        "constrained": gp.run(f"group,score{{over=readers}},mask{{channels=0.7x grain={where.grain}}},propagate", base),
        "naive": gp.run(f"{gathered},propagate", base),
        "upscale": gp.run(f"{gathered},reorder{{order=upscale menu=view|gather}},propagate", base),
        "ours": gp.run(f"{gathered},reorder{{target={on}}},propagate", base),
    }
    return {side: where.runnable(program) for side, program in sides.items()}


def times(code: Mapping[str, Runnable], seconds: float) -> dict[str, Any]:
    """Milliseconds (median, interquartile range) of the sides in turns, every round beginning with the next.
    Samples in which the machine did something else are left out: see measure.settled. ``ours/...``: what ours
    took of another side's time in the same round (median, standard error)."""
    names, samples = list(code), {side: list[float]() for side in code}
    for call in code.values():
        call()
    end, k = time.perf_counter() + seconds * len(names), 0
    while time.perf_counter() < end or k < 2 * len(names):
        for side in names[k % len(names) :] + names[: k % len(names)]:
            start = time.perf_counter()
            code[side]()
            samples[side].append((time.perf_counter() - start) * 1e3)
        k += 1
    found = {side: settled(own, 1, side) for side, own in samples.items()}
    out = {side: [round(one.median_ms, 4), round(one.spread_ms, 4)] for side, one in found.items()}
    for other in ("naive", "upscale", "unpruned"):
        ratios = np.array(samples["ours"]) / np.array(samples[other])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        error = 1.2533 * (high - low) / 1.349 / len(ratios) ** 0.5  # of a median, were they normally distributed
        out[f"ours/{other}"] = [round(float(middle), 5), round(float(error), 5)]
    return out


# ---- tables ------------------------------------------------------------------------------------------


def tables(results: Results, options: argparse.Namespace) -> None:
    known = results.known
    for lines in (
        _copies_table(known),
        _gains_table(known, "accuracy", "params", "parameters, any widths"),
        _gains_table(known, "speed", "latency", "measured latency, widths in multiples of 16"),
        _latency_table(known),
    ):
        print("\n".join(lines), end="\n\n")
    print(f"Machine: {host_cpu()}.")


def _copies_table(found: Mapping[str, Any]) -> Iterator[str]:
    """Copies / MB copied + MB concatenated / planned microseconds of both."""
    yield f"| network | target | {' | '.join(SIDES)} | of which | apple-upscale |"
    yield f"|---|---|{'---:|' * len(SIDES)}---|---:|"
    for name in CONVNETS:
        for on in PRICES:
            rows: list[Any] = [found.get(f"copies/{name}/{on}/{side}") for side in SIDES]
            if all(rows):
                how = ", ".join(f"{count} {what}" for what, count in sorted(rows[-1]["how"].items()))
                own = found.get(f"peer/{name}") if on == "torch" else None
                theirs = f"{own['copies']} / {own['moved_bytes'] / 1e6:.2f}" if own else ""
                yield f"| {name} | {on} | {' | '.join(map(_moved, rows))} | {how} | {theirs} |"


def _moved(one: Mapping[str, Any]) -> str:
    joined = f" + {one['concat_bytes'] / 1e6:.1f}" if one["concat_bytes"] else ""
    return f"{one['copies']:.0f} / {one['moved_bytes'] / 1e6:.2f}{joined} / {one['us'] + one['concat_us']:.0f}"


def _gains_table(found: Mapping[str, Any], kind: str, what: str, title: str) -> Iterator[str]:
    """Unconstrained against the constrained curve at as much of ``what``."""
    yield f"At equal {title}:"
    yield ""
    yield f"| network | by | {' | '.join(f'{amount:.0%}' for amount in AMOUNTS)} |"
    yield f"|---|---|{'---:|' * len(AMOUNTS)}"
    gains: list[float] = []
    for name in NETS:
        for by in CRITERIA:
            curve = [found.get(f"{kind}/{name}/{by}/{amount}/constrained") for amount in AMOUNTS]
            points = [one for one in (found.get(f"{kind}/{name}/unpruned"), *curve) if one]
            cells = []
            for amount in AMOUNTS:
                free = found.get(f"{kind}/{name}/{by}/{amount}/unconstrained")
                if not free or len(points) < 2:
                    cells.append("-")
                    continue
                tied = _at(points, what, free[what])
                gains.append(100 * (free["accuracy"] - tied))
                cells.append(f"{100 * tied:.1f} / {100 * free['accuracy']:.1f} ({gains[-1]:+.1f})")
            if any(cell != "-" for cell in cells):
                yield f"| {name} | {by} | {' | '.join(cells)} |"
    if gains:
        lost = sum(gain < -0.05 for gain in gains)
        yield f"\nMean gain {mean(gains):+.1f} points over {len(gains)} settings; {lost} of them lose."
    yield ""


def _at(points: Sequence[Mapping[str, float]], what: str, where: float) -> float:
    """The accuracy of a curve at a value of ``what``: of the best that has no more of it, linear between these and
    flat beyond."""
    ordered = sorted(points, key=lambda one: one[what])
    best = np.maximum.accumulate([one["accuracy"] for one in ordered])
    return float(np.interp(where, [one[what] for one in ordered], best))


def _latency_table(found: Mapping[str, Any]) -> Iterator[str]:
    sides, others = ("unpruned", "constrained", "naive", "upscale", "ours"), ("naive", "upscale", "unpruned")
    yield f"| network | target | batch | {' | '.join(sides)} | ours against {', '.join(others)} |"
    yield f"|---|---|---:|{'---:|' * (len(sides) + 1)}"
    for name in CONVNETS:
        for on in ("onnx", "tvm"):
            for batch in (1, 8):
                one = found.get(f"latency/{name}/{on}/{batch}")
                if one:
                    taken = " | ".join("{:.2f} ± {:.2f}".format(*one[side]) for side in sides)
                    against = ", ".join(_against(*one.get(f"ours/{other}", (1, 0))) for other in others)
                    yield f"| {name} | {on} | {batch} | {taken} | {against} |"


def _against(ratio: float, error: float) -> str:
    return f"{100 * (ratio - 1):+.1f} ± {100 * error:.1f} %" if error else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    commands = {
        "copies": copies,
        "peer": peer,
        "accuracy": accuracy,
        "speed": speed,
        "latency": latency,
        "tables": tables,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--out", type=Path, default=Path("docs/reorder.json"))
    parser.add_argument("--net", action="append", help="this network (may be given again); all")
    parser.add_argument("--by", action="append", help="this criterion; l1, l2, lamp and fpgm")
    parser.add_argument("--images", type=int, default=2000, help="of the test set")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--target", action="append")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each network")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    commands[options.command](Results(options.out), options)


if __name__ == "__main__":
    main()
