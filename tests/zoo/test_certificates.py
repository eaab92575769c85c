"""Certificates of whole networks: ``pytest -m family tests/zoo/test_certificates.py``."""

from __future__ import annotations

import pytest

from normfold.judge.certificate import certify
from normfold.rewrite import parse, run_pipeline
from tests.zoo.ln_models import ln_build
from tests.zoo.models import Member
from tests.zoo.trial import captured

CENTRED = "canonicalize,fold-affine{split-norms=true},center-stream"
NETWORKS = [
    ("timm", "resnet10t", CENTRED),
    ("timm", "mobilenetv3_small_050", CENTRED),
    ("timm", "repvgg_a0", CENTRED),
    ("timm", "fastvit_t8", CENTRED),
    ("timm", "convnext_atto", CENTRED),
    ("timm", "vit_tiny_patch16_224", f"{CENTRED},compress-stream"),
    ("timm", "vit_tiny_patch16_224", f"{CENTRED},rotate-stream"),
    ("timm", "swin_tiny_patch4_window7_224", CENTRED),
    ("transformers", "gpt2", CENTRED),
    ("transformers", "llama", f"{CENTRED},rotate-stream"),
    ("transformers", "t5", CENTRED),
    ("transformers", "bert", CENTRED),
]


@pytest.mark.family
@pytest.mark.parametrize(("source", "name", "text"), NETWORKS)
def test_certified(source: str, name: str, text: str) -> None:
    module, args = ln_build(Member(source, source, name))
    graph, _, _ = captured(module, args)
    result, _ = run_pipeline(graph, parse(f"{text},restore"))
    found = certify(graph, result)
    assert found.state == "certified", found
    assert not found.left
