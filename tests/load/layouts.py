"""Checkpoints as trainers write them, of small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

State = dict[str, Any]
NETS = "tests.load.layout_nets"


def perturbed(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            else:
                value.fill_(seed)
    return net


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def averaged_model(state: State, count: int = 3) -> State:
    return {"n_averaged": torch.tensor(count), **prefixed("module.", state)}


def optimizer_state(state: State) -> State:
    """The state of an optimizer that has run; with its numbers by the names of the weights too."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def tree(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        *path, last = name.split(".")
        at = found
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return found


HEAD = {"head.mlp.0.weight": torch.ones(2, 2), "head.last.bias": torch.ones(2)}
FIRST, AVERAGE = "raw", "mean"
Layout = tuple[Callable[[State, State], Any], str, tuple[str, ...]]
# name: what is written, of (weights, average); which of them is right; what the notes must say
LAYOUTS: dict[str, Layout] = {
    "flat": (lambda a, b: a, FIRST, ()),
    "lightning": (
        lambda a, b: {
            "epoch": 3,
            "state_dict": prefixed("model.", a),
            "optimizer_states": [optimizer_state(a)],
            "hyper_parameters": {"lr": 0.1},
        },
        FIRST,
        ("took `state_dict`", "the prefix `model.`", "`epoch`", "`optimizer_states`"),
    ),
    "lightning, net with a loss": (
        lambda a, b: {"state_dict": {**prefixed("net.", a), "criterion.weight": torch.ones(5)}},
        FIRST,
        ("begin with `net.`", "left of the checkpoint: `state_dict.criterion`"),
    ),
    "lightning, average inside": (
        lambda a, b: {"state_dict": {**prefixed("model.", a), **prefixed("ema_model.", b)}},
        AVERAGE,
        ("begin with `ema_model.`", "`--key state_dict.model`"),
    ),
    "DataParallel": (lambda a, b: {"state_dict": prefixed("module.", a)}, FIRST, ("`module.`",)),
    "torch.compile": (lambda a, b: prefixed("_orig_mod.", a), FIRST, ("prefix `_orig_mod.`",)),
    "torch.compile around DDP": (
        lambda a, b: prefixed("_orig_mod.module.", a),
        FIRST,
        ("prefix `_orig_mod.module.`",),
    ),
    "DDP around a compiled lightning module": (
        lambda a, b: {"state_dict": prefixed("module.model._orig_mod.", a)},
        FIRST,
        ("prefix `module.model._orig_mod.`",),
    ),
    "a part compiled": (
        lambda a, b: {
            f"module.{k}".replace("stem.", "stem._orig_mod.").replace("body.", "body.module."): v
            for k, v in a.items()
        },
        FIRST,
        ("removed `_orig_mod`, `module` from within",),
    ),
    "BasicSR": (
        lambda a, b: {"params": a, "params_ema": b},
        AVERAGE,
        ("took `params_ema`", "`params` fits too: `--key params` takes it"),
    ),
    "BasicSR, older": (lambda a, b: {"params": a}, FIRST, ("took `params`",)),
    "timm": (
        lambda a, b: {
            "epoch": 1,
            "arch": "net",
            "state_dict": a,
            "optimizer": optimizer_state(a),
            "state_dict_ema": b,
            "amp_scaler": {"scale": 2.0},
        },
        AVERAGE,
        ("took `state_dict_ema`", "`--key state_dict`", "`optimizer`", "`amp_scaler`"),
    ),
    "StyleGAN": (
        lambda a, b: {"g": a, "d": {"conv.weight": torch.ones(3)}, "g_ema": b},
        AVERAGE,
        ("took `g_ema`", "`d`"),
    ),
    "generator and discriminator": (
        lambda a, b: {"discriminator": {"stem.0.weight": torch.ones(3)}, "generator": a},
        FIRST,
        ("took `generator`", "`discriminator`"),
    ),
    "DINO": (
        lambda a, b: {
            "student": {**prefixed("module.backbone.", a), **prefixed("module.", HEAD)},
            "teacher": {**prefixed("backbone.", b), **HEAD},
            "dino_loss": {"center": torch.ones(1, 5)},
        },
        AVERAGE,
        ("took `teacher`", "begin with `backbone.`", "`teacher.head`", "`dino_loss`",
         "`--key student.module.backbone`"),
    ),
    "AveragedModel": (lambda a, b: averaged_model(b), AVERAGE, ("`module.`", "`n_averaged`")),
    "AveragedModel of a lightning module": (
        lambda a, b: {"net": a, "mean_weights": averaged_model(prefixed("model.", b))},
        AVERAGE,
        ("took `mean_weights.module.model`, which is the average of 3", "`--key net`", "n_averaged"),
    ),
    "AveragedModel alone that has not begun": (
        lambda a, b: averaged_model(a, 0),
        FIRST,
        ("`n_averaged` is 0",),
    ),
    "AveragedModel beside": (
        lambda a, b: {"net": a, "second": averaged_model(b)},
        AVERAGE,
        ("took `second`", "took `second.module`, which is the average of 3", "`--key net`"),
    ),
    "AveragedModel that has not begun": (
        lambda a, b: {"net": a, "swa": averaged_model(b, 0)},
        FIRST,
        ("took `net`", "an average of nothing yet"),
    ),
    "ema_pytorch": (
        lambda a, b: {
            "step": 9,
            "model": a,
            "opt": optimizer_state(a),
            "ema": {
                "initted": torch.tensor(True),
                "step": torch.tensor(9),
                **prefixed("online_model.", a),
                **prefixed("ema_model.", b),
            },
        },
        AVERAGE,
        ("begin with `ema_model.`", "`--key model`"),
    ),
    "deep": (
        lambda a, b: {"train": {"last": [{"nets": {"ema": {"params": b}, "raw": {"params": a}}}]}},
        AVERAGE,
        ("took `train.last.0.nets.ema.params`", "`--key train.last.0.nets.raw.params`"),
    ),
    "a list": (lambda a, b: [a, 3], FIRST, ("took `0`",)),
    "a tree": (lambda a, b: {"model": tree(a)}, FIRST, ("took `model`",)),
    "numbers in between": (lambda a, b: {**a, "epoch": 3}, FIRST, ("left", "`epoch`")),
    "averages of parameters only": (
        lambda a, b: {"model": a, "ema": {k: v for k, v in b.items() if "running" not in k}},
        FIRST,
        ("took `model`", "`ema` looks like an average and does not fit", "running_mean"),
    ),
    "averages without names": (
        lambda a, b: {"model": a, "ema": {"decay": 0.9, "shadow_params": [*b.values()]}},
        FIRST,
        ("took `model`", "`ema` looks like an average", "does not fit: its keys are others"),
    ),
    "moments by name": (
        lambda a, b: {"weights": a, "optimizer": {"exp_avg": b}, "optim_ema": {"m": b}},
        FIRST,
        ("took `weights`", "`optimizer`"),
    ),
    "two names of the same": (lambda a, b: {"last": a, "best": dict(a)}, FIRST, ("took `last`",)),
    "DeepSpeed": (
        lambda a, b: {"module": a, "optimizer": None, "param_shapes": [{"fc": torch.Size([2])}]},
        FIRST,
        ("took `module`",),
    ),
    "detectron2": (
        lambda a, b: {"model": {k: v.numpy() for k, v in a.items()}, "__author__": "x"},
        FIRST,
        ("took `model`", "`__author__`"),
    ),
}  # fmt: skip


def same(module: nn.Module, state: State) -> None:
    own = module.state_dict()
    assert own.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(own[name], value), name
        assert own[name].dtype == value.dtype
