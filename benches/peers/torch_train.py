"""One training step of a Qwen3-like decoder in plain PyTorch: the peer of benches/benches/train_step.rs.

SDPA attention, fused AdamW, float32, the same geometry and thread count. Prints one JSON line.
    python3 benches/peers/torch_train.py --steps 10 --threads 4
"""
import argparse, json, os, resource, time

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4096, 256, 6, 4, 2, 64, 768
EPS, THETA = 1e-6, 1e6


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, EPS)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.mlp_norm = RmsNorm(WIDTH), RmsNorm(WIDTH)
        self.query_norm, self.key_norm = RmsNorm(HEAD_DIM), RmsNorm(HEAD_DIM)
        self.query = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.key = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.value = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.output = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        b, s, _ = x.shape
        h = self.attention_norm(x)
        q = self.query_norm(self.query(h).view(b, s, HEADS, HEAD_DIM)).transpose(1, 2)
        k = self.key_norm(self.key(h).view(b, s, KV_HEADS, HEAD_DIM)).transpose(1, 2)
        v = self.value(h).view(b, s, KV_HEADS, HEAD_DIM).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.output(y.transpose(1, 2).reshape(b, s, HEADS * HEAD_DIM))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.final_norm = RmsNorm(WIDTH)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        inverse = THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        angles = torch.arange(ids.shape[1]).float()[:, None] * inverse
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.final_norm(x), self.embedding.weight)  # tied


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--steps", type=int, default=10)
    args.add_argument("--warmup", type=int, default=3)
    args.add_argument("--threads", type=int, default=os.cpu_count())
    args.add_argument("--examples", type=int, default=8)
    args.add_argument("--tokens", type=int, default=512)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Decoder()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    batches = torch.randint(VOCAB, (args.warmup + args.steps, args.examples, args.tokens))

    seconds, losses = [], []
    for ids in batches:
        start = time.perf_counter()
        logits = model(ids)[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        del logits
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)

    seconds = sorted(seconds[args.warmup:])
    median = seconds[len(seconds) // 2]
    print(json.dumps({
        "what": "train-step", "who": "torch", "version": torch.__version__,
        "threads": torch.get_num_threads(), "tokens_per_step": args.examples * args.tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": args.steps, "seconds_median": median, "seconds_min": seconds[0],
        "seconds_max": seconds[-1], "tokens_per_second": args.examples * args.tokens / median,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_loss": losses[0], "last_loss": losses[-1],
    }))


main()
