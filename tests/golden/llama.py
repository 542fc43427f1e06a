"""A tiny random Llama and what transformers makes of it: logits and log-probabilities, float32.

    llama.py FOLDER     writes config.json, model.safetensors and golden.safetensors into FOLDER
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
torch.manual_seed(3)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=[2, 3],
    attn_implementation="eager",
)
model = LlamaForCausalLM(config).eval()
for name, parameter in model.named_parameters():
    if "norm" in name:  # not all ones, so that a norm left out shows
        parameter.data.uniform_(0.5, 1.5)
model.save_pretrained(folder, safe_serialization=True)
(folder / "generation_config.json").unlink(missing_ok=True)

ids = torch.randint(0, config.vocab_size, (2, 24))
with torch.no_grad():
    logits = model(ids).logits
logp = torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
save_file({"ids": ids, "logits": logits, "logp": logp.contiguous()}, folder / "golden.safetensors")
