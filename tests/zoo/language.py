"""Text encoders, decoders, and encoders with decoders."""

from __future__ import annotations

from typing import Any

import transformers as hf

from .catalogue import architecture, pair, tokens

ENCODER = dict(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=24,
    num_labels=5,
)
DECODER = dict(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=24,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GQA = dict(DECODER, num_key_value_heads=2)


def _encoder(name: str, config: str, **options: Any) -> None:
    def make() -> Any:
        return getattr(hf, f"{config}ForSequenceClassification")(getattr(hf, f"{config}Config")(**options))

    architecture(name, "text encoder", make, tokens())


def _decoder(name: str, config: str, model: str = "ForCausalLM", family: str = "decoder", **options: Any) -> None:
    def make() -> Any:
        return getattr(hf, f"{config}{model}")(getattr(hf, f"{config}Config")(**options))

    architecture(name, family, make, tokens(), use_cache=False)


_encoder("BERT", "Bert", **ENCODER)
_encoder("RoBERTa", "Roberta", **ENCODER)
_encoder("DistilBERT", "DistilBert", vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=48, num_labels=5)
_encoder("ELECTRA", "Electra", **ENCODER, embedding_size=20)
_encoder("ALBERT (one layer, twice)", "Albert", **ENCODER, embedding_size=20)
_encoder("DeBERTa", "Deberta", **ENCODER, relative_attention=True, pos_att_type="c2p|p2c")
_encoder("DeBERTaV2", "DebertaV2", **ENCODER, relative_attention=True, pos_att_type="c2p|p2c")
_encoder("MPNet", "MPNet", **ENCODER)
_encoder("ModernBERT", "ModernBert", **ENCODER, pad_token_id=0, cls_token_id=1, sep_token_id=2)
_encoder("MobileBERT", "MobileBert", **ENCODER, embedding_size=20, intra_bottleneck_size=16, true_hidden_size=16)
_encoder("SqueezeBERT", "SqueezeBert", **ENCODER, embedding_size=32)
_encoder("ConvBERT", "ConvBert", **ENCODER, embedding_size=32, head_ratio=2, conv_kernel_size=3)
_encoder("RoFormer", "RoFormer", **ENCODER)

_decoder("GPT-2", "GPT2", "LMHeadModel", vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=1)
_decoder("GPT-NeoX", "GPTNeoX", **DECODER)
_decoder("GPT-J", "GPTJ", vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=24, rotary_dim=4)
_decoder("Llama (GQA)", "Llama", **GQA)
_decoder("Mistral (GQA)", "Mistral", **GQA, sliding_window=8)
_decoder("Qwen2 (GQA)", "Qwen2", **GQA)
_decoder("Qwen3 (GQA)", "Qwen3", **GQA, head_dim=12)
_decoder("Gemma (MQA)", "Gemma", **dict(DECODER, num_key_value_heads=1), head_dim=8)
_decoder("Gemma2 (GQA)", "Gemma2", **GQA, head_dim=8)
_decoder("Phi", "Phi", **DECODER)
_decoder("Phi-3 (packed)", "Phi3", **GQA)
_decoder(
    "OPT",
    "OPT",
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    ffn_dim=48,
    max_position_embeddings=24,
    word_embed_proj_dim=32,
)
_decoder("BLOOM", "Bloom", vocab_size=50, hidden_size=32, n_layer=2, n_head=4)
_decoder("Falcon (MQA)", "Falcon", vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
_decoder("StableLM", "StableLm", **GQA)
_decoder(
    "Mixtral (MoE)",
    "Mixtral",
    family="mixture of experts",
    **GQA,
    num_local_experts=4,
    experts_implementation="batched_mm",
)
_decoder(
    "Qwen2-MoE",
    "Qwen2Moe",
    family="mixture of experts",
    **GQA,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=20,
    shared_expert_intermediate_size=24,
    experts_implementation="batched_mm",
)


def _t5(**options: Any) -> Any:
    config = hf.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **options
    )
    return hf.T5ForConditionalGeneration(config)


def _bart() -> Any:
    config = hf.BartConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        max_position_embeddings=24,
    )
    return hf.BartForConditionalGeneration(config)


architecture("T5", "encoder-decoder", _t5, pair(), use_cache=False)
architecture("Flan-T5 (gated)", "encoder-decoder", lambda: _t5(feed_forward_proj="gated-gelu"), pair(), use_cache=False)
architecture("BART", "encoder-decoder", _bart, pair(), use_cache=False)
