"""The ratio of t3s's to the peer's tokens per second, from the JSON files of benches/peers/compare.sh.

Run i of one is compared with run i of the other, which saw about the same load; and the best with the best.
"""
import json
import statistics
import sys
from pathlib import Path

folder, pairs = Path(sys.argv[1]), int(sys.argv[2])
runs = {who: [json.loads((folder / f"{i}-{who}.json").read_text()) for i in range(1, pairs + 1)]
        for who in ("t3s", "peer")}
for ours, theirs in zip(runs["t3s"], runs["peer"], strict=True):
    for key in ("what", "config", "seq", "batch", "kept", "method", "rank", "dtype"):
        if ours[key] != theirs[key]:
            sys.exit(f"{key}: {ours[key]} of t3s, {theirs[key]} of the peer; not the same work")

for number, part in enumerate(runs["t3s"][0]["parts"]):
    parts = {who: [run["parts"][number] for run in of] for who, of in runs.items()}
    rates = {who: [one["tokens_per_second"]["median"] for one in of] for who, of in parts.items()}
    best = {who: max(one["tokens_per_second"]["max"] for one in of) for who, of in parts.items()}
    print(part["name"])
    for who, of in parts.items():
        peak = max(run["memory"]["peak_bytes"] or 0 for run in runs[who]) / 2**20
        share = statistics.median(one["share_of_gemm"] for one in of)
        print(f"  {who:5} tokens/s: median {statistics.median(rates[who]):.0f}, {min(rates[who]):.0f} to "
              f"{max(rates[who]):.0f}; best {best[who]:.0f}; {100 * share:.0f} % of its best product; "
              f"peak {peak:.0f} MiB")
    ratios = [a / b for a, b in zip(rates["t3s"], rates["peer"], strict=True)]
    print(f"  ratio t3s / peer: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} "
          f"over {pairs} pairs; best {best['t3s'] / best['peer']:.2f}")
