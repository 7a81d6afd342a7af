"""Ablations at one short budget, and runs that leave a collection of real pairs out: trains them, measures, tabulates.

    RDDM_DATA=COLLECTION python benchmarks/ablations.py [--only NAME ...] [--leave-out NAME ...] [--split dev|val]

`ablations.json` holds one recipe and, for every variant, what it changes; all variants see the same samples and noise
for the same number of steps, from the same start. Runs lie in RDDM_RUNS (else ~/rddm-runs), folder `ablations`:
what is finished there is not trained again, what was interrupted goes on. What is measured are the weights of the
last step, so nothing is chosen.

`--leave-out stacks` trains `full` once more without the real pairs of that collection, and measures both on all of its
pairs. Only `without-stacks` has seen none of them: for `full`, those of split=train were training pairs, so the pairs
of split=val are tabulated by themselves as well.

Writes ablations/SPLIT.md and SPLIT.csv beside the runs, and likewise stacks.md and stacks.csv.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rddm_core.checkpoint import read_info
from rddm_core.config import merge
from rddm_core.evaluation.evaluate import METRICS, Pair, PairScores, evaluate, find_pairs, summarise, write_csv
from rddm_core.evaluation.rows import combine, peer_method
from rddm_core.files import write_text
from rddm_core.training.recipe import Recipe, load_recipe, runs_folder
from rddm_core.training.train import run

PLAN = Path(__file__).with_suffix(".json")
FOLDER = "ablations"
"""Of the runs, within the folder of all runs."""
FULL = "full"
SHOWN = tuple(m for m in METRICS if m.name in ("psnr", "ssim", "haarpsi", "gmsd", "gradient_energy"))


@dataclass(frozen=True)
class Variant:
    """One run: its name, what it is, and what it changes in the base recipe."""

    name: str
    what: str
    changes: Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, then measure and write the tables."""
    plan = json.loads(PLAN.read_text(encoding="utf-8"))
    variants = [Variant(name, **values) for name, values in plan["variants"].items()]
    names = [v.name for v in variants]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="NAME", help="collections of real pairs")
    parser.add_argument("--split", default="dev", help="part that the ablations are measured on (default: dev)")
    parser.add_argument("--steps", type=int, help="of every run, instead of those of the base recipe")
    args = parser.parse_args(arguments)
    base = plan["base"] | ({"steps": args.steps} if args.steps else {})
    chosen = [v for v in variants if v.name in {FULL, *args.only}]
    left_out = {name: leave_out(name) for name in args.leave_out}
    recipes = {v.name: write_recipe(base, v) for v in [*chosen, *left_out.values()]}
    checkpoints = {name: train(path) for name, path in recipes.items()}

    data = load_recipe(recipes[FULL]).data
    pairs = find_pairs(data.resolved_root() / data.pairs, data.layout)
    if len(chosen) > 1:
        results = measure([p for p in pairs if p.columns["split"] == args.split], chosen, checkpoints)
        write(args.split, [(f"{len(results)} pairs of split={args.split}", chosen, results)], checkpoints)
    for name, variant in left_out.items():
        both = [next(v for v in chosen if v.name == FULL), variant]
        results = measure([p for p in pairs if collection(p) == name], both, checkpoints)
        unseen = [r for r in results if r.pair.columns["split"] == "val"]
        tables = [(f"all {len(results)} pairs of {name}", both, results)]
        tables += [(f"its {len(unseen)} pairs of split=val", both, unseen)] if unseen else []
        write(name, tables, checkpoints)


def leave_out(name: str) -> Variant:
    """The full model, trained without the real pairs of the collection `name`."""
    return Variant(f"without-{name}", f"never saw pairs of {name}", {"data": {"leave_out": name}})


def collection(pair: Pair) -> str:
    """What stands before the slash of a pair's scene."""
    return pair.columns.get("scene", "").split("/")[0]


def write_recipe(base: Mapping[str, Any], variant: Variant) -> Path:
    """The recipe of one variant, as a file beside its run. Raises ValueError where it is no valid recipe."""
    path = runs_folder() / FOLDER / f"{variant.name}.json"
    recipe = merge(base, variant.changes) | {"name": f"{FOLDER}/{variant.name}"}
    write_text(path, json.dumps(recipe, indent=1) + "\n")
    load_recipe(path)
    return path


def train(path: Path) -> Path:
    """Train the recipe at `path`, or what is left of it; returns the weights of its last step.

    Raises ValueError where the run that is there was made by another recipe.
    """
    recipe, folder = load_recipe(path), path.with_suffix("")
    weights, before = folder / "model.safetensors", folder / "recipe.json"
    if before.is_file() and load_recipe(before) != recipe:
        raise ValueError(f"{folder} holds a run of another recipe ({differences(before, recipe)}): move it away")
    if weights.is_file() and read_info(weights).provenance["step"] >= recipe.steps:
        print(f"{recipe.name}: finished before", flush=True)
    else:
        print(f"{recipe.name}: {recipe.steps} steps", flush=True)
        run(path, resume=True)
    return weights


def differences(before: Path, recipe: Recipe) -> str:
    """Names of the fields in which a recipe differs from the one that a run was made by."""
    old, new = asdict(load_recipe(before)), asdict(recipe)
    return ", ".join(key for key in new if old[key] != new[key])


def measure(pairs: Sequence[Pair], variants: Sequence[Variant], weights: Mapping[str, Path]) -> list[PairScores]:
    """Scores of every pair by every variant, at the steps that its checkpoint recommends."""
    method = combine([peer_method(v.name, weights[v.name]) for v in variants])
    results = []
    for result in evaluate(pairs, method, SHOWN):
        if result.error is not None:
            raise ValueError(f"{result.pair.blurred}: {result.error}")
        results.append(result)
        print(f"{len(results)} of {len(pairs)} pairs", end="\r", flush=True)
    if not results:
        raise ValueError("no pairs to measure on: is the name of the split or collection right?")
    return results


Table = tuple[str, Sequence[Variant], Sequence[PairScores]]
"""Heading, rows and scores."""


def write(name: str, tables: Sequence[Table], weights: Mapping[str, Path]) -> None:
    """NAME.md with the tables, printed as well, and NAME.csv with every pair of the first."""
    target = runs_folder() / FOLDER / f"{name}.md"
    text = "\n\n".join("\n".join(table_lines(*table, weights)) for table in tables) + "\n"
    write_text(target, text)
    write_csv(target.with_suffix(".csv"), tables[0][2], SHOWN)
    print(f"{text}\n{target}", flush=True)


def table_lines(
    heading: str, variants: Sequence[Variant], results: Sequence[PairScores], weights: Mapping[str, Path]
) -> Iterator[str]:
    """A Markdown table. `against full`: mean difference in PSNR over the pairs, with its standard error."""
    of = {(s.row, s.metric): s for s in summarise(results, SHOWN)}
    others = [m for m in SHOWN if m.name != "psnr"]
    yield heading + ":"
    yield ""
    columns = ["PSNR gain, mean", "median", "worst", f"against {FULL}", *(m.name for m in others), "steps", "CPU min"]
    yield f"| | what | {' | '.join(columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    for name, what in [("blurred", "the input"), *((v.name, v.what) for v in variants)]:
        cells = [f"{of[name, m.name].mean:.{m.decimals}f}" for m in others]
        if name not in weights:
            yield f"| {name} | {what} | | | | | {' | '.join(cells)} | | |"
            continue
        gain = of[name, "psnr"]
        gains = [f"{x:+.2f} dB" for x in (gain.mean_gain, gain.median_gain, gain.worst_gain)]
        provenance = read_info(weights[name]).provenance
        spent = [str(provenance["step"]), f"{60 * float(provenance['cpu_hours']):.0f}"]
        yield f"| {name} | {what} | {' | '.join([*gains, against_full(name, results), *cells, *spent])} |"


def against_full(name: str, results: Sequence[PairScores]) -> str:
    """Mean PSNR difference to `full` over the pairs, and its standard error."""
    if name == FULL:
        return ""
    changes = [r.rows[name]["psnr"] - r.rows[FULL]["psnr"] for r in results]
    error = f" ± {statistics.stdev(changes) / len(changes) ** 0.5:.2f}" if len(changes) > 1 else ""
    return f"{statistics.fmean(changes):+.2f}{error} dB"


if __name__ == "__main__":
    main()
