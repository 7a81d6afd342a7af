"""Break the code on purpose, one change at a time, and see whether the tests notice: diffusion, tiling, merge.

    python benchmarks/mutation.py [--keep FOLDER] [--write]

mutmut works on a copy of the repository, so this one stays as it is; it mutates functions and methods, but not
decorated ones, which is why `merge_residual` loses its decorator in the copy. Lines that raise are left alone: their
messages are not what is tested. `--write` stores the figures and the survivors, with the reasons in
mutation-survivors.json, as benchmarks/MUTATION.md. Exit code 1 where a mutant survives that is not listed there. With
`--keep FOLDER` the copy stays, and a later run tests only what changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = tuple(f"tests/core/test_{name}.py" for name in ("diffusion", "tiling", "tiling_exact", "merge"))
COPIED = ("rddm_core", "tests/core", "tests/support", "tests/conftest.py", "tests/pytest.ini", "pyproject.toml")
MERGE = re.compile(r"^@torch\.inference_mode\(\)\n(def merge_residual.*?\n)(?=\n\n@)", re.DOTALL | re.MULTILINE)
"""Up to the next decorated function: with the helper that `deblur` shares with it."""
SETTINGS = """[mutmut]
source_paths=rddm_core
only_mutate=
    rddm_core/diffusion.py
    rddm_core/tiling.py
    rddm_core/pipeline.py
do_not_mutate_patterns=
    ^\\s*raise
also_copy=
    tests
    rddm_core
pytest_add_cli_args=
    -c
    tests/pytest.ini
pytest_add_cli_args_test_selection=
"""
REASONS = Path(__file__).with_name("mutation-survivors.json")
PAGE = Path(__file__).with_name("MUTATION.md")


def main() -> int:
    """Run mutmut, print and perhaps write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this folder, and keep it")
    parser.add_argument("--write", action="store_true", help="write benchmarks/MUTATION.md")
    args = parser.parse_args()
    with workplace(args.keep) as folder:
        mutmut(folder, "run", "--max-children", "1", quiet=False)
        results = read_results(mutmut(folder, "results", "--all", "true"))
        survivors = {name: read_diff(mutmut(folder, "show", name)) for name in results if results[name] != "killed"}
    reasons: dict[str, str] = json.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {}
    page = format_page(results, survivors, reasons)
    print(page)
    if args.write:
        PAGE.write_text(page, encoding="utf-8")
    return 1 if any(change not in reasons for change in survivors.values()) else 0


@contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """A folder with the copy that is mutated."""
    with tempfile.TemporaryDirectory(prefix="rddm-mutation-") as temporary:
        folder = keep or Path(temporary)
        for name in COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        pipeline = folder / "rddm_core" / "pipeline.py"
        pipeline.write_text(only_the_merge(pipeline.read_text(encoding="utf-8")), encoding="utf-8")
        (folder / "setup.cfg").write_text(SETTINGS + "".join(f"    {test}\n" for test in TESTS), encoding="utf-8")
        yield folder


def mutmut(folder: Path, *arguments: str, quiet: bool = True) -> str:
    """One mutmut command in the copy; its output."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | threads, stdout=subprocess.PIPE if quiet else None, text=True, check=True
    )
    return done.stdout or ""


def only_the_merge(text: str) -> str:
    """pipeline.py with `merge_residual` (MERGE) undecorated and everything else kept from being mutated."""
    if not (found := MERGE.search(text)):
        raise SystemExit(f"merge_residual was not found in pipeline.py: adapt MERGE in {Path(__file__).name}")
    off, on = "# pragma: no mutate start\n", "# pragma: no mutate end\n"
    return f"{off}{text[: found.start()]}{on}{found[1]}{off}{text[found.end() :]}{on}"


def read_results(text: str) -> dict[str, str]:
    """Name -> outcome (killed, survived, timeout, ...) of every mutant."""
    lines = (line.strip().rpartition(": ") for line in text.splitlines() if "__mutmut_" in line)
    return {name: outcome for name, _, outcome in lines}


def read_diff(text: str) -> str:
    """What a mutant changes, in one line: old -> new."""
    lines = [line for line in text.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]
    old, new = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return f"{old} -> {new}"


def format_page(results: dict[str, str], survivors: dict[str, str], reasons: dict[str, str]) -> str:
    """MUTATION.md: counts per module, then every mutant that was not killed."""
    lines = [
        "# Mutation run",
        "",
        "Written by `python benchmarks/mutation.py --write` (`make mutation`): how many deliberate mistakes the tests "
        f"notice ({', '.join(TESTS)}).",
        "",
        "| module | mutants | killed | survived |",
        "|---|---|---|---|",
    ]
    modules = sorted({name.split(".x")[0] for name in results})
    for module in modules:
        outcomes = Counter(outcome == "killed" for name, outcome in results.items() if name.startswith(module + "."))
        lines.append(f"| {module} | {outcomes.total()} | {outcomes[True]} | {outcomes[False]} |")
    lines += ["", "| survivor | outcome | why it stays |", "|---|---|---|"]
    for name, change in survivors.items():
        shown = change.replace("|", "\\|")
        lines.append(f"| `{shown}` | {results[name]} | {reasons.get(change, '**not looked at**')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
