"""What transformers and torch need for the work of `t3s bench`, on the same shapes: the peer.

    python3 benches/peers/hf_train.py train|score|generate|head --config qwen3-0.6b [options of t3s bench]

SDPA attention, fused AdamW; bfloat16 weights on CUDA, float32 on the CPU. `--method lora` is peft's, on every
projection. `--compile` compiles the model. Options and their defaults are those of `t3s bench`; prints one JSON
object with the same keys. Examples have one length, so that no side computes padding.
"""
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

CONFIGS = Path(__file__).parents[2] / "pipeline" / "src" / "bench" / "configs"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    works = parser.add_subparsers(dest="what", required=True)
    for what, help_ in [("train", "optimiser steps"), ("score", "log-probability, entropy and rank of every token"),
                        ("generate", "greedy answers of one length"), ("head", "the head's forward and backward")]:
        work = works.add_parser(what, help=help_)
        work.add_argument("--config", default="tiny", help="a name, or a config.json")
        work.add_argument("--steps", type=int, default=5)
        work.add_argument("--warmup", type=int, default=2)
        work.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        work.add_argument("--threads", type=int, default=0)
        work.add_argument("--seed", type=int, default=0)
        work.add_argument("--seq", type=int, default=128 if what == "generate" else 512)
        work.add_argument("--batch", type=int, default=64 if what == "generate" else 8)
        work.add_argument("--compile", action="store_true")
        if what in ("train", "score"):
            work.add_argument("--tokens", type=int, help="most tokens per pass")
        if what != "generate":
            work.add_argument("--kept", type=float, default=0.4 if what == "head" else 1.0)
        if what == "train":
            work.add_argument("--method", choices=["full", "lora"], default="full")
            work.add_argument("--rank", type=int)
            work.add_argument("--recompute", choices=["none", "block"], default="none")
        if what == "generate":
            work.add_argument("--new-tokens", type=int, default=128)
    args = parser.parse_args()
    if args.what == "train" and args.method == "full" and args.rank is not None:
        parser.error("--rank: only adapters have one; add --method lora")
    return args


def config_of(name):
    path = CONFIGS / f"{name}.json"
    fields = json.loads((path if path.exists() else Path(name)).read_text())
    return transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)


# ---- operations, as pipeline/src/bench/flops.rs counts them; a test holds the two together ----

def pairs(seq):
    return seq * (seq + 1) // 2


class Flops:
    def __init__(self, config, rank=None):
        width, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        q = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        self.blocks = layers * (width * (2 * q + 2 * kv) + 3 * width * hidden)
        self.first_inputs = width * (q + 2 * kv)
        self.head_weights = width * config.vocab_size
        self.pair = 4 * layers * q
        sizes = 2 * (width + q) + 2 * (width + kv) + 3 * (width + hidden)
        self.adapters = None if rank is None else rank * layers * sizes
        self.first_a = None if rank is None else 3 * rank * width

    def forward(self, examples, seq, rows):
        weights = self.blocks + (self.adapters or 0)
        return 2 * examples * seq * weights + self.pair * examples * pairs(seq) + 2 * rows * self.head_weights

    def train(self, examples, seq, rows):
        tokens, attention = examples * seq, 2 * self.pair * examples * pairs(seq)
        if self.adapters is None:
            backward = 4 * tokens * self.blocks + 4 * rows * self.head_weights
        else:
            backward = (2 * tokens * (self.blocks - self.first_inputs)
                        + 2 * tokens * (2 * self.adapters - self.first_a) + 2 * rows * self.head_weights)
        return self.forward(examples, seq, rows) + attention + backward

    def head(self, rows):
        return 6 * rows * self.head_weights

    def decode(self, answers, prompt, new):
        seen = pairs(prompt + new - 1) - pairs(prompt)
        return answers * (2 * (new - 1) * (self.blocks + self.head_weights) + self.pair * seen)


# ---- the clock ----

class Clock:
    def __init__(self, args, device):
        self.args, self.device = args, device

    def sync(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, work):
        self.sync()
        start = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - start

    def repeat(self, work):
        for _ in range(self.args.warmup):
            self.time(work)
        before = usage()
        seconds = [self.time(work) for _ in range(self.args.steps)]
        return seconds, used(before)


def usage():
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {"user_seconds": own.ru_utime, "system_seconds": own.ru_stime, "minor_faults": float(own.ru_minflt)}


def used(before):
    now = usage()
    return {key: now[key] - before[key] for key in now}


def part(name, tokens, rows, flops, seconds, usage):
    return {"name": name, "tokens": tokens, "rows": rows, "flops": flops, "seconds": seconds, "usage": usage}


def spread(figures):
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}


# ---- the work ----

def keeps(row, kept):
    return int((row + 1) * kept) > int(row * kept)


def kept_positions(args):
    return [p for p in range(1, args.seq) if keeps(p - 1, args.kept)]


def batches(args, config, device, rounds):
    torch.manual_seed(args.seed)
    return torch.randint(config.vocab_size, (rounds, args.batch, args.seq)).to(device)


def passes(args):
    """Examples of each pass of a step."""
    most = max(1, (args.tokens or args.batch * args.seq) // args.seq)
    return [range(first, min(first + most, args.batch)) for first in range(0, args.batch, most)]


def train(args, model, config, flops, clock):
    learning = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-4, weight_decay=0.0, fused=True)
    rounds = iter(batches(args, config, clock.device, args.warmup + args.steps))
    positions = kept_positions(args)
    asked = torch.zeros(args.seq, dtype=torch.bool, device=clock.device)
    asked[positions] = True
    rows, losses = args.batch * len(positions), []
    model.train()

    def step():
        ids = next(rounds)
        total = 0.0
        for examples in passes(args):
            ids_here = ids[examples.start:examples.stop]
            labels = ids_here.masked_fill(~asked, -100)
            loss = model(input_ids=ids_here, labels=labels, num_items_in_batch=rows).loss
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(total))

    seconds, usage_ = clock.repeat(step)
    tokens = args.batch * args.seq
    work = flops.train(args.batch, args.seq, rows)
    return [part("step", tokens, rows, work, seconds, usage_)], [losses[0], losses[-1]]


def score(args, model, config, flops, clock):
    ids = batches(args, config, clock.device, 1)[0]
    positions = torch.tensor(kept_positions(args), device=clock.device)
    rows = args.batch * len(positions)
    model.eval()

    @torch.no_grad()
    def one_pass():
        for examples in passes(args):
            here = ids[examples.start:examples.stop]
            # Only rows with a target ask the head; statistics in float32, some rows at a time.
            logits = model(input_ids=here, logits_to_keep=positions - 1).logits.flatten(0, 1)
            for z, y in zip(logits.split(1024), here[:, positions].flatten().split(1024)):
                z = z.float()
                logp = F.log_softmax(z, dim=-1)
                own = logp.gather(1, y[:, None])
                entropy = -(logp.exp() * logp).sum(-1)
                rank = (z > z.gather(1, y[:, None])).sum(-1)
                own.cpu(), entropy.cpu(), rank.cpu()

    seconds, usage_ = clock.repeat(one_pass)
    work = flops.forward(args.batch, args.seq, rows)
    return [part("pass", args.batch * args.seq, rows, work, seconds, usage_)], None


def generate(args, model, config, flops, clock):
    ids = batches(args, config, clock.device, 1)[0]
    mask = torch.ones_like(ids)
    model.eval()

    @torch.no_grad()
    def run(new):
        out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new,
                             min_new_tokens=new, eos_token_id=None, pad_token_id=0)
        assert out.shape[1] == args.seq + new

    sums = [[], []]
    totals = [dict.fromkeys(usage(), 0.0) for _ in range(2)]
    for round_ in range(args.warmup + args.steps):
        for _ in range(10):
            before = usage()
            first = clock.time(lambda: run(1))
            middle = used(before)
            before = usage()
            whole = clock.time(lambda: run(args.new_tokens))
            rest = {key: value - middle[key] for key, value in used(before).items()}
            if whole > first:
                break
        else:
            sys.exit("writing takes no time beside reading the prompts; ask for more --new-tokens")
        if round_ >= args.warmup:
            for seconds, total, took, use in ((sums[0], totals[0], first, middle),
                                              (sums[1], totals[1], whole - first, rest)):
                seconds.append(took)
                for key in total:
                    total[key] += use[key]
    b, new = args.batch, args.new_tokens
    return [part("prefill", b * args.seq, b, flops.forward(b, args.seq, b), sums[0], totals[0]),
            part("decode", b * (new - 1), b * (new - 1), flops.decode(b, args.seq, new), sums[1], totals[1])], None


def head(args, weight, config, flops, clock):
    """A matrix product, cross entropy, and what autograd makes of them."""
    n = args.batch * args.seq
    hidden = (torch.rand(n, config.hidden_size, device=clock.device, dtype=weight.dtype) * 2 - 1).requires_grad_()
    targets = torch.randint(config.vocab_size, (n,), device=clock.device)

    def of(logits_of, rows):
        def run():
            loss = F.cross_entropy(logits_of(hidden[rows]).float(), targets[rows], reduction="sum") / n
            loss.backward()
            hidden.grad = None
        return run

    parts = []
    for kept in [1.0] if args.kept == 1.0 else [1.0, args.kept]:
        rows = torch.tensor([r for r in range(n) if keeps(r, kept)], device=clock.device)
        seconds, usage_ = clock.repeat(of(lambda h: F.linear(h, weight), rows))
        parts.append(part(f"kept {kept:g}", n, len(rows), flops.head(len(rows)), seconds, usage_))
    return parts, None


# ---- the report ----

def gemm(device, dtype, clock):
    best = {"flops_per_second": 0.0, "size": 0}
    for size in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        # As t3s bench: random numbers, since products of ones are faster.
        matrix = (torch.rand(size, size, device=device) * 2 - 1).to(dtype)
        began, rounds = time.perf_counter(), 0
        while rounds < 3 or time.perf_counter() - began < 0.25:
            with torch.no_grad():
                rate = 2 * size ** 3 / clock.time(lambda: F.linear(matrix, matrix))
            if rate > best["flops_per_second"]:
                best = {"flops_per_second": rate, "size": size}
            rounds += 1
    return best


def peak_bytes(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(path, key):
    try:
        line = next(line for line in open(path) if line.startswith(key))
        return line.split(":", 1)[1].strip()
    except (OSError, StopIteration):
        return None


def machine(device):
    try:
        load = open("/proc/loadavg").read().strip()
    except OSError:
        load = None
    packed = CONFIGS.parents[3] / "commit"
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=CONFIGS,
                         capture_output=True, text=True)
    cpu = read("/proc/cpuinfo", "model name") or platform.processor()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "commit": packed.read_text().strip() if packed.exists() else git.stdout.strip() or None,
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "load_before": load,
    }


def options(args):
    given = {"attention": "sdpa", "compile": args.compile}
    if args.what in ("train", "score"):
        given["pass_tokens"] = args.tokens or args.batch * args.seq
    if args.what == "train":
        given["recompute"] = args.recompute
    if args.what == "generate":
        given["new_tokens"] = args.new_tokens
    return given


def main():
    args = arguments()
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = config_of(args.config)
    config._attn_implementation = "sdpa"
    where = machine(device)
    clock = Clock(args, device)
    method = args.method if args.what == "train" else None
    rank = (args.rank or 16) if method == "lora" else None
    flops = Flops(config, rank)
    if args.what == "head":
        weight = torch.randn(config.vocab_size, config.hidden_size, device=device, dtype=dtype) * 0.02
        weight.requires_grad_()
        # What t3s bench makes for it: embedding, final norm, and a head where it is not tied.
        parameters = weight.numel() * (1 if config.tie_word_embeddings else 2) + config.hidden_size
        trainable, model = 0, weight
    else:
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        parameters = sum(p.numel() for p in model.parameters())
        if method == "lora":
            import peft
            model = peft.get_peft_model(model, peft.LoraConfig(
                r=rank, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"))
        if method and args.recompute == "block":
            if method == "lora":
                model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if method:
            model.config.use_cache = False
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if method else 0
        if args.compile:
            model.compile()
    work = {"train": train, "score": score, "generate": generate, "head": head}[args.what]
    parts, loss = work(args, model, config, flops, clock)
    peak = peak_bytes(device)
    best = gemm(device, dtype, clock)
    for one in parts:
        seconds, used_ = one.pop("seconds"), one.pop("usage")
        rate = one["flops"] / statistics.median(seconds)
        one |= {"seconds": seconds, "tokens_per_second": spread([one["tokens"] / s for s in seconds]),
                "flops_per_second": rate, "share_of_gemm": rate / best["flops_per_second"], "usage": used_}
    print(json.dumps({
        "what": args.what, "who": "transformers",
        "version": f"{transformers.__version__}, torch {torch.__version__}",
        "config": args.config, "parameters": parameters, "trainable": trainable, "method": method, "rank": rank,
        "dtype": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype], "machine": where,
        "seq": args.seq, "batch": args.batch, "kept": getattr(args, "kept", 1.0),
        "warmup": args.warmup, "steps": args.steps, "options": options(args), "parts": parts, "gemm": best,
        "memory": {"peak_bytes": peak, "kind": "allocated" if device.type == "cuda" else "resident",
                   "predicted_bytes": None},
        "loss": loss,
    }))


if __name__ == "__main__":
    main()
