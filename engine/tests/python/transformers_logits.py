"""Logits of transformers (and peft) for folders written by t3s.

usage: transformers_logits.py JOBS.json

JOBS.json is {"sequences": [[id, ...], ...], "models": [{"model": folder, "out": file, ...}, ...]}.
Each `out` gets one tensor "0", "1", ... of [tokens, vocab] per sequence. With "adapter" the model is
adapted by that folder first, which peft then writes again to "again".
"""

import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

with open(sys.argv[1]) as file:
    jobs = json.load(file)
for job in jobs["models"]:
    model, info = AutoModelForCausalLM.from_pretrained(
        job["model"], attn_implementation="eager", output_loading_info=True
    )
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    assert not problems, problems
    if "adapter" in job:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["adapter"])
        model.save_pretrained(job["again"])
    model.eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0] for ids in jobs["sequences"]]
    save_file({str(i): value.contiguous() for i, value in enumerate(logits)}, job["out"])
