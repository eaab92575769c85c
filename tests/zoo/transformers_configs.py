"""Tiny configs of the transformers architectures, by the name under which the zoo lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WIDTH, HEADS, LAYERS, TOKENS, VOCABULARY = 32, 4, 2, 7, 61
IMAGE, PATCH, LABELS = 32, 8, 5


@dataclass(frozen=True)
class Arch:
    """How to make one network: class names in `transformers`, config fields, inputs, output field."""

    model: str
    config: str
    settings: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    field: str = "logits"


def _ids(length: int = TOKENS, **more: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Token ids above the special ones; two different rows."""

    def make() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, VOCABULARY, (2, length), generator=generator)
        return {"input_ids": ids, **{name: value() for name, value in more.items()}}

    return make


def _floats(name: str, *shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))}


def _both(*makers: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: value for make in makers for name, value in make().items()}


def _renamed(name: str, make: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: next(iter(make().values()))}


TEXT = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    **TEXT,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GPT = {**TEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 40}
BART = {
    **TEXT,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 1,
}
FALCON = {
    **TEXT,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "num_labels": LABELS,
}
CLIP_TEXT = {**COMMON, "projection_dim": 20}
SWIN = {
    "image_size": IMAGE,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": LABELS,
}
SPEECH = {
    **COMMON,
    "conv_dim": (16, 24, 24),
    "conv_kernel": (5, 3, 3),
    "conv_stride": (4, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
STABLE = {**SPEECH, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
_PIXELS = _floats("pixel_values", 3, IMAGE, IMAGE)
_MEL = _floats("input_features", 10, 24)
_WAVE = _floats("input_values", 400)
_DECODER = _renamed("decoder_input_ids", _ids(5))
_SEQ2SEQ = _both(_ids(), _DECODER)

ARCHITECTURES = {
    "gpt2": Arch("GPT2LMHeadModel", "GPT2Config", GPT, _ids()),
    "opt": Arch(
        "OPTForCausalLM",
        "OPTConfig",
        {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": WIDTH},
        _ids(),
    ),
    "opt-350m": Arch(
        "OPTForCausalLM",
        "OPTConfig",
        {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 20, "do_layer_norm_before": False},
        _ids(),
    ),
    "gpt-neo": Arch(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            **COMMON,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
        _ids(),
    ),
    "gpt-neox": Arch("GPTNeoXForCausalLM", "GPTNeoXConfig", COMMON, _ids()),
    "gpt-neox-sequential": Arch(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", {**COMMON, "use_parallel_residual": False}, _ids()
    ),
    "gptj": Arch("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}, _ids()),
    "codegen": Arch("CodeGenForCausalLM", "CodeGenConfig", {**GPT, "rotary_dim": 4}, _ids()),
    "falcon-7b": Arch("FalconForCausalLM", "FalconConfig", FALCON, _ids()),
    "falcon-40b": Arch(
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        _ids(),
    ),
    "falcon-rw": Arch(
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
        _ids(),
    ),
    "phi": Arch("PhiForCausalLM", "PhiConfig", COMMON, _ids()),
    "bloom": Arch(
        "BloomForCausalLM",
        "BloomConfig",
        {**TEXT, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
        _ids(),
    ),
    "bloom-untied": Arch(
        "BloomForCausalLM",
        "BloomConfig",
        {
            **TEXT,
            "hidden_size": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "tie_word_embeddings": False,
        },
        _ids(),
    ),
    "mpt": Arch(
        "MptForCausalLM",
        "MptConfig",
        {**TEXT, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 40},
        _ids(),
    ),
    "starcoder": Arch("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT, _ids()),
    "starcoder2": Arch(
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        {**GROUPED, "tie_word_embeddings": True},
        _ids(),
    ),
    "stablelm": Arch("StableLmForCausalLM", "StableLmConfig", GROUPED, _ids()),
    "persimmon": Arch("PersimmonForCausalLM", "PersimmonConfig", COMMON, _ids()),
    "xglm": Arch(
        "XGLMForCausalLM",
        "XGLMConfig",
        {
            **TEXT,
            "d_model": WIDTH,
            "num_layers": LAYERS,
            "attention_heads": HEADS,
            "ffn_dim": 48,
            "max_position_embeddings": 40,
        },
        _ids(),
    ),
    "biogpt": Arch("BioGptForCausalLM", "BioGptConfig", COMMON, _ids()),
    "nemotron": Arch("NemotronForCausalLM", "NemotronConfig", GROUPED, _ids()),
    "cohere": Arch("CohereForCausalLM", "CohereConfig", GROUPED, _ids()),
    "cohere-qk-norm": Arch(
        "CohereForCausalLM", "CohereConfig", {**GROUPED, "use_qk_norm": True}, _ids()
    ),
    "olmo": Arch("OlmoForCausalLM", "OlmoConfig", GROUPED, _ids()),
    "olmo2": Arch("Olmo2ForCausalLM", "Olmo2Config", GROUPED, _ids()),
    "llama": Arch("LlamaForCausalLM", "LlamaConfig", GROUPED, _ids()),
    "bert": Arch("BertForMaskedLM", "BertConfig", COMMON, _ids()),
    "roberta": Arch("RobertaForMaskedLM", "RobertaConfig", COMMON, _ids()),
    "distilbert": Arch(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {**TEXT, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48},
        _ids(),
    ),
    "electra": Arch(
        "ElectraForMaskedLM", "ElectraConfig", {**COMMON, "embedding_size": 20}, _ids()
    ),
    "bart": Arch("BartForConditionalGeneration", "BartConfig", BART, _SEQ2SEQ),
    "modernbert": Arch(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**COMMON, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2},
        _ids(),
    ),
    "esm": Arch(
        "EsmForMaskedLM",
        "EsmConfig",
        {**COMMON, "mask_token_id": 1, "position_embedding_type": "rotary"},
        _ids(),
    ),
    "pegasus": Arch("PegasusForConditionalGeneration", "PegasusConfig", BART, _SEQ2SEQ),
    "m2m100": Arch("M2M100ForConditionalGeneration", "M2M100Config", BART, _SEQ2SEQ),
    "t5": Arch(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            **TEXT,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
        },
        _SEQ2SEQ,
    ),
    "vit": Arch("ViTForImageClassification", "ViTConfig", VISION, _PIXELS),
    "deit": Arch("DeiTForImageClassification", "DeiTConfig", VISION, _PIXELS),
    "beit": Arch(
        "BeitForImageClassification",
        "BeitConfig",
        {**VISION, "use_relative_position_bias": True, "layer_scale_init_value": 0.1},
        _PIXELS,
    ),
    "dinov2": Arch("Dinov2ForImageClassification", "Dinov2Config", VISION, _PIXELS),
    "dinov2-registers": Arch(
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        VISION,
        _PIXELS,
    ),
    "clip-vision": Arch(
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        {**VISION, "projection_dim": 20},
        _PIXELS,
        "image_embeds",
    ),
    "clip-text": Arch(
        "CLIPTextModelWithProjection", "CLIPTextConfig", CLIP_TEXT, _ids(), "text_embeds"
    ),
    "siglip-vision": Arch(
        "SiglipVisionModel", "SiglipVisionConfig", VISION, _PIXELS, "pooler_output"
    ),
    "siglip-text": Arch("SiglipTextModel", "SiglipTextConfig", COMMON, _ids(), "pooler_output"),
    "ast": Arch(
        "ASTForAudioClassification",
        "ASTConfig",
        {**VISION, "num_mel_bins": 24, "max_length": 40},
        _floats("input_values", 40, 24),
    ),
    "videomae": Arch(
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        {**VISION, "num_frames": 4},
        _floats("pixel_values", 4, 3, IMAGE, IMAGE),
    ),
    "swin": Arch("SwinForImageClassification", "SwinConfig", SWIN, _PIXELS),
    "swinv2": Arch("Swinv2ForImageClassification", "Swinv2Config", SWIN, _PIXELS),
    "convnext": Arch(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {
            "num_stages": 2,
            "hidden_sizes": [16, 24],
            "depths": [2, 2],
            "image_size": IMAGE,
            "num_labels": LABELS,
        },
        _PIXELS,
    ),
    "segformer": Arch(
        "SegformerForImageClassification",
        "SegformerConfig",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 24],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "num_labels": LABELS,
        },
        _PIXELS,
    ),
    "whisper": Arch(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**BART, "num_mel_bins": 10, "max_source_positions": 12, "max_target_positions": 40},
        _both(_MEL, _DECODER),
    ),
    "whisper-encoder": Arch(
        "WhisperModel",
        "WhisperConfig",
        {**BART, "num_mel_bins": 10, "max_source_positions": 12, "max_target_positions": 40},
        _both(_MEL, _DECODER),
        "encoder_last_hidden_state",
    ),
    "wav2vec2": Arch("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, _WAVE),
    "wav2vec2-stable": Arch("Wav2Vec2ForCTC", "Wav2Vec2Config", STABLE, _WAVE),
    "hubert-stable": Arch("HubertForCTC", "HubertConfig", STABLE, _WAVE),
}
