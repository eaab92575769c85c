"""Decoders with their cache as inputs and outputs: files that generate as transformers does; who has no cache."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import Tensor, nn

import normfold
from normfold.errors import LoadError, UsageError
from normfold.ir import Graph
from normfold.job.source import Task
from normfold.judge import Verifier
from normfold.load import decoder, load
from normfold.load.capture import capture_loaded
from normfold.targets import pt2
from normfold.targets.onnx import export_onnx
from tests.zoo.transformers_configs import COMMON, GPT, GROUPED, TEXT, VOCABULARY

TASK: Task = "text-generation-with-past"
STEPS = 64
POSITIONS = {"max_position_embeddings": 80}
LLAMA = {**GROUPED, **POSITIONS, "num_hidden_layers": 1}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 20,
}  # fmt: skip
EXPERTS = {
    **GROUPED,
    **POSITIONS,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
WIDE = {**GROUPED, **POSITIONS, "head_dim": 16, "tie_word_embeddings": False}  # wide heads
# class, its settings, what it is converted to
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2LMHeadModel", {**GPT, "n_positions": 80, "tie_word_embeddings": False}, "rmsnorm"),
    "opt": ("OPTForCausalLM", {**COMMON, **POSITIONS, "ffn_dim": 48, "word_embed_proj_dim": 32}, "rmsnorm"),
    "phi": ("PhiForCausalLM", {**GROUPED, **POSITIONS}, "rmsnorm"),
    "llama": ("LlamaForCausalLM", {**GROUPED, **POSITIONS}, "folded"),
    "qwen2": ("Qwen2ForCausalLM", {**GROUPED, **POSITIONS}, "folded"),
    "qwen3": ("Qwen3ForCausalLM", WIDE, "folded"),
    "phi3": ("Phi3ForCausalLM", {**GROUPED, **POSITIONS}, "folded"),
    "mistral": ("MistralForCausalLM", {**GROUPED, **POSITIONS, "sliding_window": 8}, "folded"),
    "gemma": ("GemmaForCausalLM", WIDE, "folded"),
    "gemma2": ("Gemma2ForCausalLM", {**WIDE, "sliding_window": 8}, "folded"),
    "mixtral": ("MixtralForCausalLM", EXPERTS, "folded"),
    "gpt_oss": ("GptOssForCausalLM", {**EXPERTS, "head_dim": 8, "sliding_window": 8}, "folded"),
}  # fmt: skip

GREEDY = transformers.GenerationConfig(
    max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
)


def made(name: str, settings: dict[str, Any]) -> Any:
    """A network with random weights, gains and biases that are not 1 and 0."""
    torch.manual_seed(0)
    model = getattr(transformers, name)
    network = model(model.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return network


def prompts(batch: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths, padded on the left, and their mask."""
    ids = torch.randint(3, VOCABULARY, (batch, 6), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, : row + 1] = 0
    return ids * mask, mask


def generated(file: Path, ids: Tensor, mask: Tensor, limit: int = 0) -> tuple[Tensor, Tensor]:
    """Greedy tokens by a file, and the logits that they come from; beyond ``limit`` tokens with a new cache."""
    session = onnxruntime.InferenceSession(file)
    names = [item.name for item in session.get_outputs()]
    empty = past = {
        item.name: np.zeros((len(ids), item.shape[1], 0, item.shape[3]), np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past_key_values.")
    }
    tokens, logits, whole = [], [], ids
    for _ in range(STEPS):
        if whole.shape[1] == limit + 1:
            ids, past = whole, empty
        fed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), **past}
        found = dict(zip(names, session.run(None, fed), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        logits.append(torch.from_numpy(found["logits"][:, -1:]))
        ids = logits[-1].argmax(-1)
        tokens.append(ids)
        whole = torch.cat([whole, ids], 1)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return torch.cat(tokens, 1), torch.cat(logits, 1)


def require_same_text(network: Any, file: Path) -> None:
    """The file generates what transformers does, and its logits are those of the whole text at once."""
    network.generation_config = GREEDY
    for batch in (1, 3):
        ids, mask = prompts(batch)
        with torch.no_grad():
            text = network.generate(ids, attention_mask=mask, use_cache=True)
            tokens, logits = generated(file, ids, mask)
            assert torch.equal(tokens, text[:, ids.shape[1] :])
            whole = torch.cat([mask, torch.ones(batch, STEPS - 1, dtype=torch.int64)], 1)
            places = (whole.cumsum(-1) - 1).clamp(min=0)
            expected = network(
                text[:, :-1], attention_mask=whole, position_ids=places, use_cache=False
            ).logits[:, ids.shape[1] - 1 :]
        assert len(set(tokens.flatten().tolist())) > 2, "a text of one token shows nothing"
        torch.testing.assert_close(logits, expected, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize(
    "kind",
    ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "gpt2")],
)
def test_a_file_generates_what_transformers_does(kind: str, tmp_path: Path) -> None:
    name, settings, to = KINDS[kind]
    network = made(name, settings)
    network.save_pretrained(tmp_path / kind)
    result = normfold.convert(
        tmp_path / kind, to, task=TASK, export="onnx", output=tmp_path / "out"
    )
    assert result.ok
    assert not any("use_cache" in note for note in result.report.notes)
    file = tmp_path / "out" / f"{kind}.onnx"
    model = onnx.load(file)
    assert {node.op_type for node in model.graph.node}.isdisjoint({"LayerNormalization"})
    props = {item.key: item.value for item in model.metadata_props}
    assert props["task"] == TASK
    require_same_text(network, file)


@pytest.fixture(scope="module")
def llama() -> Any:
    return made("LlamaForCausalLM", LLAMA)


@pytest.fixture(scope="module")
def graph(llama: Any) -> Graph:
    return capture_loaded(load(llama, task=TASK), "dynamic")


def test_names_and_shapes_of_the_file(llama: Any, graph: Graph, tmp_path: Path) -> None:
    result, _ = normfold.run(graph, "canonicalize,fold-affine,restore,bake", verify="off")
    exported = export_onnx(result, tmp_path / "llama.onnx")
    session = onnxruntime.InferenceSession(exported.path)
    shapes = {item.name: item.shape for item in (*session.get_inputs(), *session.get_outputs())}
    past = shapes["past_key_values.0.key"][2]
    new = shapes["input_ids"][1]
    assert shapes == {
        "input_ids": ["batch", new],
        "attention_mask": ["batch", f"{past} + {new}"],
        "past_key_values.0.key": ["batch", 2, past, 8],
        "past_key_values.0.value": ["batch", 2, past, 8],
        "logits": ["batch", new, VOCABULARY],
        "present.0.key": ["batch", 2, f"{past} + {new}", 8],
        "present.0.value": ["batch", 2, f"{past} + {new}", 8],
    }
    require_same_text(llama, exported.path)


def test_a_program_has_no_length_for_which_it_is_not_the_network(
    graph: Graph, tmp_path: Path
) -> None:
    [(_, run)] = pt2.runs(pt2.export_pt2(graph, tmp_path / "llama.pt2"))
    assert Verifier(graph).outputs("pt2", run)


@pytest.mark.slow
def test_a_long_rope_begins_again(tmp_path: Path) -> None:
    settings = {**LLAMA, "rope_parameters": LONG, "original_max_position_embeddings": 20}
    network = made("Phi3ForCausalLM", settings)
    network.generation_config = GREEDY
    network.save_pretrained(tmp_path / "phi3")
    result = normfold.convert(tmp_path / "phi3", task=TASK, export="onnx", output=tmp_path)
    assert result.ok
    assert any("beyond 20 tokens" in note for note in result.report.notes)
    ids, mask = prompts(1)
    with torch.no_grad():
        expected = network.generate(ids, attention_mask=mask, use_cache=True)[:, ids.shape[1] :]
    assert torch.equal(generated(tmp_path / "phi3.onnx", ids, mask, limit=20)[0], expected)
    assert not torch.equal(generated(tmp_path / "phi3.onnx", ids, mask)[0], expected)


class Spoiled(nn.Module):
    """The decoder, with other logits where a condition on the lengths of past and new tokens holds."""

    def __init__(self, graph: Graph, at: Any) -> None:
        super().__init__()
        assert graph.original is not None
        self.network, self.at = graph.original, at

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any) -> Any:
        found = self.network(input_ids, attention_mask, past_key_values)
        past = past_key_values[0]["key"].shape[2]
        return {
            **found,
            "logits": found["logits"] * (1.01 if self.at(past, input_ids.shape[1]) else 1),
        }


def test_the_first_step_and_one_token_are_judged(graph: Graph) -> None:
    judging = Verifier(graph)
    (note,) = judging.notes
    assert "of the 61 rows of its table" in note
    assert judging.capture()
    assert judging.rounding(Spoiled(graph, lambda past, new: False))
    assert not judging.rounding(Spoiled(graph, lambda past, new: past == 0))
    assert not judging.rounding(Spoiled(graph, lambda past, new: new == 1))
    for case in judging.cases:
        ids, mask, key, value = (leaf.shape for leaf in case.leaves)
        assert mask == (ids[0], ids[1] + key[2])
        assert key == value
    lengths = {(case.leaves[2].shape[2], case.leaves[0].shape[1]) for case in judging.cases}
    assert lengths == {(6, 3), (0, 4), (5, 1), (5, 2), (1, 3), (6, 1)}
    assert any((case.leaves[1][:, 0] == 0).any() for case in judging.cases)  # padding on the left


def test_a_batch_that_is_fixed_and_lengths_that_are_not(llama: Any) -> None:
    loaded = load(llama, task=TASK, static=True)
    fixed = capture_loaded(loaded, "static")
    assert loaded.args[0].shape == (1, 3)
    assert Verifier(fixed).capture()
    assert {case.leaves[0].shape for case in Verifier(fixed).cases} == {
        (1, 3),
        (1, 4),
        (1, 1),
        (1, 2),
    }


def test_the_network_that_was_given_stays_as_it_is(llama: Any) -> None:
    forward = inspect.signature(llama.forward)
    loaded = load(llama, task=TASK)
    assert type(llama) is transformers.LlamaForCausalLM
    assert inspect.signature(llama.forward) == forward
    assert list(loaded.module.state_dict()) == list(llama.state_dict())
    assert isinstance(loaded.module, transformers.LlamaForCausalLM)


def test_sizes_that_do_not_belong_together_are_refused(llama: Any) -> None:
    loaded = load(llama, task=TASK)
    ids, mask, past = loaded.args
    with pytest.raises(RuntimeError, match="past \\+ new"):
        loaded.module(ids, mask[:, 1:], past)
    with pytest.raises(RuntimeError, match="batch"):
        loaded.module(ids[:1], mask, past)
    texts = ["input_ids:2x4:i64", "attention_mask:2x9:i64"]
    texts += [f"past_key_values.0.{name}:2x2x5x8" for name in ("key", "value")]
    given = load(llama, task=TASK, inputs=texts)
    assert given.args[2][0]["key"].shape == (2, 2, 5, 8)
    with pytest.raises(UsageError, match="past_key_values"):
        load(llama, task=TASK, inputs=texts[:2])


def test_a_window_and_a_long_rope_are_noted() -> None:
    window = made("MistralForCausalLM", {**LLAMA, "sliding_window": 8})
    assert any("last 8 tokens" in note for note in load(window, task=TASK).notes)
    long = made("LlamaForCausalLM", {**LLAMA, "rope_parameters": LONG})
    assert any("beyond 20 tokens" in note for note in load(long, task=TASK).notes)
    plain = made("LlamaForCausalLM", LLAMA)
    assert len(load(plain, task=TASK).notes) == 1


LINEAR = {
    **GROUPED, "head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
WITHOUT: dict[str, tuple[dict[str, Any], str]] = {
    "T5ForConditionalGeneration": ({**TEXT, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1}, "an encoder"),
    "MambaForCausalLM": ({**TEXT, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, "cache_params"),
    "RwkvForCausalLM": ({**TEXT, "hidden_size": 16, "num_hidden_layers": 2}, "`state`"),
    "XLNetLMHeadModel": ({**TEXT, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, "`mems`"),
    "OpenAIGPTLMHeadModel": (GPT, "no `past_key_values`"),
    "GPT2Model": (GPT, 'architectures": ["GPT2LMHeadModel"]'),
    "GPT2ForSequenceClassification": (GPT, "no head"),
    "BertLMHeadModel": (COMMON, "other logits than at once"),
    "RobertaForCausalLM": (COMMON, 'if it was trained as a decoder: `"is_decoder": true`'),
    "BertModel": (COMMON, '`"architectures": ["BertLMHeadModel"]` and `"is_decoder": true`'),
    "Qwen3NextForCausalLM": (LINEAR, "LinearAttentionLayer"),
    "LlamaForCausalLM": ({**LLAMA, "rope_parameters": DYNAMIC}, "`dynamic`"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT)
def test_who_has_no_such_cache_is_told_why(name: str) -> None:
    settings, why = WITHOUT[name]
    with pytest.raises(LoadError, match="key/value cache") as caught:
        load(made(name, settings), task=TASK)
    assert why in str(caught.value)
    assert caught.value.hint


def test_what_is_no_decoder_is_told_so(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="not a model of transformers"):
        load(nn.Linear(3, 3), task=TASK)
    with pytest.raises(UsageError, match="captured already"):
        normfold.convert(graph, task=TASK, output=tmp_path)
    with pytest.raises(UsageError, match="whole sequences"):
        normfold.convert(
            nn.Linear(3, 3), task=TASK, quantize="int8", data=torch.ones(4, 3), output=tmp_path
        )


def test_a_network_that_keeps_more_than_its_cache_is_refused(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = transformers.LlamaForCausalLM.forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = forward(self, *args, **kwargs)
        length = kwargs["input_ids"].shape[1]  # of this call, not of the text
        found.logits = found.logits * (1 + 0.1 * length)
        return found

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", counting)
    monkeypatch.setattr(
        decoder, "_parameters", lambda owner: list(inspect.signature(forward).parameters)
    )
    with pytest.raises(LoadError, match="other logits than at once"):
        load(llama, task=TASK)
