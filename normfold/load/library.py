"""What of torch and of the model libraries a pickled network may be made of, by name.

A class or function that is not named here is admitted only by its form (see `normfold.load.rules`).
"""

from __future__ import annotations

from normfold.load.records import Name

# Libraries whose modules, enums and configurations are admitted where their form is that of data.
LIBRARIES = ("torchvision", "timm", "transformers", "normfold")

# Layer classes of torch: home, then names. Not here: what makes code of text (torch.fx, torch.jit), what looks
# attributes up for others (OptimizedModule), what is materialised by a call (Lazy...).
_LAYERS = """
    activation CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish
    activation MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus
    activation Softshrink Softsign Tanh Tanhshrink Threshold
    adaptive AdaptiveLogSoftmaxWithLoss
    batchnorm BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm
    channelshuffle ChannelShuffle
    container ModuleDict ModuleList ParameterDict ParameterList Sequential
    conv Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    distance CosineSimilarity PairwiseDistance
    dropout AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout
    flatten Flatten Unflatten
    fold Fold Unfold
    instancenorm InstanceNorm1d InstanceNorm2d InstanceNorm3d
    linear Bilinear Identity Linear NonDynamicallyQuantizableLinear
    loss BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss
    loss HuberLoss KLDivLoss L1Loss MSELoss MarginRankingLoss MultiLabelMarginLoss MultiLabelSoftMarginLoss
    loss MultiMarginLoss NLLLoss PoissonNLLLoss SmoothL1Loss SoftMarginLoss TripletMarginLoss
    module Module
    normalization CrossMapLRN2d GroupNorm LayerNorm LocalResponseNorm RMSNorm
    padding CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d
    padding ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d
    padding ZeroPad3d
    pixelshuffle PixelShuffle PixelUnshuffle
    pooling AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
    pooling AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d FractionalMaxPool2d FractionalMaxPool3d LPPool1d
    pooling LPPool2d LPPool3d MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d
    rnn GRU GRUCell LSTM LSTMCell RNN RNNCell
    sparse Embedding EmbeddingBag
    transformer Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer
    upsampling Upsample UpsamplingBilinear2d UpsamplingNearest2d
"""
LAYERS = {
    Name(f"torch.nn.modules.{home}", name)
    for home, *names in map(str.split, _LAYERS.strip().splitlines())
    for name in names
} | {
    Name("torch.nn.parallel.data_parallel", "DataParallel"),
    Name("torch.ao.nn.quantized.modules.functional_modules", "FloatFunctional"),
    Name("torch.ao.quantization.stubs", "DeQuantStub"),
    Name("torch.ao.quantization.stubs", "QuantStub"),
}

# Objects that are no modules, which networks carry as data; their code was read.
HELPERS = {
    Name("argparse", "Namespace"),
    Name("types", "SimpleNamespace"),
    Name("transformers.generation.configuration_utils", "GenerationConfig"),
    *(
        Name("torchvision.models.detection._utils", name)
        for name in (
            "BalancedPositiveNegativeSampler", "BoxCoder", "BoxLinearCoder", "Matcher", "SSDMatcher",
        )
    ),
}  # fmt: skip

# Hooks that compute a weight before a layer runs, and those that save and load what they need.
HOOKS = {
    Name("torch.nn.utils.spectral_norm", "SpectralNorm"),
    Name("torch.nn.utils.weight_norm", "WeightNorm"),
}
LOADING = HOOKS | {
    Name("torch.nn.modules.module", "_WrappedHook"),
    Name("torch.nn.utils.spectral_norm", "SpectralNormLoadStateDictPreHook"),
    Name("torch.nn.utils.spectral_norm", "SpectralNormStateDictHook"),
}
# Attributes of a module that hold the latter: a network runs without them, and they are not made.
LOADING_HOOKS = {
    "_load_state_dict_post_hooks", "_load_state_dict_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
}  # fmt: skip

# ``__setstate__`` that fill in attributes of older versions and give the rest to nn.Module's; read line by line.
SETSTATES = {
    "torch.nn.modules.activation.LogSoftmax",
    "torch.nn.modules.activation.MultiheadAttention",
    "torch.nn.modules.activation.Softmax",
    "torch.nn.modules.activation.Softmin",
    "torch.nn.modules.conv._ConvNd",
    "torch.nn.modules.module.Module",
    "torch.nn.modules.pooling.AvgPool3d",
    "torch.nn.modules.rnn.RNNBase",
    "torch.nn.modules.transformer.TransformerDecoderLayer",
    "torch.nn.modules.transformer.TransformerEncoderLayer",
    "torch.nn.modules.upsampling.Upsample",
    "timm.layers.ml_decoder.TransformerDecoderLayerOptimal",
}

# Functions of tensors and numbers without effects, which networks carry as attributes (`self.activation`).
_ACTIVATIONS = """
    celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish relu relu6
    selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold
"""
# Home, then names.
_FUNCTIONS = """
    torch.nn.functional normalize scaled_dot_product_attention
    torch._C._nn gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish relu6 silu softplus softshrink
    timm.layers.activations gelu gelu_tanh hard_mish hard_sigmoid hard_swish mish quick_gelu sigmoid swish tanh
    torchvision.ops.boxes box_iou generalized_box_iou
    torchvision.models.optical_flow.raft _pass_through_h
"""
PURE = {
    *(Name("torch.nn.functional", name) for name in _ACTIVATIONS.split()),
    *(
        Name(home, name)
        for home, *names in map(str.split, _FUNCTIONS.strip().splitlines())
        for name in names
    ),
}
