"""Files from elsewhere: damaged, or made to do harm. An error of graphprune's, or a right answer.

Each is read in a process that is watched for time, memory and what it writes; see fuzz/worker.py.
``python -m tests.fuzz.mutate`` reads more of them.
"""

from __future__ import annotations

import io
import pickle
import random
import subprocess
import sys
import time
import zipfile
from collections import Counter
from subprocess import PIPE

import limits
import onnx
import pytest
import torch

from fuzz import attacks, documents, mutate, structure, worker
from fuzz.worker import read_all
from graphprune.cost.latency import table_file
from graphprune.errors import ModelError
from graphprune.hosts.torch.archive import check_archive
from graphprune.hosts.torch.size_expressions import is_size


def ends(cases: list[str], jobs: int = 2) -> Counter[str]:
    results = list(read_all(cases, jobs))
    wrong = [f"{r['case']}: {r['end']} {r.get('said', '')}" for r in results if r["end"].startswith("WRONG")]
    assert not wrong, "\n".join(wrong)
    assert sorted(r["case"] for r in results) == sorted(cases)
    return Counter(r["end"] for r in results)


def test_what_is_made_to_do_harm_is_refused():
    cases = mutate.attack_cases()
    assert len(cases) > 80
    assert ends(cases) == {"refused": len(cases)}


def test_what_is_damaged_is_refused_or_right():
    cases = [case for case in mutate.cases(180) if "attack" not in case][:60]
    found = ends(cases)
    assert found["refused"] > 20
    assert found["right"] > 5


def test_every_mutation_of_structure_changes_the_graph():
    sound = mutate.onnx_file(0)
    for mutation in structure.MUTATIONS:
        changed = 0
        for seed in range(20):
            model = onnx.ModelProto.FromString(sound)
            mutation(model.graph, random.Random(seed))
            changed += model.SerializeToString() != sound
        assert changed > 5, mutation.__name__


def test_a_table_with_a_latency_that_makes_no_sense_is_noticed(tmp_path, monkeypatch):
    """What is checked of tables has teeth: where a reader lets everything in, a damaged one is wrong."""
    path = tmp_path / "table.jsonl"
    path.write_bytes(documents.table_file().replace(b'"median_ms": 0.1', b'"median_ms": Infinity', 1))
    documents.use_table(path)
    path.write_bytes(documents.table_file().replace(b'"median_ms": 0.1', b'"median_ms": Infinity', 1))
    real = table_file._is
    monkeypatch.setattr(table_file, "_is", lambda value, kind: kind is float or real(value, kind))
    with pytest.raises(AssertionError):
        documents.use_table(path)


def test_what_does_not_end_is_ended_by_its_processor_time(tmp_path):
    """By the kernel, however long the clock says that took; what only waits is left to wait."""
    code = "import sys, time; sys.stdin.readline() == 'wait\\n' and time.sleep(1.5)\nwhile True: pass"
    (tmp_path / worker.SAID).touch()
    for case, least in (("spin", 0.9), ("wait", 2.4)):
        endless = subprocess.Popen(
            [sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True, preexec_fn=limits.bounded(1)
        )
        start = time.monotonic()
        assert worker._ask(endless, case, tmp_path)["end"] == "WRONG: hangs"
        assert time.monotonic() - start > least


@pytest.mark.slow
def test_a_thousand_more():
    cases = [case for case in mutate.cases(1200) if "attack" not in case]
    assert ends(cases)["right"] > 100


def test_the_payloads_are_live(tmp_path, monkeypatch):
    """Read as torch would read it by itself, the same file does run what is in it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt2"
    path.write_bytes(attacks.PT2_ATTACKS["legacy_weights"](mutate.pt2_file(0)))
    with pytest.raises(ModelError, match=r"model\.pt does not load safely"):
        check_archive(path)
    assert not (tmp_path / attacks.MARKER).exists()
    with pytest.raises(Exception):  # noqa: B017  whatever torch makes of what it unpickled
        torch.export.load(path)
    assert (tmp_path / attacks.MARKER).exists()


def test_sizes_in_programs_are_code_that_torch_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt2"
    path.write_bytes(attacks.PT2_ATTACKS["size_that_is_code_call"](mutate.pt2_file(0)))
    with pytest.raises(ModelError, match="is no size"):
        check_archive(path)
    with pytest.raises(Exception):  # noqa: B017  it is no size after all
        torch.export.load(path)
    assert (tmp_path / attacks.MARKER).exists()


def test_a_program_as_torch_saves_it_is_let_in(tmp_path):
    """Sizes of every kind that torch.export writes."""

    class Sizes(torch.nn.Module):
        def forward(self, x):
            y = x[:, ::2].reshape(-1, x.shape[2] // 2)
            z = torch.nn.functional.interpolate(x[None], scale_factor=0.5)
            return y, z, x.shape[0] ** 2, torch.cat([x, x], 0).view(2, -1), x.new_zeros(max(x.shape[0], x.shape[1]))

    auto = dict.fromkeys(range(3), torch.export.Dim.AUTO)
    exported = torch.export.export(Sizes(), (torch.randn(4, 6, 8),), dynamic_shapes=(auto,))
    torch.export.save(exported, tmp_path / "model.pt2")
    check_archive(tmp_path / "model.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "8*s0 + 1",
        "Symbol('s77', positive=True, integer=True)",
        "FloorDiv(Add(Symbol('s27', positive=True, integer=True), Integer(1)), Integer(2))",
        "TruncToInt(Mul(Float('0.5', precision=53), ToFloat(Symbol('s53', positive=True, integer=True))))",
        "Pow(Symbol('s77', positive=True, integer=True), Integer(2))",
    ],
)
def test_a_size(text):
    assert is_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "__import__('os').system('true')",
        "eval('1')",
        "Symbol('s0').__class__",
        "Symbol('__import__')",
        "[s0 for s0 in s1]",
        "(lambda: s0)()",
        "f'{s0}'",
        "'s0'",
        "9**9**9**9",
        "Pow(Integer(10), Integer(1000000000))",
        "Float('0.5', precision=1000000000)",
        "factorial(100000000)",
        "(" * 5000 + "s0" + ")" * 5000,
        "+".join(["s0"] * 20000),
        "s0; s1",
        "s0 if s1 else s2",
        "s0 := 1",
    ],
)
def test_no_size(text):
    assert not is_size(text)


def test_an_archive_with_a_member_more_is_refused(tmp_path):
    out = io.BytesIO(mutate.pt2_file(0))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("archive/data/weights/weight_0.pkl", pickle.dumps(attacks.Payload()))
    path = tmp_path / "model.pt2"
    path.write_bytes(out.getvalue())
    with pytest.raises(ModelError, match=r"`archive/data/weights/weight_0.pkl` has no place in a .pt2 file"):
        check_archive(path)
