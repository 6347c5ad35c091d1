"""What to do with a result: lines to copy, for the report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ..hosts.given import PREFIX

Step = Mapping[str, str]

UNWRITTEN = "no widths.json was written"
"""How the note begins that says why."""
NO_FOLDER = "nothing that from_pretrained loads was written"
"""Likewise, of a folder of transformers."""


def steps(report: Mapping[str, Any]) -> list[Step]:
    """To load, to train on and to deploy what lies in the folder of the report: a title and code each."""
    return [{"title": title, "code": code} for title, code in (*_model(report), *_targets(report), *_nearer(report))]


def has_name(model: str) -> bool:
    """Whether a shell can name it."""
    return model.endswith((".onnx", ".pt2")) or ":" in model


def _model(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if report["host"] == "onnx":
        yield "Load it, anywhere that ONNX runs:", _session("model.onnx")
        return
    notes = " ".join(report.get("notes", ()))
    if str(report["model"]).startswith(PREFIX) and NO_FOLDER not in notes:
        trusted = ", trust_remote_code=True" if "trust_remote_code" in notes else ""
        yield (
            "Load it as any folder of transformers, by the Auto class of your task (graphprune is not needed):",
            f'model = transformers.AutoModelForCausalLM.from_pretrained("out"{trusted})',
        )
        return
    yield "Load it, where torch is and nothing else:", 'model = torch.export.load("model.pt2").module()'
    if not any(UNWRITTEN in note for note in report.get("notes", ())):
        yield (
            "Your own class at the new widths, to train on (in this folder; graphprune is not needed):",
            "from rebuild import rebuild\n\n"
            'model = rebuild(YourClass(), ".")\n'
            'model.load_state_dict(torch.load("weights.pt"))\n'
            "model.train()  # and your own loop, at about a tenth of the learning rate it ended with",
        )
    else:
        yield (
            "To train on, from Python (where graphprune is):",
            'smaller = gp.apply("plan.json", YourClass(), example_inputs).model\nsmaller.train()',
        )


def _targets(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for label in report["targets"]:
        if label.startswith(("onnx", "ort")) and report["host"] != "onnx":
            yield f"Deploy the code for {label}:", _session(f"{label}/model.onnx")
        elif label.startswith("tvm"):
            yield (
                f"Run and time the code for {label}:",
                f"from graphprune.backends.target import runnable\n\n"
                f'outputs = runnable("{label}").run([array])\n\n'
                f"# graphprune bench {label} OTHER",
            )
        elif label not in ("onnx", "torch"):
            yield f"The code for {label}:", f"ls {label}/"


def _nearer(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where channels went alone, fitted."""
    budget = report.get("budget", {})
    if not (report.get("auto") and report.get("closeness", {}).get("held_back") and budget.get("got")):
        return
    model, unit, asked = str(report["model"]), budget["unit"], str(budget["asked"])
    if "contest" in report or unit == "channels":
        return
    if model.startswith(PREFIX):  # whose class has no place for ranks
        return
    on = [*report.get("targets", {})][:1] if unit == "latency" else []
    shell = ["graphprune", "compile", model, f"--{unit}", asked, "--recipe", "auto", "--recipe", "all"]
    shell += [word for label in on for word in ("--target", label)]
    more = "".join(f'targets=["{label}"], ' for label in on) + "data=data"
    yield (
        "Often nearer to the original within the same budget, and several times as long to make: branches and ranks "
        "may go too (as a module of its own, not as your class), and whichever is nearer is taken:",
        shlex.join([*shell, "--data", str(report["data"]), "-o", "nearer"])
        if has_name(model) and report["data"]
        else f'gp.compile(model, example_inputs, {unit}="{asked}", recipe=["auto", "all"], {more}, out="nearer")',
    )


def _session(path: str) -> str:
    return (
        "import onnxruntime as ort\n\n"
        f'session = ort.InferenceSession("{path}")\n'
        "outputs = session.run(None, {each.name: arrays[each.name] for each in session.get_inputs()})  # by name"
    )
