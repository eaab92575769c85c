"""Transformers networks from tiny configs, for the command line; parameters perturbed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests import torchvision_shim
from tests.zoo.models import perturb


class GPT2(nn.Module):
    """Hugging Face's GPT-2 with its tied head; returns logits only."""

    def __init__(self) -> None:
        super().__init__()
        torchvision_shim.install()
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        self.net = GPT2LMHeadModel(
            GPT2Config(
                n_embd=24,
                n_layer=2,
                n_head=3,
                vocab_size=400,
                n_positions=40,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """Tokens (N,T) to logits (N,T,400)."""
        logits: Tensor = self.net(input_ids, use_cache=False).logits
        return logits


class BERT(nn.Module):
    """Hugging Face's BERT with its tied masked-language head; returns logits only."""

    def __init__(self) -> None:
        super().__init__()
        torchvision_shim.install()
        from transformers import BertConfig, BertForMaskedLM

        torch.manual_seed(0)
        self.net = BertForMaskedLM(
            BertConfig(
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=40,
                vocab_size=400,
                max_position_embeddings=40,
            )
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """Tokens (N,T) to logits (N,T,400)."""
        logits: Tensor = self.net(input_ids).logits
        return logits


def gpt2() -> nn.Module:
    return perturb(GPT2().eval())


def bert() -> nn.Module:
    return perturb(BERT().eval())
