"""Decoders with a cache: random prompts, and steps on what they left in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import normfold
from normfold.judge.agreement import float_outputs
from normfold.load import load
from normfold.load.capture import capture_loaded
from normfold.ranges.generation import cache_of
from normfold.ranges.prompts import prompts, reads_tokens
from tests import torchvision_shim
from tests.zoo.transformers_configs import GROUPED

torchvision_shim.install()  # transformers imports torchvision
TASK: Any = "text-generation-with-past"


@pytest.fixture(scope="module")
def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**GROUPED, "num_hidden_layers": 1})
    return transformers.LlamaForCausalLM(config).eval()


def test_the_second_step_reads_what_the_first_left(llama: Any) -> None:
    graph = capture_loaded(load(llama, task=TASK), "dynamic")
    cache = cache_of(graph)
    assert reads_tokens(graph)
    assert sorted(cache) == [2, 3]
    first, second = prompts(graph, 0, 2).batches[:2]
    assert [x.shape[2] for x in first[2:]] == [0, 0]
    with torch.no_grad():
        ids = torch.cat([first[0], second[0]], 1)
        places = (second[1].cumsum(-1) - 1).masked_fill(second[1] == 0, 0)
        whole = llama(input_ids=ids, attention_mask=second[1], position_ids=places, use_cache=True)
        logits, *_ = float_outputs(graph, [second])[0]
    past = first[0].shape[1]
    torch.testing.assert_close(logits, whole.logits[:, past:], atol=1e-5, rtol=1e-4)
    layer = whole.past_key_values.layers[0]
    for place, values in ((2, layer.keys), (3, layer.values)):
        seen = second[1][:, :past].bool()[:, None, :, None]
        torch.testing.assert_close(
            second[place] * seen, values[:, :, :past] * seen, atol=1e-5, rtol=1e-4
        )


@pytest.mark.slow
def test_activations_in_integers_with_a_cache(llama: Any, tmp_path: Path) -> None:
    result = normfold.convert(llama, task=TASK, quantize="int8", export="onnx", output=tmp_path)
    assert result.ok, result.report.failures()
    (made,) = result.report.quantization
    assert made.activations
