"""The ratio of T3S's to PyTorch's tokens per second, from the JSON lines of benches/train_step.sh.

Run i of one is compared with run i of the other, which saw the same load; and the best with the best.
"""
import json, statistics, sys

runs = [json.loads(line) for line in open(sys.argv[1])]
ours, torch = ([r for r in runs if r["who"] == who] for who in ("t3s", "torch"))


def best(runs):
    return max(r["tokens_per_step"] / r["seconds_min"] for r in runs)


for name, side in (("t3s", ours), ("torch", torch)):
    speeds = [r["tokens_per_second"] for r in side]
    rss = max(r["peak_rss_mib"] for r in side)
    print(f"{name:6} tokens/s: median {statistics.median(speeds):.0f}, "
          f"{min(speeds):.0f} to {max(speeds):.0f}; best step {best(side):.0f}; peak RSS {rss:.0f} MiB")
ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, torch, strict=True)]
print(f"ratio t3s / torch: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} "
      f"over {len(ratios)} pairs; best steps {best(ours) / best(torch):.2f}")
