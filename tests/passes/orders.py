"""What stands in front of each pass when it is tried alone."""

BEFORE = {
    "canonicalize": "",
    "fold-input": "canonicalize",
    "fold-affine": "canonicalize",
    "center-stream": "canonicalize,fold-affine",
    "compress-stream": "canonicalize,fold-affine,center-stream",
    "rotate-stream": "canonicalize,fold-affine,center-stream",
    "equalize": "canonicalize,fold-affine",
    "migrate-scale": "canonicalize",
    "replace-layernorm": "canonicalize",
    "restore": "canonicalize,fold-affine{direction=forward}",
    "bake": "canonicalize,fold-affine,restore",
    "measure-ranges": "canonicalize,fold-affine,restore,bake",
    "quantize-weights": "canonicalize,fold-affine,restore,bake",
    "quantize-activations": "canonicalize,fold-affine,restore,bake,quantize-weights",
    "quantize-dynamic": "canonicalize,fold-affine,restore,bake",
    "correct-bias": "canonicalize,fold-affine,restore,bake,quantize-weights",
}
