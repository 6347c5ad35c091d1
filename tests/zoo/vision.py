"""Image classifiers."""

from __future__ import annotations

from typing import Any

import transformers as hf

from .catalogue import architecture, images

VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
)


def _enter(name: str, config: str, size: int = 32, **options: Any) -> None:
    """``hf.<config>Config`` and ``hf.<config>ForImageClassification`` with five classes."""

    def make() -> Any:
        return getattr(hf, f"{config}ForImageClassification")(getattr(hf, f"{config}Config")(num_labels=5, **options))

    architecture(name, "vision", make, images(size))


_enter("ViT", "ViT", **VIT)
_enter("DeiT", "DeiT", **VIT)
_enter("BEiT", "Beit", **VIT, use_relative_position_bias=True, use_mask_token=False)
_enter("DINOv2", "Dinov2", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
_enter("Swin", "Swin", embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=32, patch_size=2)
_enter("Swinv2", "Swinv2", embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=32, patch_size=2)
_enter("ConvNeXt", "ConvNext", depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])
_enter("ConvNeXtV2", "ConvNextV2", depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])
_enter("ResNet", "ResNet", depths=[2, 2, 1, 1], hidden_sizes=[16, 24, 32, 40], embedding_size=12)
_enter(
    "RegNet",
    "RegNet",
    depths=[1, 2, 1, 1],
    hidden_sizes=[16, 24, 32, 40],
    embedding_size=12,
    groups_width=8,
    layer_type="y",
)
_enter("MobileNetV1", "MobileNetV1", depth_multiplier=0.25, image_size=32)
_enter("MobileNetV2", "MobileNetV2", depth_multiplier=0.35, image_size=32)
_enter(
    "MobileViT",
    "MobileViT",
    hidden_sizes=[16, 24, 32],
    neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
    num_attention_heads=4,
    image_size=64,
    size=64,
)
_enter("MobileViTV2", "MobileViTV2", width_multiplier=0.25, image_size=64, size=64)
_enter(
    "EfficientNet",
    "EfficientNet",
    width_coefficient=0.25,
    depth_coefficient=0.3,
    hidden_dim=320,
    image_size=32,
)
_enter(
    "PVT",
    "Pvt",
    image_size=32,
    depths=[1, 1, 1, 1],
    hidden_sizes=[16, 16, 32, 32],
    num_attention_heads=[1, 2, 2, 4],
    sequence_reduction_ratios=[2, 2, 1, 1],
    mlp_ratios=[2, 2, 2, 2],
)
_enter(
    "PVTv2",
    "PvtV2",
    image_size=32,
    depths=[1, 1, 1, 1],
    hidden_sizes=[16, 16, 32, 32],
    num_attention_heads=[1, 2, 2, 4],
    sr_ratios=[2, 2, 1, 1],
    mlp_ratios=[2, 2, 2, 2],
)
_enter(
    "PoolFormer", "PoolFormer", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], mlp_ratio=2.0, use_layer_scale=True
)
_enter(
    "LeViT",
    "Levit",
    size=64,
    image_size=64,
    hidden_sizes=[32, 48, 64],
    num_attention_heads=[2, 3, 4],
    depths=[1, 1, 1],
    key_dim=[8, 8, 8],
)
_enter("CvT", "Cvt", embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3])
_enter("BiT", "Bit", embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_groups=4)
_enter(
    "FocalNet",
    "FocalNet",
    image_size=32,
    patch_size=4,
    embed_dim=16,
    hidden_sizes=[16, 32],
    depths=[1, 1],
    focal_levels=[2, 2],
    focal_windows=[3, 3],
)
_enter(
    "Hiera",
    "Hiera",
    image_size=[64, 64],
    size=64,
    embed_dim=16,
    depths=[1, 1, 1],
    num_heads=[1, 2, 4],
    query_stride=[2, 2],
    num_query_pool=2,
    masked_unit_size=[4, 4],
)
_enter("SwiftFormer", "SwiftFormer", depths=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32], image_size=32)
