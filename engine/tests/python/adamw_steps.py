"""Steps of torch.optim.AdamW with clip_grad_norm_, on gradients that t3s computed.

usage: adamw_steps.py SETTINGS.json START.safetensors GRADIENTS_PREFIX OUT_PREFIX

Step n reads GRADIENTS_PREFIX + "n.safetensors" and writes the parameters after it to
OUT_PREFIX + "n.safetensors", and the norm before clipping into its metadata.
"""

import json
import sys

import torch
from safetensors.torch import load_file, save_file

settings_path, start, gradients, out = sys.argv[1:]
settings = json.load(open(settings_path))
parameters = {name: torch.nn.Parameter(value) for name, value in load_file(start).items()}
matrices = [p for p in parameters.values() if p.dim() > 1]
others = [p for p in parameters.values() if p.dim() <= 1]
optimizer = torch.optim.AdamW(
    [
        {"params": matrices, "weight_decay": settings["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ],
    lr=settings["learning_rates"][0],
    betas=(settings["beta1"], settings["beta2"]),
    eps=settings["eps"],
)
for step, learning_rate in enumerate(settings["learning_rates"], 1):
    for name, value in load_file(f"{gradients}{step}.safetensors").items():
        parameters[name].grad = value
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings["clip_norm"])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    values = {name: value.detach().contiguous() for name, value in parameters.items()}
    save_file({**values, "norm": norm.detach().reshape(1)}, f"{out}{step}.safetensors")
