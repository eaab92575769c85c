"""The example that generates: the same GPT in transformers, and the text that it continues by itself."""

from __future__ import annotations

import pytest
import torch

from examples import generate, gpt, text
from tests import torchvision_shim

torchvision_shim.install()  # transformers imports torchvision


def test_transformers_has_the_same_network() -> None:
    ids = torch.randint(0, len(text.VOCABULARY), (2, 40))
    network = gpt.load()
    with torch.no_grad():
        found = generate.as_gpt2(network)(ids).logits
        torch.testing.assert_close(found, network(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_file_continues_the_prompt_as_the_network_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--prompt=import ", "--count=20"])
    generate.main()
    network = gpt.load()
    ids = torch.tensor([[text.VOCABULARY.index(letter) for letter in "import "]])
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat([ids, network(ids)[:, -1:].argmax(-1)], 1)
    expected = "".join(text.VOCABULARY[i] for i in ids[0].tolist())
    assert capsys.readouterr().out == f"verdict: equivalent\n{expected}\n"
    monkeypatch.setattr("sys.argv", ["generate", "--count=1000"])
    with pytest.raises(SystemExit):
        generate.main()
