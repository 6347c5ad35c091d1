"""Folders of transformers with a trimmed vocabulary: a smaller configuration and a tokeniser that fits it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from alone import WITHOUT
from test_configured import GQA, MORE, SEQUENCE, TEXT, made

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.hosts.torch.tokenizer import Tokenizer, numbers, resize, with_numbers
from graphprune.pipeline.replay import replay

hf = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
CORPUS = ["Once upon a time there was a little girl named Lily. She loved to play outside in the park."] * 3
USED = "a little girl loved the park and Lily. "
TOKENS = 90
SIZES: dict[str, dict[str, Any]] = {name: dict(**one) for name, one in MORE.items()}  # type: ignore[dict-item]
BART: dict[str, Any] = dict(
    {key: value for key, value in SEQUENCE.items() if "token" not in key}, decoder_start_token_id=2
)
BART["forced_eos_token_id"] = None
IDS = dict(vocab_size=TOKENS, pad_token_id=3, bos_token_id=1, eos_token_id=2)


def tokenizer(kind):
    models, trainers, pre = tokenizers.models, tokenizers.trainers, tokenizers.pre_tokenizers
    made = {"bpe": models.BPE, "bytes": models.BPE, "words": models.WordPiece, "unigram": models.Unigram}[kind]
    made = tokenizers.Tokenizer(made(unk_token="<unk>") if kind in ("bpe", "words") else made())
    if kind == "bytes":
        made.pre_tokenizer, made.decoder = pre.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=pre.ByteLevel.alphabet())
    else:
        made.pre_tokenizer = pre.Whitespace() if kind == "words" else pre.Metaspace()
        made.decoder = tokenizers.decoders.WordPiece() if kind == "words" else tokenizers.decoders.Metaspace()
        name = {"bpe": "BpeTrainer", "words": "WordPieceTrainer", "unigram": "UnigramTrainer"}[kind]
        more = {"unk_token": "<unk>"} if kind == "unigram" else {}
        trainer = getattr(trainers, name)(vocab_size=TOKENS, special_tokens=SPECIAL, show_progress=False, **more)
    made.train_from_iterator(CORPUS, trainer)
    around = tokenizers.processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    made.post_processor = around
    named = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **named)


def folder(name, sizes, kind, path):
    """A network and its tokeniser, and text of some of its tokens."""
    model, own = made(name, sizes), tokenizer(kind)
    model.save_pretrained(path / "in")
    own.save_pretrained(path / "in")
    (path / "text.txt").write_text(USED * 200)
    return model, own


READ = """
import sys, torch, transformers
kind, folder, text, extra = sys.argv[1:]
own = {"trust_remote_code": True} if extra else {}
model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **own)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
ids = tokenizer(text, return_tensors="pt")["input_ids"]
more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
with torch.no_grad():
    out = {"ids": ids, "text": tokenizer.decode(ids[0]), "logits": model(input_ids=ids, **more).logits}
    if model.can_generate():
        out["tokens"] = model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)
torch.save(out, folder + "/out")
assert "graphprune" not in sys.modules
"""


def loaded(kind, path, extra=""):
    subprocess.run([sys.executable, "-c", WITHOUT + READ, kind, str(path), USED, extra], check=True)
    return torch.load(path / "out")


def check(name, sizes, kind, path):
    """Text of kept tokens encodes to the same tokens by new numbers; logits are those of kept rows, greedy tokens those
    of the original in which the others are never chosen."""
    model, own = folder(name, sizes, kind, path)
    artifact = gp.compile(
        f"hf:{path / 'in'}", recipe="vocabulary", data=path / "text.txt", out=path / "out", measure=False
    )
    keep = artifact.program.plan["steps"][0]["keep"]
    config = json.loads((path / "out/config.json").read_text())
    assert config["vocab_size"] == len(keep) < sizes["vocab_size"]
    assert [keep[config[one]] for one in ("pad_token_id", "bos_token_id", "eos_token_id")] == [3, 1, 2]
    out = loaded(name, path / "out")
    ids = own(USED, return_tensors="pt")["input_ids"]
    assert [keep[number] for number in out["ids"][0]] == ids[0].tolist()
    assert out["text"] == own.decode(ids[0])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        whole = model(input_ids=ids, **more).logits[..., keep]
        assert float((out["logits"] - whole).abs().max() / whole.abs().max()) <= 1e-5
        if model.can_generate():
            gone = sorted(set(range(sizes["vocab_size"])) - set(keep))
            greedy = dict(max_new_tokens=16, min_new_tokens=16, do_sample=False, suppress_tokens=gone)
            assert [keep[number] for number in out["tokens"][0]] == model.generate(ids, **greedy)[0].tolist()
    return artifact


def test_a_trimmed_llama_is_loaded_with_its_tokeniser(tmp_path):
    artifact = check("LlamaForCausalLM", dict(GQA, **IDS, tie_word_embeddings=True), "bpe", tmp_path)
    assert any("from_pretrained loads tokens by new numbers" in note for note in artifact.report["notes"])
    assert not any("NOTHING was pruned" in note for note in artifact.report["notes"])


def test_the_vocabulary_is_trimmed_before_a_published_recipe(tmp_path):
    folder("LlamaForCausalLM", dict(GQA, **IDS), "bpe", tmp_path)
    options = dict(recipe="flap", params="0.7x", vocabulary="occurs=2", data=tmp_path / "text.txt", dry_run=True)
    artifact = gp.compile(f"hf:{tmp_path / 'in'}", **options)
    assert [made.name for made in artifact.program.history][:2] == ["vocabulary", "group"]
    assert artifact.program.history[0].text == "vocabulary{occurs=2}"


def test_the_vocabulary_is_trimmed_beside_blocks_that_go(tmp_path):
    """The class with fewer blocks and tokens goes on as the whole one masked does, of which other tokens are never
    chosen."""
    folder("LlamaForCausalLM", dict(GQA, **IDS, num_hidden_layers=4), "bpe", tmp_path)
    recipe = "vocabulary,group,branches{of=block alone=true},score{branches=angular}"
    recipe += ",mask{params=0.75x allocate=global},propagate"
    source, data = f"hf:{tmp_path / 'in'}", tmp_path / "text.txt"
    artifact = gp.compile(source, recipe=recipe, data=data, out=tmp_path / "out", measure=False)
    keep = np.array(artifact.program.plan["steps"][0]["keep"])
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers < 4 and model.config.vocab_size == len(keep) < TOKENS
    begun = np.arange(4, 12)  # no padding
    greedy = dict(max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=None)
    found = model.generate(torch.from_numpy(begun[None]), **greedy)[0].numpy()
    masked = replay(artifact.program.plan, gp.load(source, data=data).host, masked=True).host
    tokens = np.full(masked.example()[0].shape, keep[0])
    tokens[:, :8] = keep[begun]
    for at in range(8, 24):
        tokens[:, at] = keep[masked.run([tokens])[0][0, at - 1, keep].argmax()]
    assert np.array_equal(keep[found], tokens[0, :24])


@pytest.mark.parametrize("alike", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_vocabulary_is_trimmed_beside_widths(alike, tmp_path):
    """Blocks that differ have a class of their own, whose tokens are renumbered all the same."""
    _, own = folder("LlamaForCausalLM", dict(GQA, **IDS), "bpe", tmp_path)
    options = dict(params="0.5x", vocabulary="occurs=2", alike=alike, out=tmp_path / "out", measure=False)
    artifact = gp.compile(f"hf:{tmp_path / 'in'}", data=tmp_path / "text.txt", **options)
    keep = artifact.program.plan["steps"][0]["keep"]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == len(keep)
    assert (tmp_path / "out/modeling_pruned.py").exists() == (not alike)
    out = loaded("LlamaForCausalLM" if alike else "AutoModelForCausalLM", tmp_path / "out", "" if alike else "own")
    ids = own(USED)["input_ids"]
    assert [keep[number] for number in out["ids"][0]] == ids
    padded = np.array([ids + [1] * (artifact.program.host.example()[0].shape[1] - len(ids))] * 2)
    expected = artifact.program.host.run([padded])[0][:1, : len(ids), keep]
    assert float(np.abs(out["logits"].numpy() - expected).max() / np.abs(expected).max()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes, kind",
    [
        ("LlamaForCausalLM", dict(GQA, **IDS), "unigram"),
        ("GPT2LMHeadModel", dict(SIZES["GPT2LMHeadModel"], **dict(IDS, vocab_size=320)), "bytes"),
        ("BertForMaskedLM", dict(TEXT, **IDS), "words"),
        ("RobertaForMaskedLM", dict(TEXT, **IDS), "bpe"),
        ("GemmaForCausalLM", dict(GQA, **IDS, head_dim=8), "bpe"),
        ("OPTForCausalLM", dict(SIZES["OPTForCausalLM"], **IDS), "bpe"),
        ("T5ForConditionalGeneration", dict(SIZES["T5ForConditionalGeneration"], **IDS), "unigram"),
        ("BartForConditionalGeneration", dict(BART, **IDS), "bpe"),
    ],
)  # fmt: skip
def test_more_classes_and_tokenisers(name, sizes, kind, tmp_path):
    check(name, sizes, kind, tmp_path)


# ---- tokenisers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "bytes", "words", "unigram"])
def test_text_of_kept_tokens_encodes_to_the_same_tokens(kind, tmp_path):
    """Of byte pairs also what tokens are made of on the way has to stay; without it some are made no more."""
    own = tokenizer(kind)
    own.save_pretrained(tmp_path)
    known = Tokenizer.read(tmp_path)
    used = {*own(USED)["input_ids"], *known.special}

    def trimmed(keep):
        new = {old: number for number, old in enumerate(sorted(keep))}
        made = tokenizers.Tokenizer.from_str(json.dumps(known.trimmed(new).said))
        return [sorted(keep)[number] for number in made.encode(USED * 3).ids]

    keep = known.within(sorted(used))
    assert trimmed(keep) == own(USED * 3)["input_ids"]
    assert set(keep) >= used
    if kind == "bpe":
        assert trimmed(used) != own(USED * 3)["input_ids"]
        assert known.unknown == 0
    elif kind == "bytes":  # no text is lost: all bytes are there
        assert len(keep) >= 256
    elif kind == "unigram":  # what is unknown costs as much as it did
        assert min(known.model["vocab"][k][1] for k in keep) == min(score for _, score in known.model["vocab"])
        assert len(set(keep) - used) <= 1
    else:
        assert set(keep) == used


def test_a_tokeniser_that_cannot_be_trimmed_is_refused_with_the_reason(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"none")
    with pytest.raises(ModelError, match=r"the tokeniser cannot be made a tokenizer\.json"):
        Tokenizer.read(tmp_path)


def test_tokens_that_configurations_name_are_renumbered():
    config = hf.GenerationConfig(
        bos_token_id=5, eos_token_id=[7, 9], pad_token_id=None, suppress_tokens=[5, 6], forced_decoder_ids=[[1, 9]]
    )
    assert numbers(config) == [5, 6, 7, 9]
    made = with_numbers(config, {5: 0, 7: 1, 9: 2})
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (0, [1, 2], None)
    assert (made.suppress_tokens, made.forced_decoder_ids) == ([0], [[1, 2]])
    assert config.bos_token_id == 5


NEW = {2: 0, 5: 1, 7: 2, 9: 3}


@pytest.mark.parametrize(
    "name, value, expected, stay",
    [
        ("bad_words_ids", [[5, 7], [5, 6], [9]], [[1, 2], [3]], []),
        ("bad_words_ids", [[6]], None, []),
        ("sequence_bias", [[[5, 7], 2.0], [[6], -1.0]], [[[1, 2], 2.0]], []),
        ("sequence_bias", {(5, 7): 2.0, (6,): -1.0}, {(1, 2): 2.0}, []),
        ("force_words_ids", [[5, 7], [9]], [[1, 2], [3]], [5, 7, 9]),
        ("force_words_ids", [[[5, 7], [9]], [[2]]], [[[1, 2], [3]], [[0]]], [2, 5, 7, 9]),
        ("task_to_id", {"transcribe": 9, "translate": 5}, {"transcribe": 3, "translate": 1}, [5, 9]),
        ("lang_to_id", {"<|en|>": 7}, {"<|en|>": 2}, [7]),
        ("forced_decoder_ids", [[1, None], [2, 9]], [[1, None], [2, 3]], [9]),
        ("suppress_tokens", [5, 9], [1, 3], [5, 9]),
        ("begin_suppress_tokens", [7], [2], [7]),
        ("forced_bos_token_id", 7, 2, [7]),
        ("forced_eos_token_id", [5, 7], [1, 2], [5, 7]),
    ],
)
def test_all_that_names_tokens_is_renumbered(name, value, expected, stay):
    """In the configuration and in a part of another; words that can no longer occur are left out."""
    config = hf.GenerationConfig()
    setattr(config, name, value)
    outer = hf.GenerationConfig()
    outer.decoder = config
    for whole, part in ((config, lambda made: made), (outer, lambda made: made.decoder)):
        assert numbers(whole) == stay
        assert getattr(part(with_numbers(whole, NEW)), name) == expected
    assert getattr(config, name) == value


WORDS = {f"w{k}": k for k in range(8)}
PROCESSORS = {
    "bert": lambda made: made.BertProcessing(("w7", 7), ("w2", 2)),
    "roberta": lambda made: made.RobertaProcessing(("w7", 7), ("w2", 2)),
    "template": lambda made: made.TemplateProcessing("w2 $A w7", None, [("w2", 2), ("w7", 7)]),
    "sequence": lambda made: made.Sequence([made.ByteLevel(), made.BertProcessing(("w7", 7), ("w2", 2))]),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_tokens_that_are_put_around_text_are_special(kind):
    """Though nothing says that they are added; one that goes all the same is named."""
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="w0"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = PROCESSORS[kind](tokenizers.processors)
    own.enable_padding(pad_id=6, pad_token="w6")
    known = Tokenizer(json.loads(own.to_str()), {})
    assert known.special == [0, 2, 6, 7]
    keep = [0, 2, 4, 6, 7]
    made = known.trimmed({old: new for new, old in enumerate(keep)})
    found = tokenizers.Tokenizer.from_str(json.dumps(made.said)).encode("w4 w3")
    assert [keep[k] for k in found.ids] == [2, 4, 0, 7]
    with pytest.raises(ModelError, match="puts token 7 around text") as error:
        known.trimmed({0: 0, 2: 1, 4: 2})
    assert error.value.hint == "write vocabulary{keep=7}"


def test_what_is_unknown_costs_what_it_did_among_scores():
    """tokenizers scores it by the lowest score: without `rare`, an unknown x and `yzw` were cheaper than two tokens."""
    vocab = [("<unk>", 0.0), ("xy", -12.0), ("zw", -12.0), ("yzw", -1.0), ("rare", -40.0)]
    own = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=0))
    known = Tokenizer(json.loads(own.to_str()), {})

    def encoded(keep, text):
        made = known.trimmed({old: new for new, old in enumerate(keep)})
        return [keep[k] for k in tokenizers.Tokenizer.from_str(json.dumps(made.said)).encode(text).ids]

    keep = known.within([0, 1, 2, 3])
    assert keep == [0, 1, 2, 3, 4]
    assert encoded(keep, "xyzw") == own.encode("xyzw").ids == [1, 2]
    assert encoded([0, 1, 2, 3], "xyzw") == [0, 3]
    assert known.within([0, 4]) == [0, 4]


def test_only_embeddings_that_were_cut_know_a_new_token_that_pads():
    """One with as many rows as tokens are left is another, and pads with what it did."""

    class Net(torch.nn.Module):
        def __init__(self, tokens):
            super().__init__()
            self.config = hf.PretrainedConfig(pad_token_id=3)
            self.config.vocab_size = tokens
            self.words, self.places = (torch.nn.Embedding(n, 2, padding_idx=2) for n in (tokens, 4))

        def get_input_embeddings(self):
            return self.words

    cut = Net(4)
    cut.config.vocab_size = 9
    resize(cut, Net(9), {1: 0, 2: 1, 3: 2, 5: 3})
    assert (cut.words.padding_idx, cut.places.padding_idx) == (1, 2)
    assert (cut.config.vocab_size, cut.config.pad_token_id) == (4, 2)
