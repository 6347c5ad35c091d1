"""Detectors, segmenters, depth, audio, text with images, video, and a diffusion U-Net."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from .catalogue import architecture, images, waves
from .unet import UNet

VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
)
RESNET = dict(embedding_size=12, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1])
BOXES = ("logits", "pred_boxes")


def _yolos() -> Any:
    options = {**VIT, "image_size": [32, 32]}
    return hf.YolosForObjectDetection(hf.YolosConfig(num_labels=5, **options, num_detection_tokens=6))


def _detr() -> Any:
    config = hf.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=hf.ResNetConfig(**RESNET, out_features=["stage4"]),
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_labels=5,
    )
    return hf.DetrForObjectDetection(config)


def _rt_detr() -> Any:
    config = hf.RTDetrConfig(
        backbone_config=hf.RTDetrResNetConfig(
            **RESNET, layer_type="bottleneck", out_features=["stage2", "stage3", "stage4"]
        ),
        encoder_hidden_dim=32,
        encoder_in_channels=[24, 32, 40],
        encoder_ffn_dim=48,
        encoder_attention_heads=4,
        d_model=32,
        num_queries=8,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=40,
        decoder_layers=2,
        decoder_attention_heads=4,
        num_denoising=0,
        num_labels=5,
    )
    return hf.RTDetrForObjectDetection(config)


def _segformer() -> Any:
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=24,
        mlp_ratios=[2, 2, 2, 2],
        num_labels=5,
    )
    return hf.SegformerForSemanticSegmentation(config)


def _upernet() -> Any:
    backbone = hf.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = hf.UperNetConfig(backbone_config=backbone, hidden_size=24, num_labels=5, auxiliary_in_channels=24)
    return hf.UperNetForSemanticSegmentation(config)


def _mask2former() -> Any:
    backbone = hf.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = hf.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=48,
        num_queries=6,
        num_labels=5,
    )
    return hf.Mask2FormerForUniversalSegmentation(config)


def _dpt() -> Any:
    config = hf.DPTConfig(
        **dict(VIT, num_hidden_layers=4, patch_size=4),
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=24,
    )
    return hf.DPTForDepthEstimation(config)


def _depth_anything() -> Any:
    backbone = hf.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = hf.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=4,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=24,
        head_hidden_size=16,
    )
    return hf.DepthAnythingForDepthEstimation(config)


def _glpn() -> Any:
    config = hf.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
    )
    return hf.GLPNForDepthEstimation(config)


def _swin2sr() -> Any:
    config = hf.Swin2SRConfig(
        image_size=16, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4, upscale=2, mlp_ratio=2.0
    )
    return hf.Swin2SRForImageSuperResolution(config)


architecture("YOLOS", "detector", _yolos, images(), *BOXES)
architecture("DETR", "detector", _detr, images(64), *BOXES)
architecture("RT-DETR", "detector", _rt_detr, images(64), *BOXES)
architecture("SegFormer", "segmenter", _segformer, images(64))
architecture("UperNet (ConvNeXt)", "segmenter", _upernet, images(64))
architecture("Mask2Former", "segmenter", _mask2former, images(64), "class_queries_logits", "masks_queries_logits")
architecture("DPT", "depth", _dpt, images(), "predicted_depth")
architecture("Depth Anything", "depth", _depth_anything, images(), "predicted_depth")
architecture("GLPN", "depth", _glpn, images(64), "predicted_depth")
architecture("Swin2SR", "super-resolution", _swin2sr, images(16), "reconstruction")

AUDIO = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(16, 24, 32),
    conv_stride=(5, 4, 2),
    conv_kernel=(10, 4, 3),
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    vocab_size=12,
    num_feat_extract_layers=3,
)


def _whisper() -> Any:
    config = hf.WhisperConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        num_mel_bins=10,
        max_source_positions=16,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return hf.WhisperForConditionalGeneration(config)


def _ast() -> Any:
    options = {key: value for key, value in VIT.items() if key != "image_size"}
    config = hf.ASTConfig(**options, max_length=32, num_mel_bins=16, frequency_stride=8, time_stride=8, num_labels=5)
    return hf.ASTForAudioClassification(config)


def _clip(kind: str) -> Any:
    text = dict(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=20,
        eos_token_id=2,
    )
    config = getattr(hf, f"{kind}Config")(text_config=text, vision_config=dict(VIT, projection_dim=20))
    config.projection_dim = 20
    return getattr(hf, f"{kind}Model")(config)


def _text_and_image() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 50, (2, 7)), "pixel_values": torch.randn(2, 3, 32, 32)}


def _video_mae() -> Any:
    return hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**VIT, num_frames=4, tubelet_size=2, num_labels=5))


architecture("Wav2Vec2", "audio", lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**AUDIO)), waves())
architecture("HuBERT", "audio", lambda: hf.HubertForCTC(hf.HubertConfig(**AUDIO)), waves())
architecture("WavLM", "audio", lambda: hf.WavLMForCTC(hf.WavLMConfig(**AUDIO)), waves())
architecture(
    "Whisper",
    "audio",
    _whisper,
    lambda: {"input_features": torch.randn(2, 10, 32), "decoder_input_ids": torch.randint(3, 50, (2, 5))},
    use_cache=False,
)
architecture("AST", "audio", _ast, lambda: {"input_values": torch.randn(2, 32, 16)})
architecture("CLIP", "text and image", lambda: _clip("CLIP"), _text_and_image, "logits_per_image")
architecture("SigLIP", "text and image", lambda: _clip("Siglip"), _text_and_image, "logits_per_image")
architecture("VideoMAE", "video", _video_mae, lambda: {"pixel_values": torch.randn(2, 4, 3, 32, 32)})
architecture(
    "Diffusion U-Net",
    "diffusion",
    UNet,
    lambda: {"x": torch.randn(2, 4, 16, 16), "time": torch.tensor([3, 7]), "context": torch.randn(2, 5, 20)},
)
