"""LLaDA (dense) in plain PyTorch: the published architecture, written out, with no code of ours.

    llada_reference.py FOLDER    a tiny random model, corrupted examples, logits, loss (1 / t over the
                                 response's length) and gradients (golden/llada-tiny, committed)
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

CONFIG = {
    "model_type": "llada", "activation_type": "silu", "block_type": "llama", "d_model": 32,
    "n_heads": 4, "n_kv_heads": 4, "n_layers": 2, "mlp_hidden_size": 48, "vocab_size": 93,
    "embedding_size": 96, "rope": True, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "layer_norm_type": "rms", "weight_tying": False, "max_sequence_length": 256,
    "eos_token_id": 91, "mask_token_id": 92,
}


def shapes(c):
    width, hidden = c["d_model"], c["mlp_hidden_size"]
    yield "wte", (c["embedding_size"], width)
    for layer in range(c["n_layers"]):
        name = f"blocks.{layer}."
        yield from ((name + n, (width,)) for n in ("attn_norm", "ff_norm"))
        yield from ((name + n, (width, width)) for n in ("q_proj", "k_proj", "v_proj", "attn_out"))
        yield from ((name + n, (hidden, width)) for n in ("ff_proj", "up_proj"))
        yield name + "ff_out", (width, hidden)
    yield "ln_f", (width,)
    yield "ff_out", (c["embedding_size"], width)


def logits(c, w, ids):
    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"]) * w[name]

    n, heads = len(ids), c["n_heads"]
    dim = c["d_model"] // heads
    angles = torch.arange(n)[:, None] * c["rope_theta"] ** (-torch.arange(0, dim, 2).float() / dim)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def rotate(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    x = w["wte"][ids]
    for layer in range(c["n_layers"]):
        name = f"blocks.{layer}."
        h = norm(x, name + "attn_norm")
        q, k, v = (
            (h @ w[name + p].T).view(n, heads, dim).transpose(0, 1)
            for p in ("q_proj", "k_proj", "v_proj")
        )
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / dim**0.5
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
        x = x + out @ w[name + "attn_out"].T
        h = norm(x, name + "ff_norm")
        x = x + (F.silu(h @ w[name + "ff_proj"].T) * (h @ w[name + "up_proj"].T)) @ w[name + "ff_out"].T
    return norm(x, "ln_f") @ w["ff_out"].T


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(12)
    weights = {}
    for name, shape in shapes(CONFIG):
        scale = 0.2 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
        value = (1.0 if len(shape) == 1 else 0.0) + scale * torch.randn(shape)
        weights[name] = value.requires_grad_()
    clean = torch.randint(0, 90, (2, 30))
    response = torch.arange(30) >= torch.tensor([[7], [12]])
    t = torch.tensor([[0.7], [0.35]])
    masked = response & (torch.rand(2, 30) < t)
    noisy = clean.masked_fill(masked, CONFIG["mask_token_id"])
    out = torch.stack([logits(CONFIG, weights, ids) for ids in noisy])
    logp = out.log_softmax(-1).gather(-1, clean[..., None])[..., 0]
    # LLaDA's fine-tuning loss: of each example, CE / t over the masked, over the response's length.
    coefficients = masked / t / response.sum(1, keepdim=True) / len(clean)
    loss = -(logp * coefficients).sum()
    loss.backward()
    golden = {"clean_ids": clean, "noisy_ids": noisy, "coefficients": coefficients}
    golden |= {"logits": out, "target_logp": logp, "loss": loss[None]}
    full = {f"model.transformer.{name}.weight": w for name, w in weights.items()}
    golden |= {"grad." + name: w.grad for name, w in full.items()}
    for file, tensors in (("golden", golden), ("model", full)):
        tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / f"{file}.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


if __name__ == "__main__":
    main()
