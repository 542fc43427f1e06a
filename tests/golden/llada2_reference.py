"""LLaDA 2.0 in plain PyTorch: the published architecture, written out, with no code of ours.

    llada2_reference.py FOLDER OUT     logits, loss and gradients of FOLDER's model under the
                                       block-diffusion and block-causal patterns, written to OUT
    llada2_reference.py --make FOLDER  a tiny random model, its corrupted examples, and the same
                                       (FOLDER is golden/llada2-tiny, committed beside this file)
    llada2_reference.py --check FOLDER compares this transcription with FOLDER/golden.safetensors

FOLDER holds config.json, model.safetensors, and golden.safetensors with clean_ids and noisy_ids.

The dump in golden/llada2-moe-tiny came from the public implementation with an additive mask (0 or
the lowest float) where a mask of ones and zeros was expected; it was inverted, and the lowest float
was added to *every* score. Attention there is uniform over all rows, whatever the pattern, in values;
gradients of queries and keys still pass. `--check` repeats that, so that every other part (and, in
the gradients, rotary positions and the norms of heads) is held against the public implementation.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file


class Model:
    def __init__(self, folder):
        self.c = json.loads((folder / "config.json").read_text())
        self.w = load_file(folder / "model.safetensors")
        for name, tensor in self.w.items():
            tensor.requires_grad_(not name.endswith("expert_bias"))

    def norm(self, x, name):
        rms = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return x * rms * self.w[name + ".weight"]

    def rotate(self, x, positions):
        """x: [heads, rows, head_dim]; the first rotary_dim elements turn, halves paired."""
        dim = self.c["rotary_dim"]
        frequencies = self.c["rope_theta"] ** (-torch.arange(0, dim, 2).float() / dim)
        angles = positions[:, None].float() * frequencies
        cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        turned, rest = x[..., :dim], x[..., dim:]
        a, b = turned[..., : dim // 2], turned[..., dim // 2 :]
        return torch.cat([turned * cos + torch.cat([-b, a], -1) * sin, rest], -1)

    def attention(self, x, layer, positions, sees):
        c, name = self.c, f"model.layers.{layer}.attention."
        heads, kv, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        qkv = (x @ self.w[name + "query_key_value.weight"].T).view(len(x), heads + 2 * kv, dim)
        q, k, v = (t.transpose(0, 1) for t in qkv.split([heads, kv, kv], 1))
        q = self.rotate(self.norm(q, name + "query_layernorm"), positions)
        k = self.rotate(self.norm(k, name + "key_layernorm"), positions)
        k, v = (t.repeat_interleave(heads // kv, 0) for t in (k, v))
        lowest = torch.finfo(x.dtype).min
        scores = q @ k.transpose(-1, -2) / dim**0.5 + (~sees).to(x.dtype) * lowest
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), heads * dim)
        return out @ self.w[name + "dense.weight"].T

    def swiglu(self, x, name):
        gate, up, down = (self.w[f"{name}.{p}_proj.weight"] for p in ("gate", "up", "down"))
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def experts(self, x, name):
        c = self.c
        groups, chosen = c["n_group"], c["num_experts_per_tok"]
        scores = torch.sigmoid(x @ self.w[name + ".gate.weight"].T)
        choice = scores + self.w[name + ".gate.expert_bias"]
        by_group = choice.view(len(x), groups, -1).topk(2, -1)[0].sum(-1)
        kept = torch.zeros_like(by_group).scatter_(1, by_group.topk(c["topk_group"], -1)[1], 1.0)
        kept = kept.bool().repeat_interleave(c["num_experts"] // groups, 1)
        index = choice.masked_fill(~kept, float("-inf")).topk(chosen, -1)[1]
        weight = scores.gather(1, index)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]
        y = self.swiglu(x, name + ".shared_experts")
        for expert in range(c["num_experts"]):
            rows, slot = (index == expert).nonzero(as_tuple=True)
            out = self.swiglu(x[rows], f"{name}.experts.{expert}")
            y = y.index_add(0, rows, weight[rows, slot, None] * out)
        return y

    def logits(self, ids, positions, sees):
        x = self.w["model.word_embeddings.weight"][ids]
        for layer in range(self.c["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self.attention(self.norm(x, name + ".input_layernorm"), layer, positions, sees)
            normed = self.norm(x, name + ".post_attention_layernorm")
            dense = layer < self.c["first_k_dense_replace"]
            x = x + (self.swiglu if dense else self.experts)(normed, name + ".mlp")
        return self.norm(x, "model.norm") @ self.w["lm_head.weight"].T


def block_diffusion(n, block):
    """[2n, 2n] over noisy ++ clean: whether the row sees the column."""
    b = torch.arange(n) // block
    same, before = b[:, None] == b, b[:, None] > b
    none = torch.zeros(n, n, dtype=torch.bool)
    return torch.cat([torch.cat([same, before], 1), torch.cat([none, same | before], 1)])


def block_causal(n, block):
    b = torch.arange(n) // block
    return b[:, None] >= b


def run(folder, block, as_dumped):
    """`as_dumped`: no row sees any other, as in the dump: every score has the same bias."""
    model, golden = Model(folder), load_file(folder / "golden.safetensors")
    clean, noisy = golden["clean_ids"], golden["noisy_ids"]
    mask_id, n = model.c["mask_token_id"], clean.shape[1]
    pattern = (lambda p: torch.zeros_like(p)) if as_dumped else (lambda p: p)
    positions = torch.arange(n)
    logits, causal = [], []
    for x, y in zip(noisy, clean):
        both, twice = torch.cat([x, y]), torch.cat([positions, positions])
        logits.append(model.logits(both, twice, pattern(block_diffusion(n, block)))[:n])
        causal.append(model.logits(x, positions, pattern(block_causal(n, block))))
    logits, masked = torch.stack(logits), noisy == mask_id
    logp = logits.log_softmax(-1).gather(-1, clean[..., None])[..., 0]
    loss = -logp[masked].mean()
    loss.backward()
    out = {"clean_ids": clean, "noisy_ids": noisy, "noisy_logits": logits, "target_logp": logp}
    out |= {"block_causal_logits": torch.stack(causal), "loss": loss[None]}
    for name, tensor in model.w.items():
        if tensor.requires_grad:
            out["grad." + name] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}, golden


TINY = {
    "model_type": "llada2_moe", "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48,
    "first_k_dense_replace": 1, "hidden_act": "silu", "max_position_embeddings": 256,
    "moe_intermediate_size": 16, "norm_topk_prob": True, "num_experts_per_tok": 2,
    "num_attention_heads": 4, "num_experts": 8, "num_key_value_heads": 2, "rope_theta": 600000,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "head_dim": 16, "num_shared_experts": 1,
    "vocab_size": 96, "rotary_dim": 8, "partial_rotary_factor": 0.5, "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True, "routed_scaling_factor": 2.5, "n_group": 4,
    "topk_group": 2, "score_function": "sigmoid", "pad_token_id": 93, "mask_token_id": 94,
}


def shapes(c):
    width, dim = c["hidden_size"], c["head_dim"]
    heads, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim

    def swiglu(name, hidden):
        for part, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
            yield f"{name}.{part}_proj.weight", shape

    yield "model.word_embeddings.weight", (c["vocab_size"], width)
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (width,)
        yield f"{name}.attention.query_key_value.weight", (heads + 2 * kv, width)
        yield f"{name}.attention.query_layernorm.weight", (dim,)
        yield f"{name}.attention.key_layernorm.weight", (dim,)
        yield f"{name}.attention.dense.weight", (width, heads)
        yield f"{name}.post_attention_layernorm.weight", (width,)
        if layer < c["first_k_dense_replace"]:
            yield from swiglu(f"{name}.mlp", c["intermediate_size"])
            continue
        yield f"{name}.mlp.gate.weight", (c["num_experts"], width)
        yield f"{name}.mlp.gate.expert_bias", (c["num_experts"],)
        for expert in range(c["num_experts"]):
            yield from swiglu(f"{name}.mlp.experts.{expert}", c["moe_intermediate_size"])
        yield from swiglu(f"{name}.mlp.shared_experts", c["moe_intermediate_size"])
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (c["vocab_size"], width)


def make(folder):
    """Weights large enough that every part matters; examples of 44 tokens: the last block is short."""
    torch.manual_seed(11)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, shape in shapes(TINY):
        spread = 0.05 if name.endswith("bias") else 0.2 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        weights[name] = centre + spread * torch.randn(shape)
    save_file(weights, folder / "model.safetensors")
    clean = torch.randint(0, 90, (2, 44))
    response = torch.arange(44) >= torch.tensor([[11], [16]])
    masked = response & (torch.rand(2, 44) < torch.tensor([[0.7], [0.4]]))
    noisy = clean.masked_fill(masked, TINY["mask_token_id"])
    save_file({"clean_ids": clean, "noisy_ids": noisy}, folder / "golden.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY, indent=1) + "\n")
    (folder / "golden.json").write_text(json.dumps({"block_size": 8}) + "\n")
    out, _ = run(folder, 8, as_dumped=False)
    save_file(out, folder / "golden.safetensors")


def main():
    if sys.argv[1] == "--make":
        return make(Path(sys.argv[2]))
    check = sys.argv[1] == "--check"
    folder = Path(sys.argv[2] if check else sys.argv[1])
    block = json.loads((folder / "golden.json").read_text())["block_size"]
    out, golden = run(folder, block, as_dumped=check)
    if not check:
        save_file(out, sys.argv[2])
        return
    for name, wanted in golden.items():
        if name in out and wanted.dtype == torch.float32:
            scale = wanted.norm().clamp_min(1e-12)
            error = ((out[name] - wanted).norm() / scale).item()
            if error > 1e-4 or not name.startswith("grad.") or "query_key_value" in name:
                print(f"{error:.1e}  {name}")
            assert error <= 1e-4 or wanted.norm() == 0, name


if __name__ == "__main__":
    main()
