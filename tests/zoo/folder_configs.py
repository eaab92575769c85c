"""More transformers architectures for the part of folders: kinds that the LayerNorm part does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.zoo.transformers_configs import (
    ARCHITECTURES,
    BART,
    COMMON,
    GROUPED,
    IMAGE,
    LABELS,
    LAYERS,
    SPEECH,
    TEXT,
    VISION,
    VOCABULARY,
    WIDTH,
)


@dataclass(frozen=True)
class Folder:
    """What lies in a folder, and where it cannot be converted, what the sentence says."""

    model: str
    config: str
    settings: dict[str, Any]
    size: Any = None  # of preprocessor_config.json
    refused: str = ""


EXPERTS = {**GROUPED, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
BACKBONE = {"model_type": "resnet", **RESNET, "out_features": ["stage2", "stage3", "stage4"]}
DETECTOR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "num_queries": 7,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "d_model": WIDTH,
    "num_labels": LABELS,
}
REAL_TIME = {
    "d_model": WIDTH,
    "encoder_hidden_dim": WIDTH,
    "encoder_in_channels": [12, 16, 20],
    "decoder_in_channels": [WIDTH, WIDTH, WIDTH],
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": LAYERS,
    "num_queries": 7,
    "num_denoising": 0,
    "num_labels": LABELS,
    "backbone_config": {**BACKBONE, "model_type": "rt_detr_resnet", "num_channels": 3},
}
TOWERS: dict[str, Any] = {
    "text_config": {**COMMON, "projection_dim": 20},
    "vision_config": {**VISION, "projection_dim": 20},
    "projection_dim": 20,
}
DINO = {
    "model_type": "dinov2",
    **VISION,
    "out_features": ["stage1", "stage2"],
    "reshape_hidden_states": False,
}
SQUARE = {"height": 64, "width": 64}

FOLDERS = {
    # text encoders
    "albert": Folder("AlbertForMaskedLM", "AlbertConfig", {**COMMON, "embedding_size": 20}),
    "mpnet": Folder("MPNetModel", "MPNetConfig", COMMON),
    "xlm-roberta": Folder("XLMRobertaForSequenceClassification", "XLMRobertaConfig", COMMON),
    "deberta-v2": Folder(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    "roformer": Folder("RoFormerForTokenClassification", "RoFormerConfig", COMMON),
    "mobilebert": Folder(
        "MobileBertForQuestionAnswering",
        "MobileBertConfig",
        {**COMMON, "embedding_size": 16, "intra_bottleneck_size": WIDTH, "hidden_size": WIDTH},
    ),
    "convbert": Folder("ConvBertModel", "ConvBertConfig", {**COMMON, "embedding_size": WIDTH}),
    "bert-choice": Folder("BertForMultipleChoice", "BertConfig", COMMON),
    "layoutlm": Folder("LayoutLMForTokenClassification", "LayoutLMConfig", COMMON),
    "layoutlmv3": Folder(
        "LayoutLMv3ForTokenClassification",
        "LayoutLMv3Config",
        {**COMMON, "input_size": IMAGE, "patch_size": 8, "coordinate_size": 4, "shape_size": 8},
    ),
    "t5-encoder": Folder(
        "T5EncoderModel",
        "T5Config",
        {**TEXT, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4},
    ),
    # decoders
    "mistral": Folder("MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 8}),
    "qwen2": Folder("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": Folder("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gemma2": Folder("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 8}),
    "gemma3": Folder("Gemma3ForCausalLM", "Gemma3TextConfig", {**GROUPED, "head_dim": 8}),
    "phi3": Folder("Phi3ForCausalLM", "Phi3Config", GROUPED),
    "granite": Folder("GraniteForCausalLM", "GraniteConfig", GROUPED),
    "mamba": Folder(
        "MambaForCausalLM",
        "MambaConfig",
        {**TEXT, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4},
    ),
    # mixtures of experts
    "mixtral": Folder("MixtralForCausalLM", "MixtralConfig", EXPERTS),
    "qwen2-moe": Folder(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "qwen3-moe": Folder("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**EXPERTS, "moe_intermediate_size": 24}),
    "olmoe": Folder("OlmoeForCausalLM", "OlmoeConfig", EXPERTS),
    "gpt-oss": Folder("GptOssForCausalLM", "GptOssConfig", {**EXPERTS, "head_dim": 8, "sliding_window": 8}),
    "deepseek-v2": Folder(
        "DeepseekV2ForCausalLM",
        "DeepseekV2Config",
        {**COMMON, "kv_lora_rank": 12, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
         "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "topk_method": "greedy"},
        refused="complex numbers",
    ),
    "deepseek-v3": Folder(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {**COMMON, "kv_lora_rank": 12, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
         "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    ),
    # encoder-decoder models
    "mbart": Folder("MBartForConditionalGeneration", "MBartConfig", BART),
    "marian": Folder("MarianMTModel", "MarianConfig", BART),
    "t5-classifier": Folder(
        "T5ForTokenClassification",
        "T5Config",
        {**TEXT, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4},
    ),
    # images
    "resnet": Folder("ResNetForImageClassification", "ResNetConfig", RESNET, {"shortest_edge": 64}),
    "mobilevit": Folder(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 12, 12, 16, 20, 24], "image_size": 64},
        {"shortest_edge": 64},
    ),
    "dinov3": Folder("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "num_register_tokens": 2}, SQUARE),
    "vit-mae": Folder("ViTMAEForPreTraining", "ViTMAEConfig", VISION),
    "segformer-seg": Folder(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {**ARCHITECTURES["segformer"].settings, "decoder_hidden_size": 16},
        SQUARE,
    ),
    "depth-anything": Folder(
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        {"backbone_config": {**DINO, "image_size": 64}, "reassemble_hidden_size": WIDTH, "patch_size": 8,
         "neck_hidden_sizes": [12, 16], "fusion_hidden_size": 16, "reassemble_factors": [2, 1],
         "head_in_index": -1, "head_hidden_size": 8},
        SQUARE,
    ),
    "vitpose": Folder(
        "VitPoseForPoseEstimation",
        "VitPoseConfig",
        {"backbone_config": {"model_type": "vitpose_backbone", **VISION, "image_size": [64, 48],
                             "patch_size": [8, 8], "out_features": ["stage2"]}, "num_labels": 5},
        {"height": 64, "width": 48},
    ),
    # detection
    "detr": Folder("DetrForObjectDetection", "DetrConfig", {**DETECTOR, "backbone_config": {**BACKBONE,
                   "out_features": ["stage4"]}}, {"shortest_edge": 64, "longest_edge": 96}),
    "table-transformer": Folder("TableTransformerForObjectDetection", "TableTransformerConfig", {**DETECTOR,
                                "backbone_config": {**BACKBONE, "out_features": ["stage4"]}},
                                {"shortest_edge": 64}),
    "deformable-detr": Folder("DeformableDetrForObjectDetection", "DeformableDetrConfig",
                              {**DETECTOR, "backbone_config": BACKBONE, "num_feature_levels": 3}, SQUARE),
    "rt-detr": Folder("RTDetrForObjectDetection", "RTDetrConfig", REAL_TIME, SQUARE),
    "yolos": Folder("YolosForObjectDetection", "YolosConfig",
                    {**VISION, "image_size": [64, 48], "num_detection_tokens": 5}, {"height": 64, "width": 48}),
    # sound
    "whisper-classifier": Folder("WhisperForAudioClassification", "WhisperConfig",
                                 ARCHITECTURES["whisper"].settings),
    "wav2vec2-bert": Folder("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig",
                            {**COMMON, "feature_projection_input_dim": 20}),
    "speech-to-text": Folder("Speech2TextForConditionalGeneration", "Speech2TextConfig",
                             {**BART, "input_feat_per_channel": 16, "conv_channels": 16,
                              "max_source_positions": 400, "max_target_positions": 40}),
    "unispeech": Folder("UniSpeechForCTC", "UniSpeechConfig", SPEECH),
    "clap": Folder("ClapAudioModelWithProjection", "ClapAudioConfig",
                   {"spec_size": 64, "num_mel_bins": 16, "depths": [1, 1], "num_attention_heads": [2, 4],
                    "patch_embeds_hidden_size": 16, "hidden_size": 32, "window_size": 4, "projection_dim": 12,
                    "enable_fusion": False}),
    # videos
    "timesformer": Folder("TimesformerForVideoClassification", "TimesformerConfig", {**VISION, "num_frames": 4}),
    "vivit": Folder("VivitForVideoClassification", "VivitConfig",
                    {**VISION, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    "vjepa2": Folder("VJEPA2ForVideoClassification", "VJEPA2Config",
                     {**VISION, "frames_per_clip": 4, "crop_size": IMAGE, "pred_hidden_size": 24,
                      "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "tubelet_size": 2}),
    # two towers, and readers of images
    "clip": Folder("CLIPModel", "CLIPConfig", TOWERS),
    "siglip": Folder("SiglipModel", "SiglipConfig", TOWERS),
    "vilt": Folder("ViltForQuestionAnswering", "ViltConfig", {**COMMON, **VISION}, refused="capture"),
    "blip": Folder("BlipForImageTextRetrieval", "BlipConfig",
                   {**TOWERS, "text_config": {**TOWERS["text_config"], "encoder_hidden_size": WIDTH}}),
    "llava": Folder("LlavaForConditionalGeneration", "LlavaConfig",
                    {"vision_config": {"model_type": "clip_vision_model", **VISION},
                     "text_config": {"model_type": "llama", **GROUPED}, "image_token_index": 60}),
    "trocr": Folder("VisionEncoderDecoderModel", "VisionEncoderDecoderConfig",
                    {"encoder": {"model_type": "vit", **VISION},
                     "decoder": {"model_type": "trocr", **TEXT, "d_model": WIDTH, "decoder_layers": LAYERS,
                                 "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
                                 "max_position_embeddings": 40, "is_decoder": True,
                                 "add_cross_attention": True}, "is_encoder_decoder": True}),
    # time series
    "patchtst": Folder("PatchTSTForPrediction", "PatchTSTConfig",
                       {"context_length": 32, "num_input_channels": 3, "patch_length": 8, "patch_stride": 8,
                        "d_model": WIDTH, "num_attention_heads": 4, "num_hidden_layers": LAYERS,
                        "ffn_dim": 48, "prediction_length": 8}),
    "patchtsmixer": Folder("PatchTSMixerForPrediction", "PatchTSMixerConfig",
                           {"context_length": 32, "num_input_channels": 3, "patch_length": 8,
                            "patch_stride": 8, "d_model": 16, "num_layers": LAYERS, "prediction_length": 8}),
    "informer": Folder("InformerModel", "InformerConfig",
                       {"prediction_length": 4, "context_length": 8, "d_model": WIDTH, "encoder_layers": 1,
                        "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
                        "lags_sequence": [1, 2], "num_time_features": 1}, refused="past_time_features"),
}  # fmt: skip
assert COMMON["vocab_size"] == VOCABULARY


def all_folders() -> dict[str, Folder]:
    """Every architecture of this part by name, those of the LayerNorm part last."""
    mine = {name: Folder(a.model, a.config, a.settings) for name, a in ARCHITECTURES.items()}
    return {**FOLDERS, **mine}
