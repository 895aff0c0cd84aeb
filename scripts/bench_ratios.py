#!/usr/bin/env python3
"""Prints what the last `cargo bench` found as ratios: each bench against the baselines of its group.

A baseline is a bench whose name begins with "against"; it is compared with those of the same input.
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent / "target" / "criterion"

benches = {}
for path in sorted(ROOT.glob("**/new/benchmark.json")):
    named = json.loads(path.read_text())
    estimates = json.loads((path.parent / "estimates.json").read_text())
    benches[(named["group_id"], named["function_id"], named["value_str"])] = estimates["median"]["point_estimate"]

for (group, function, value), time in benches.items():
    if function.startswith("against"):
        continue
    for (other, baseline, of), least in benches.items():
        if other == group and of == value and baseline.startswith("against"):
            what = f"{group}, {function}" + (f" {value}" if value else "")
            print(f"{time / least:9.2f} × {baseline.removeprefix('against '):34} {what}")
