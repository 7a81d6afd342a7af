"""Ablations at one short budget, and runs that leave a collection of real pairs out: trains them, measures, tabulates.

    RDDM_DATA=COLLECTION python benchmarks/ablations.py [--only NAME ...] [--leave-out NAME ...] [--split dev|val]

`ablations.json` holds what all runs share and four groups of variants. Those of `adapted` start from the shipped
weights, without what they lack, and go on for a few steps; those of `fresh` start from nothing and take longer, those
of `renders` likewise, on rendered pictures alone, those of `long` for longer still. Within a group (but `renders`) all
see the same samples and noise in the same order, and are compared with its first. Runs lie in RDDM_RUNS (else
~/rddm-runs), folder `ablations`: what is finished there is not trained again, what was interrupted goes on. What is
measured are the weights of the last step, so nothing is chosen.

`--leave-out stacks` trains `fresh` once more without the real pairs of that collection, and measures both on all of
its pairs. Only `without-stacks` has seen none of them: for `fresh`, those of split=train were training pairs, so the
pairs of split=val are tabulated by themselves as well.

`--jobs 2` trains two runs at a time, with one thread each: more steps in all than one after the other with two.

Writes ablations/GROUP-SPLIT.md and .csv beside the runs, and likewise without-stacks.md and .csv.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rddm_core.checkpoint import read_info
from rddm_core.config import merge
from rddm_core.evaluation.evaluate import METRICS, Pair, PairScores, evaluate, find_pairs, summarise, write_csv
from rddm_core.evaluation.rows import combine, peer_method
from rddm_core.files import write_text
from rddm_core.training.recipe import differences, load_recipe, runs_folder
from rddm_core.training.train import START, run, start_digest

PLAN = Path(__file__).with_suffix(".json")
FOLDER = "ablations"
"""Of the runs, within the folder of all runs."""
FRESH = "fresh"
"""The group, and its first variant, that `--leave-out` changes."""
SHOWN = tuple(m for m in METRICS if m.name in ("psnr", "ssim", "haarpsi", "gmsd", "gradient_energy"))


@dataclass(frozen=True)
class Variant:
    """One run: its name, what it is, and what it changes in the recipe of its group."""

    name: str
    what: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Variants at one budget; the first is what the others are compared with."""

    base: Mapping[str, Any]
    variants: Sequence[Variant]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, then measure and write the tables."""
    groups = read_plan(PLAN)
    names = [v.name for group in groups.values() for v in group.variants]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="NAME", help="collections of real pairs")
    parser.add_argument("--split", default="dev", help="part that the variants are measured on (default: dev)")
    parser.add_argument("--steps", type=int, help="of every run, instead of those of its group")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    args = parser.parse_args(arguments)
    chosen = {name: select(group, args.only) for name, group in groups.items()}
    left_out = [leave_out(name, groups[FRESH].variants[0]) for name in args.leave_out]
    runs = {name: list(variants) for name, variants in chosen.items()}
    if left_out:
        runs[FRESH] = [*(chosen[FRESH] or groups[FRESH].variants[:1]), *left_out]
    recipes = {v.name: write_recipe(groups[name].base, v, args.steps) for name in runs for v in runs[name]}
    weights = train_all(recipes, args.jobs)

    data = load_recipe(next(iter(recipes.values()))).data
    pairs = find_pairs(data.resolved_root() / data.pairs, data.layout)
    for name, variants in chosen.items():
        if len(variants) > 1:
            results = measure([p for p in pairs if p.columns["split"] == args.split], variants, weights)
            heading = f"{len(results)} pairs of split={args.split}"
            write(f"{name}-{args.split}", [(heading, variants, results)], weights)
    for name, variant in zip(args.leave_out, left_out, strict=True):
        both = [groups[FRESH].variants[0], variant]
        results = measure([p for p in pairs if collection(p) == name], both, weights)
        unseen = [r for r in results if r.pair.columns["split"] == "val"]
        tables = [(f"all {len(results)} pairs of {name}", both, results)]
        tables += [(f"its {len(unseen)} pairs of split=val", both, unseen)] if unseen else []
        write(variant.name, tables, weights)


def read_plan(path: Path) -> dict[str, Group]:
    """The groups by name, what all share merged into the recipe of each."""
    plan = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Group(
            merge(plan["base"], group["base"]), [Variant(v, **values) for v, values in group["variants"].items()]
        )
        for name, group in plan["groups"].items()
    }


def select(group: Group, names: Sequence[str]) -> list[Variant]:
    """The variants of `group` that are in `names` and those that they start from, and its first where there is any."""
    first, *others = group.variants
    starts = {v.changes.get("start_from") for v in others if v.name in names}
    found = [v for v in others if v.name in names or run_name(v) in starts]
    return [first, *found] if found or first.name in names else []


def run_name(variant: Variant) -> str:
    """Of its recipe, and of its folder among all runs."""
    return f"{FOLDER}/{variant.name}"


def leave_out(name: str, whole: Variant) -> Variant:
    """`whole`, trained without the real pairs of the collection `name`."""
    changes = merge(whole.changes, {"data": {"leave_out": name}})
    return Variant(f"without-{name}", f"never saw pairs of {name}", changes)


def collection(pair: Pair) -> str:
    """What stands before the slash of a pair's scene."""
    return pair.columns.get("scene", "").split("/")[0]


def write_recipe(base: Mapping[str, Any], variant: Variant, steps: int | None = None) -> Path:
    """The recipe of one variant, as a file beside its run; `steps` instead of its own. Raises ValueError where it is no
    valid recipe.
    """
    path = runs_folder() / FOLDER / f"{variant.name}.json"
    recipe = merge(base, variant.changes) | {"name": run_name(variant)} | ({"steps": steps} if steps else {})
    write_text(path, json.dumps(recipe, indent=1) + "\n")
    load_recipe(path)
    return path


def train_all(recipes: Mapping[str, Path], jobs: int) -> dict[str, Path]:
    """Train every recipe, or what is left of it; returns the weights of their last steps by name.

    Those that start from another's weights come last. One job trains in this process; of more, each is a process with
    one thread, and the first failure stops what has not begun. Raises ValueError where a run that is there was made by
    another recipe or from other weights, RuntimeError where a process failed.
    """
    missing = {path: load_recipe(path) for path in recipes.values() if not finished(path)}
    trained_here = {recipe.name for recipe in missing.values()}
    for later in (False, True):
        train_some([path for path, recipe in missing.items() if (recipe.start_from in trained_here) == later], jobs)
    return {name: weights_of(path) for name, path in recipes.items()}


def train_some(paths: Sequence[Path], jobs: int) -> None:
    """Train these recipes, in any order."""
    if jobs <= 1:
        for path in paths:
            run(path, resume=True)
        return
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(train_apart, path) for path in paths]):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def train_apart(path: Path) -> None:
    """Train the recipe at `path` in a process with one thread."""
    command = [sys.executable, "-m", "rddm_core", "train", str(path), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = path.with_suffix(".log")
    with log.open("a") as file:
        code = subprocess.run(
            command, cwd=Path(__file__).parents[1], env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code:
        raise RuntimeError(f"training by {path} failed: see {log}")


def finished(path: Path) -> bool:
    """Whether the run of the recipe at `path` is complete; ValueError where it was made by another recipe, or began
    with other weights than the recipe would begin with now.
    """
    recipe, weights, before = load_recipe(path), weights_of(path), path.with_suffix("") / "recipe.json"
    if before.is_file() and (changed := differences(load_recipe(before), recipe)):
        raise ValueError(f"{before.parent} holds a run of another recipe ({', '.join(changed)}): move it away")
    start = before.with_name(START)  # a run of an earlier version has none
    if start.is_file() and start.read_text(encoding="utf-8") != start_digest(recipe):
        raise ValueError(f"{start.parent} holds a run from other weights than {recipe.start_from} is now: move it away")
    done = weights.is_file() and read_info(weights).provenance["step"] >= recipe.steps
    print(f"{recipe.name}: {'finished before' if done else f'{recipe.steps} steps'}", flush=True)
    return done


def weights_of(path: Path) -> Path:
    """Of the last step, for the recipe at `path`."""
    return path.with_suffix("") / "model.safetensors"


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
    """A Markdown table. `against ...`: mean difference in PSNR to the first variant, with its standard error."""
    of = {(s.row, s.metric): s for s in summarise(results, SHOWN)}
    others = [m for m in SHOWN if m.name != "psnr"]
    yield heading + ":"
    yield ""
    reference = variants[0].name
    against = f"against {reference}"
    columns = ["PSNR gain, mean", "median", "worst", against, *(m.name for m in others), "steps", "CPU min"]
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
        yield f"| {name} | {what} | {' | '.join([*gains, difference(name, reference, results), *cells, *spent])} |"


def difference(name: str, reference: str, results: Sequence[PairScores]) -> str:
    """Mean PSNR difference to the row `reference` over the pairs, and its standard error."""
    if name == reference:
        return ""
    changes = [r.rows[name]["psnr"] - r.rows[reference]["psnr"] for r in results]
    error = f" ± {statistics.stdev(changes) / len(changes) ** 0.5:.2f}" if len(changes) > 1 else ""
    return f"{statistics.fmean(changes):+.2f}{error} dB"


if __name__ == "__main__":
    main()
