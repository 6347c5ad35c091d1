"""The vocabulary trimmed: what stays is as it was, what goes is unknown and has a constant logit, what cannot be is
refused."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from assert_pass import assert_pass, graph_text
from nets import randomise
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.cost.static import params
from graphprune.errors import DataError, ModelError, RecipeError, VerificationError
from graphprune.ir.program import Program
from graphprune.pipeline.compare import relative
from graphprune.pipeline.plan_file import read_plan, write_plan
from graphprune.pipeline.replay import replay
from graphprune.pipeline.vocabulary import Vocabulary

TOKENS, WIDTH = 20, 6
SEEN = (2, 3, 5, 7, 11, 13)
DATA = np.random.default_rng(0).choice(SEEN, (16, 5))
ANY = np.random.default_rng(1).integers(0, TOKENS, (4, 5))
TOLERANCE = {"torch": 1e-12, "onnx": 1e-5}
NETS = ("untied", "tied", "headless", "biased", "capped")
hosts = pytest.mark.parametrize("host", ("torch", "onnx"))


class Language(nn.Module):
    """An embedding, a residual branch, a head: tied or not, with a bias or none, behind it what heads have behind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=kind == "biased")
        self.register_buffer("late", torch.randn(1, TOKENS))
        if kind == "tied":
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.down(F.relu(self.up(x)))
        if self.kind == "headless":
            return x
        x = self.head(x)
        return x if self.kind == "tied" else F.log_softmax(torch.tanh(x / 5) * 5 + self.late, -1)


@cache
def module(kind: str) -> Language:
    torch.manual_seed(0)
    made = Language(kind).double().eval()
    randomise(made)
    if kind == "tied":
        made.head.weight = made.embed.weight
    return made


@cache
def program(net: str) -> Program:
    kind, host = net.split()
    ids = torch.from_numpy(ANY[:2])
    if host == "torch":
        return gp.load(module(kind), (ids,), data=DATA)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        torch.manual_seed(0)
        single = randomise(Language(kind).eval())
        single.load_state_dict(module(kind).state_dict())
        gp.load(single, (ids,)).host.save_onnx(path)
        return gp.load(path, data=DATA)


def logits(made: Language, ids: Tensor) -> Tensor:
    x = made.embed(ids)
    return made.head(x + made.down(F.relu(made.up(x))))


@pytest.mark.parametrize("kind", NETS)
@hosts
def test_what_is_left_is_what_the_formula_says(kind: str, host: str) -> None:
    """Removed tokens are read as the unknown one, and behind the head is the mean of its outputs over the data."""
    given, made = program(f"{kind} {host}"), module(kind)
    done = gp.run("vocabulary{unknown=3 keep=0-1}", given)
    keep = sorted({*SEEN, 0, 1})
    with torch.no_grad():
        ids = torch.from_numpy(np.where(np.isin(ANY, keep), ANY, 3))
        if kind == "headless":
            expected = made(ids)
        else:
            mean = logits(made, torch.from_numpy(DATA)).mean((0, 1)).float().double()
            stays = torch.from_numpy(np.isin(np.arange(TOKENS), keep))
            expected = torch.where(stays, logits(made, ids), mean)
            if kind != "tied":
                expected = F.log_softmax(torch.tanh(expected / 5) * 5 + made.late, -1)
    assert relative(expected.numpy(), done.host.run([ANY])[0]) <= TOLERANCE[host]
    read = [value for value in done.graph.parameters.values() if done.graph.users(value)]
    rows = sum(value.shape in ((len(keep), WIDTH), (WIDTH, len(keep))) for value in read)
    assert rows == (1 if kind in ("tied", "headless") else 2)
    assert params(done.graph, done.host)() < params(given.graph, given.host)()


@pytest.mark.parametrize("kind", NETS)
@hosts
def test_it_is_proven_with_what_is_pruned_after_it(kind: str, host: str) -> None:
    """And the plan, written and read, does the same again; on inputs of kept tokens kept logits are the original's."""
    done = gp.run("vocabulary{unknown=3 fill=-7.5},group,score,mask{params=0.6x},propagate", program(f"{kind} {host}"))
    checks = {check.what.partition(",")[0] for check in gp.verify(done)}
    assert {"pruned = masked", "opened = original"} <= checks
    with tempfile.TemporaryDirectory() as folder:
        write_plan(Path(folder), done.plan)
        again = replay(read_plan(Path(folder) / "plan.json"), done.source)
    assert all(np.array_equal(again.host.parameter(n), done.host.parameter(n)) for n in done.graph.parameters)
    masked = replay(done.plan, done.source, masked=True).host
    assert relative(masked.run([ANY])[0], done.host.run([ANY])[0]) <= TOLERANCE[host] or kind != "tied"


@pytest.mark.parametrize("wrong", ["rows", "order", "unknown", "fill"])
@hosts
def test_the_proof_fails_where_it_is_done_wrong(wrong: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = program(f"untied {host}")
    done = gp.run("vocabulary{unknown=3},group,score,mask{channels=0.9x},propagate", given)
    edit = done.plan.of(Vocabulary)[0]
    apply = Vocabulary.apply
    others = {
        "rows": replace(edit, keep=(2, 3, 5, 7, 11, 14)),
        "order": replace(edit, keep=(2, 3, 5, 7, 13, 11)),
        "unknown": replace(edit, unknown=5),
        "fill": replace(edit, fill=edit.fill + 0.01),
    }
    monkeypatch.setattr(Vocabulary, "apply", lambda self, one: apply(others[wrong], one))
    with pytest.raises(VerificationError):
        gp.verify(done)


@hosts
def test_kept_logits_are_as_they_were_and_removed_ones_are_never_chosen(host: str) -> None:
    given = program(f"tied {host}")
    done = gp.run("vocabulary{fill=-inf unknown=3}", given)
    found, expected = done.host.run([DATA])[0], given.host.run([DATA])[0]
    gone = np.setdiff1d(np.arange(TOKENS), SEEN)
    assert relative(expected[..., list(SEEN)], found[..., list(SEEN)]) <= TOLERANCE[host]
    assert np.isneginf(found[..., gone]).all()
    gp.verify(gp.run("group,score,mask{channels=0.9x},propagate", done))


def test_what_stays() -> None:
    """As often as asked for, or so many; what is asked to stay does; without an unknown token the most frequent."""
    given = program("tied torch")
    counts = np.bincount(DATA.ravel(), minlength=TOKENS)
    best = int(counts.argmax())

    def kept(text: str) -> Vocabulary:
        return gp.run(text, given).plan.of(Vocabulary)[0]

    least = int(np.sort(counts[counts > 0])[1])
    assert kept(f"vocabulary{{occurs={least}}}").keep == tuple(np.flatnonzero(counts >= least))
    assert kept("vocabulary").unknown == best
    by_count = sorted(range(TOKENS), key=lambda token: (-counts[token], token))
    assert kept("vocabulary{size=3}").keep == tuple(sorted(by_count[:3]))
    assert kept("vocabulary{size=0.2x keep=18-19}").keep == tuple(sorted([18, 19, *by_count[:2]]))
    with pytest.raises(RecipeError, match="size=1 are 1 tokens, and 3 have to stay"):
        kept("vocabulary{size=1 keep=18,19}")
    for text, last in (("keep=20", 20), ("keep=0-999999999", 999999999), ("unknown=20", 20)):
        with pytest.raises(RecipeError, match=f"there is no token {last}, of 20") as error:
            kept(f"vocabulary{{{text}}}")
        assert error.value.hint == "they have numbers 0 to 19"


@pytest.mark.parametrize("number", [-100, -1, TOKENS])
@hosts
def test_numbers_in_the_data_that_are_of_no_token_are_refused(number: int, host: str) -> None:
    data = DATA.copy()
    data[9, 2] = number
    given = replace(program(f"tied {host}"), data=((data,),))
    with pytest.raises(DataError, match=rf"input `ids` hold {number}, which is no token: they have numbers 0 to 19"):
        gp.run("vocabulary{fill=0}", given)


def test_notes_say_what_of_held_out_samples_is_not_covered() -> None:
    """Token 19 is in the eighth sample alone: it stays, and what the others would have left out is told."""
    data = DATA.copy()
    data[7, :2] = 19
    given = gp.load(module("tied"), (torch.from_numpy(ANY[:2]),), data=data)
    done = gp.run("vocabulary", given)
    assert 19 in done.plan.of(Vocabulary)[0].keep
    assert any("20 % of the tokens of held-out samples (10 tokens" in note for note in done.notes)
    few = gp.load(module("tied"), (torch.from_numpy(ANY[:2]),), data=data[:4])
    assert any("fewer than 8 samples" in note for note in gp.run("vocabulary", few).notes)


def test_where_every_token_occurs_nothing_goes() -> None:
    given = gp.load(module("tied"), (torch.from_numpy(ANY[:2]),), data=np.arange(TOKENS).reshape(4, 5))
    done = gp.run("vocabulary", given)
    assert not done.plan.edits
    assert "all 20 tokens stay" in done.notes[-1]


class Read(nn.Module):
    """The embedding is read otherwise too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.embed, self.other = how, nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 9) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        if self.how == "sum":
            return self.embed(ids) + self.embed.weight.sum()
        if self.how == "none":
            return self.embed(torch.cumsum(ids, 1))
        if self.how == "two":
            return self.embed(ids) + self.other(ids)
        return self.heads[0](self.embed(ids)) + self.heads[1](self.embed(ids))


@pytest.mark.parametrize(
    "how, message",
    [
        ("sum", "reads `embed.weight`, which has a row for each token"),
        ("none", "no embedding is read by numbers of an input"),
        ("two", "several embeddings have 9 rows"),
        ("heads", "several layers have an output for each of the 9 rows of `embed.weight`"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(how: str, message: str) -> None:
    ids = np.array([[0, 1], [1, 1]])
    given = gp.load(Read(how), (torch.from_numpy(ids),), data=ids)
    with pytest.raises(ModelError, match=message):
        gp.run("vocabulary", given)


def test_one_of_several_embeddings_can_be_named() -> None:
    ids = np.array([[0, 1], [1, 1]])
    given = gp.load(Read("two"), (torch.from_numpy(ids),), data=ids)
    done = gp.run("vocabulary{embedding=other.weight}", given)
    assert [len(done.host.parameter(name)) for name in ("embed.weight", "other.weight")] == [9, 2]
    with pytest.raises(ModelError, match=r"no embedding `up\.weight` is read by numbers of an input"):
        gp.run("vocabulary{embedding=up.weight}", given)


@pytest.mark.parametrize(
    "text, message",
    [
        ("occurs=0", "occurs=0 lets everything stay"),
        ("keep=a", "keep=a are no numbers of tokens"),
        ("keep=,,", "keep=,, are no numbers of tokens"),
        ("keep=1,9-3", "keep=9-3 are no tokens\n  hint: write keep=3-9"),
        ("unknown=-7", "unknown=-7 is no number of a token\n  hint: give 0 or more"),
        ("size=5 occurs=2", "size=5 and occurs=2 are two ways to say what stays\n  hint: give one"),
        ("fill=low", "fill=low is no logit"),
        ("fill=inf", "fill=inf is no logit"),
        ("size=2.5x", "size=2.5x is no share or count"),
        ("size=0", "size=0 is no share or count"),
    ],
)
def test_options_that_say_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        gp.run(f"vocabulary{{{text}}}", program("tied torch"))


def test_vocabulary() -> None:
    """Where all tokens stay it is as it was; behind a table no numbers of an input are looked up, and it is trimmed
    once."""
    given = program("tied torch")
    text = graph_text(given)
    assert_pass("vocabulary{unknown=3 fill=-1 keep=0-19}", given, before=text, after=text)
    done = gp.run("vocabulary{unknown=3 fill=-1}", given)
    with pytest.raises(ModelError, match="no embedding is read by numbers of an input"):
        gp.run("vocabulary{unknown=3 fill=-1}", done)
