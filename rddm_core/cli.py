"""Command line: deblur, evaluate, evaluate-maps, train, average, info.

Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__

if TYPE_CHECKING:
    import torch

    from .checkpoint import CheckpointInfo
    from .config import RDDMConfig
    from .data.sources import MaskedPhoto
    from .evaluation.evaluate import Method, Pair, PairScores
    from .evaluation.maps import MapScore, RadiusOrder
    from .evaluation.report import Report
    from .networks.model import RDDM
    from .pipeline import DeblurSettings
    from .scale.job import Job, Outcome, Work
    from .scale.manifest import Manifest

PROGRAM = "python -m rddm_core"
MAX_NAME = 255
"""Of a file, as `_name_length` counts."""
PROGRESS_SECONDS = 20.0
"""Between lines of progress, where there is no terminal for a bar."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""
TERMINATED = 143
"""Exit code after SIGTERM, likewise."""


class CommandError(Exception):
    """The command cannot be carried out as given; the message names the cause and the cure."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: the command ends as after Ctrl-C."""


def program() -> NoReturn:
    """`main` as the whole of a process, which it ends: after an interruption without waiting for other threads."""
    code = main()
    if code in (INTERRUPTED, TERMINATED):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 only if everything succeeded."""
    args = build_parser().parse_args(arguments)
    with _logging_beside_progress_bars():
        try:
            code = args.run(args)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # Who read the output has left (`| head`): the rest goes nowhere, without a complaint at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (CommandError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except (MemoryError, RuntimeError) as error:
            from .memory import ran_out_of_memory

            if not ran_out_of_memory(error):
                raise
            print(f"error: out of memory, end other programs ({str(error) or type(error).__name__})", file=sys.stderr)
            return 1
        except KeyboardInterrupt as stop:
            print("interrupted: no unfinished file is left behind", file=sys.stderr)
            return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `run` holds the function of the chosen one."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Deblurs out-of-focus photographs with a residual diffusion model (RDDM)."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_deblur(commands)
    _add_evaluate(commands)
    _add_evaluate_maps(commands)
    _add_train(commands)
    _add_average(commands)
    _add_info(commands)
    return parser


def _add_deblur(commands: Any) -> None:
    parser = commands.add_parser(
        "deblur",
        help="deblur photographs",
        description="Deblur photographs (JPEG, PNG, WebP, TIFF, BMP). Alpha, EXIF and colour profile are "
        "kept and EXIF orientation is applied. Inputs are never overwritten. A picture that fails does not "
        "stop the others, but the exit code is then 1.",
    )
    parser.add_argument("inputs", nargs="+", type=_input, metavar="INPUT", help="pictures, or folders of them")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="a folder (made if missing; pictures keep their names), or for a single picture also a file",
    )
    parser.add_argument(
        "--max-pixels",
        type=_pixel_count,
        metavar="N|NMP",
        help="refuse larger pictures unread: a number of pixels, or of megapixels, as in 40MP (default: 150MP)",
    )
    _add_settings(parser)
    _add_model(parser)
    _add_scale(parser)
    extras = parser.add_argument_group("also write, beside each result")
    extras.add_argument("--save-map", action="store_true", help="NAME.map.png: defocus map, white = out of focus")
    extras.add_argument(
        "--save-pre-deblur",
        action="store_true",
        help="NAME.pre-deblur.png: the first guess, before the diffusion",
    )
    extras.add_argument(
        "--compare",
        action="store_true",
        help="NAME.compare.jpg: input and result side by side, with a detail",
    )
    parser.set_defaults(run=run_deblur)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many pictures")
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="keep OUT/manifest.jsonl, and skip the pictures that it lists as done with these settings and weights; "
        "give it from the first run on (default with --engine ray)",
    )
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local (default): one picture at a time in this process; ray: several at a time, by Ray Data, on this "
        "machine or the cluster that RAY_ADDRESS names (needs the extra `scale`)",
    )
    group.add_argument(
        "--workers",
        type=_at_least(1),
        metavar="N",
        help="of --engine ray: how many pictures at a time (default: one for every four cores)",
    )
    group.add_argument(
        "--threads",
        type=_at_least(1),
        metavar="N",
        help="of torch, for each picture (default: all cores, shared among the workers); the same number gives the "
        "same bytes with either engine",
    )


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure on pairs of blurred and sharp photographs",
        description="Score the blurred input and every row (a method, or a variant of this one) against the sharp "
        "photographs: PSNR, SSIM, MAE, HaarPSI, GMSD, MDSI, FSIM, gradient energy over the target's and colour "
        "shift, with their gain over the input. `--report` needs the extra `eval`.",
    )
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="a manifest (CSV with the columns blur and sharp, paths relative to it; or the column file: photographs "
        "that are their own target), or the folder of a data set",
    )
    parser.add_argument(
        "--layout",
        default="auto",
        metavar="NAME",
        help="of the data set: auto (default), manifest, dpdd, lfdof, realdof or folders (blur/ and sharp/)",
    )
    _add_selection(parser)
    parser.add_argument(
        "--enlarge",
        type=_at_least(1),
        default=1,
        metavar="N",
        help="enlarge both pictures N times first, as if the camera had more megapixels",
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        default=["default"],
        metavar="A,B,...",
        help="unsharp, wiener, richardson-lucy, pre-deblurred, final, steps-N, mean-N (of N samples), map-zeroed, "
        "map-inverted, guidance-zeroed; or default (pre-deblurred,final), or all",
    )
    rows.add_argument(
        "--peer",
        type=_named_file,
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="one more row, repeatedly: a checkpoint of this package, or any restoration model that spandrel loads",
    )
    rows.add_argument("--lpips", action="store_true", help="add LPIPS, where its weights are at hand")
    rows.add_argument("--fid", action="store_true", help="add FID on patches of 192 pixels, likewise")
    output = parser.add_argument_group("also write")
    output.add_argument("--json", type=Path, metavar="FILE", help="summary and all scores")
    output.add_argument("--csv", type=Path, metavar="FILE", help="all scores as a table")
    output.add_argument("--report", type=Path, metavar="FILE.html", help="one page with tables, plots and crops")
    output.add_argument(
        "--sharp", type=Path, metavar="DATA", help="for the report: sharp photographs as their own target"
    )
    output.add_argument(
        "--masks", type=Path, metavar="DATA", help="for the report: photographs with defocus masks, as of evaluate-maps"
    )
    _add_threshold(parser)
    _add_settings(parser)
    _add_model(parser)
    parser.set_defaults(run=run_evaluate)


def _add_evaluate_maps(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate-maps",
        help="measure defocus maps on photographs with masks",
        description="Score the estimator's maps, those from edges and an all-white one against hand-made masks: IoU of "
        "both classes, F-beta and MAE, at one threshold.",
    )
    parser.add_argument(
        "masks",
        type=Path,
        metavar="DATA",
        help="a manifest (CSV with the columns image and mask, white = out of focus; paths relative to the folder that "
        "holds the manifest's folder: of SET/masks/manifest.csv to SET), or CUHK's folder",
    )
    parser.add_argument(
        "--sharp",
        type=Path,
        metavar="DATA",
        help="sharp photographs, which are made out of focus: does the map follow the true radius?",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="instead print the estimator's IoU of both classes at many thresholds, to choose one on the dev part",
    )
    _add_threshold(parser)
    _add_selection(parser)
    _add_model(parser)
    parser.set_defaults(run=run_evaluate_maps)


def _add_threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        type=_share,
        default=0.5,
        metavar="X",
        help="of defocus maps against masks: above it, a pixel counts as out of focus (default: 0.5)",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=_at_least(1), metavar="N", help="only the first N")
    parser.add_argument(
        "--where",
        type=_condition,
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only rows with this value; repeat to demand more. Data sets have the column split: train, dev or test. "
        "Of the other sets that a command is given beside DATA, split alone selects, and they need that column then",
    )


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train by a recipe", description="Train by a recipe (JSON).")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="recipe; see rddm_core/training/recipes")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop, resumably, after this time")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.set_defaults(run=run_train)


def _add_average(commands: Any) -> None:
    parser = commands.add_parser(
        "average",
        help="the mean of checkpoints",
        description="Write the mean of the weights of runs that went out from the same weights. Choose on dev whether "
        "it is better than each of them.",
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="two or more of one network")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    parser.set_defaults(run=run_average)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info", help="show what a checkpoint holds", description="Show what a checkpoint holds."
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="default: the shipped weights")
    parser.set_defaults(run=run_info)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--steps",
        type=_at_least(0),
        default=0,
        help="diffusion steps; 0 = what the weights recommend (default)",
    )
    group.add_argument("--seed", type=int, default=0, help="noise seed (default: 0)")
    group.add_argument("--strength", type=float, default=1.0, help="0 = the input, 1 = the full change (default)")
    group.add_argument(
        "--samples",
        type=_at_least(1),
        default=1,
        metavar="N",
        help="draw N results, each from other noise and with the picture mirrored or turned, and write their mean: "
        "a little better, for more time (default: 1)",
    )
    group.add_argument(
        "--tile",
        type=_word_or_number("auto", "off"),
        default="auto",
        metavar="auto|off|N",
        help="longest side of a tile in pixels; smaller needs less memory (default: auto)",
    )
    group.add_argument(
        "--working-size",
        type=_word_or_number("auto", "full"),
        default="auto",
        metavar="auto|full|N",
        help="long side to which a photograph is reduced for the networks, whose change is then enlarged; "
        "auto reduces large ones with strong blur (default)",
    )
    group.add_argument(
        "--memory",
        type=_byte_count,
        metavar="SIZE",
        help="what one picture may take, as in 2GB or 1.5GiB: itself, the result and the networks' work; decides the "
        "size of tiles with --tile auto (default: tiles of 1408 pixels for pictures above 2 megapixels)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", type=Path, metavar="FILE", help="checkpoint (default: the shipped weights)")
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps, ...")
    group.add_argument(
        "--dtype",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="precision of the networks; auto is fp32, lower ones save memory and lose quality",
    )


# deblur


def run_deblur(args: argparse.Namespace) -> int:
    """Deblur every picture; 0 only if all succeeded."""
    with _stop_on_sigterm():
        return _deblur(args)


def _deblur(args: argparse.Namespace) -> int:
    wanted = {"map": args.save_map, "pre-deblur": args.save_pre_deblur, "compare": args.compare}
    if args.workers and args.engine != "ray":
        raise CommandError("--workers needs --engine ray: without it, one picture is deblurred at a time")
    jobs, unreadable = plan_jobs(args.inputs, args.output, [name for name, on in wanted.items() if on])
    for source, reason in unreadable.items():
        _say(f"failed: {source}: {reason}", error=True)
    failures = len(unreadable)
    if jobs:
        failures += _deblur_all(args, jobs)
    if failures:
        _say(f"{failures} of {len(jobs) + len(unreadable)} failed", error=True)
    return 1 if failures else 0


def _deblur_all(args: argparse.Namespace, jobs: list[Job]) -> int:
    """Returns the number of failures."""
    from tqdm import tqdm

    from .checkpoint import CheckpointError
    from .files import remove_abandoned
    from .scale.ray_data import EngineError

    work, engine, failures = _work(args), _engine(args), []
    for folder in {path.parent for job in jobs for path in job.outputs()}:
        _require_writable_folder(folder)
        remove_abandoned(folder)
    with _manifest(args, jobs, work) as manifest:
        waiting = manifest.unfinished(jobs) if manifest else jobs
        if manifest and len(waiting) < len(jobs):
            _say(f"{len(jobs) - len(waiting)} of {len(jobs)} are done already, by {manifest.path}")
        with tqdm(total=len(waiting), unit=" pictures", disable=None, leave=False) as bar:

            def report(outcome: Outcome) -> None:
                if manifest:
                    manifest.record(outcome)
                if outcome.error is not None:
                    failures.append(outcome)
                _announce(outcome)
                bar.update()

            try:
                if waiting:
                    engine(waiting, work, report)
            except (CheckpointError, EngineError) as error:
                raise CommandError(str(error)) from error
    return len(failures)


def _work(args: argparse.Namespace) -> Work:
    from .checkpoint import CheckpointError, read_info
    from .images import DEFAULT_MAX_PIXELS
    from .regression import refuse_regression
    from .scale.job import Work

    work = Work(_settings(args), *_model_choice(args), max_pixels=args.max_pixels or DEFAULT_MAX_PIXELS)
    try:
        info = read_info(work.checkpoint)  # before anything is started that needs it
        refuse_regression(work.checkpoint, info.provenance)
    except CheckpointError as error:
        raise CommandError(str(error)) from error
    _check_steps(args.steps, info.config)
    return work


@contextmanager
def _manifest(args: argparse.Namespace, jobs: Sequence[Job], work: Work) -> Iterator[Manifest | None]:
    from .scale.manifest import MANIFEST_NAME, Manifest

    single = len(jobs) == 1 and jobs[0].target == Path(args.output)
    if not (args.engine == "ray" and not single if args.resume is None else args.resume):
        yield None
        return
    if single:
        raise CommandError(f"--resume keeps {MANIFEST_NAME} among the results: give a folder as output, ending with /")
    with Manifest(Path(args.output), work.fingerprint()) as manifest:
        yield manifest


def _engine(args: argparse.Namespace) -> Callable[[list[Job], Work, Callable[[Outcome], None]], None]:
    """What deblurs the pictures and reports each. CommandError if it is not there."""
    import torch

    from .scale.local import run_local
    from .scale.ray_data import EngineError, require_ray, run_ray, share_cores

    if args.engine == "local":
        if args.threads:
            torch.set_num_threads(args.threads)
        return partial(run_local, watch=_progress_bar, overlap=args.memory is None)
    try:
        require_ray()
    except EngineError as error:
        raise CommandError(str(error)) from error
    workers, threads = share_cores(torch.get_num_threads(), args.workers, args.threads)
    _say(f"Ray: up to {workers} pictures at a time, with {threads} threads each")
    return partial(run_ray, workers=workers, threads=threads, warn=_warn)


def _announce(outcome: Outcome) -> None:
    job = outcome.job
    if outcome.error is not None:
        _say(f"failed: {outcome.error}", error=True)
        return
    _say(f"{job.source} -> {job.target} ({outcome.width}x{outcome.height}, {outcome.seconds:.1f} s)")
    for name, path in job.extras.items():
        _say(f"  {name}: {path}")


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated, where this thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan_jobs(inputs: Iterable[Path], output: str, extras: Sequence[str] = ()) -> tuple[list[Job], dict[Path, str]]:
    """What is read and what is written, before anything is done.

    Returns the jobs and, for inputs that cannot be read at all, the reasons. Of a folder the pictures
    directly in it are taken. Raises CommandError where an input would be overwritten, two results would have
    the same name, or `output` fits neither a file nor a folder.
    """
    from .scale.job import EXTRA_SUFFIXES, Job

    inputs = list(inputs)
    sources, failed = _find_pictures(inputs)
    folder = _is_folder_output(output, single=len(inputs) == 1 and not inputs[0].is_dir())
    jobs = []
    for source in sources:
        target = Path(output) / source.name if folder else Path(output)
        beside = {name: target.with_name(f"{target.stem}.{name}{EXTRA_SUFFIXES[name]}") for name in extras}
        if long := [path.name for path in beside.values() if _name_length(path) > MAX_NAME]:
            failed[source] = f"{long[0]} would be longer than a file's name may be: shorten the name of the picture"
            continue
        jobs.append(Job(source, target, beside))
    _refuse_clashes(jobs)
    return jobs, failed


def _name_length(path: Path) -> int:
    """As file systems count: Linux and macOS in bytes, Windows in letters."""
    return len(path.name) if os.name == "nt" else len(os.fsencode(path.name))


def _find_pictures(inputs: Iterable[Path]) -> tuple[list[Path], dict[Path, str]]:
    from .images import FORMAT_OF_EXTENSION, why_no_file

    found: dict[str, Path] = {}  # by absolute path: naming a file twice means it once
    failed: dict[Path, str] = {}
    for path in inputs:
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
            # Links that lead nowhere stay among them: reading them says so.
            files = sorted(p for p in path.iterdir() if not p.is_dir() and p.name[0] != ".") if is_folder else []
        except OSError as error:
            denied = isinstance(error, PermissionError)
            failed[path] = "may not be read: change its permissions" if denied else str(error.strerror or error)
            continue
        if is_folder:
            pictures = [p for p in files if p.suffix.lower() in FORMAT_OF_EXTENSION]
            if not pictures:
                failed[path] = f"no pictures ({', '.join(FORMAT_OF_EXTENSION)}) directly in this folder"
            elif len(pictures) < len(files):
                _say(f"{path}: {len(files) - len(pictures)} files of other kinds are left out")
        elif is_file:
            pictures = [path]
        else:
            pictures, failed[path] = [], why_no_file(path)
        found |= {os.path.abspath(p): p for p in pictures}
    return list(found.values()), failed


def _is_folder_output(output: str, single: bool) -> bool:
    from .images import FORMAT_OF_EXTENSION

    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)):
        return True
    if path.suffix.lower() in FORMAT_OF_EXTENSION:
        if not single:
            raise CommandError(f"{path} names one file, but there may be several pictures: give a folder")
        return False
    if path.exists():
        raise CommandError(f"{path} is a file, not a folder")
    if path.suffix and single:
        raise CommandError(
            f"{path}: {path.suffix} cannot be written; use {', '.join(FORMAT_OF_EXTENSION)}, "
            "or end the name of a folder with /"
        )
    return True


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    identities: dict[tuple[int, int], Path] = {}
    for job in jobs:
        with suppress(OSError):  # gone by now, or a link that leads nowhere: reading it says so
            status = job.source.stat()  # follows links: the file itself, whatever its name
            identities[status.st_dev, status.st_ino] = job.source
    writers: dict[str, Job] = {}
    for job in jobs:
        for target in job.outputs():
            with suppress(OSError):  # not there yet, or a name that is too long: writing it says so
                status = target.stat()
                if source := identities.get((status.st_dev, status.st_ino)):
                    raise CommandError(f"{target} would overwrite the input {source}: choose another output")
            # On some file systems IMG.jpg and img.jpg are one file, and so are two ways to write an accent.
            key = unicodedata.normalize("NFC", os.path.abspath(target)).casefold()
            other = writers.setdefault(key, job)
            if other is not job:
                raise CommandError(
                    f"{other.source} and {job.source} would both be written to {target}: "
                    "deblur them into different folders"
                )


# evaluate


def run_evaluate(args: argparse.Namespace) -> int:
    """Score the selected pairs; 0 only if all could be scored."""
    with _stop_on_sigterm():
        return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    from .evaluation.evaluate import (
        BLURRED,
        METRICS,
        evaluate,
        find_pairs,
        format_table,
        own_targets,
        summarise,
        write_csv,
        write_json,
    )
    from .evaluation.maps import find_masks
    from .evaluation.perceptual import PatchFID, lpips_metric
    from .evaluation.radius import fitted_radius
    from .evaluation.report import MAIN_ROW, TARGET, CropCollector, Report
    from .evaluation.rows import combine, peer_method, rddm_method, select_rows
    from .metrics import MissingExtraError, require_extra

    settings = _settings(args)
    if not args.report and (unused := [f"--{name}" for name in ("sharp", "masks") if getattr(args, name)]):
        raise CommandError(f"{' and '.join(unused)} would be measured for the report alone: give --report FILE")
    beside = [path for path in (args.data, args.sharp, args.masks, args.model, *(p for _, p in args.peer)) if path]
    _require_writable(args.csv, args.json, args.report, inputs=beside)
    try:
        pairs = find_pairs(args.data, args.layout, args.where, args.limit)
        # What the report needs besides, now: found wanting afterwards, it would cost all that was measured.
        sharp = own_targets(find_pairs(args.sharp, "auto", _split_alone(args.where), args.limit)) if args.sharp else []
        masks = find_masks(args.masks, _split_alone(args.where), args.limit) if args.masks else []
        rows = select_rows(args.rows)
        names = [*rows, *(name for name, _ in args.peer)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise CommandError(f"two rows are called {twice[0]}: name one of them, --peer NAME=FILE")
        if reserved := [name for name, _ in args.peer if name in (BLURRED, TARGET, MAIN_ROW)]:
            raise CommandError(f"a peer cannot be called {reserved[0]}: give it another name, --peer NAME=FILE")
        require_extra(report=args.report is not None)
        _, dtype, device = _model_choice(args)
        peers = [peer_method(name, path, device, settings, dtype) for name, path in args.peer]
        metrics = (*METRICS, lpips_metric()) if args.lpips else METRICS
        fid = PatchFID() if args.fid else None
    except (ValueError, MissingExtraError) as error:
        raise CommandError(str(error)) from error
    model = _load_model(args)
    for asked in (args.steps, *(int(row.removeprefix("steps-")) for row in rows if row.startswith("steps-"))):
        _check_steps(asked, model.config)
    # A peer is never what the report is about.
    crops = CropCollector(MAIN_ROW if MAIN_ROW in rows else rows[-1]) if args.report else None

    def watch(pair: Pair, pictures: Mapping[str, torch.Tensor], target: torch.Tensor) -> None:
        for watcher in (crops, fid):
            if watcher is not None:
                watcher(pair, pictures, target)

    probe = (lambda blurred, sharp: {"radius": fitted_radius(blurred, sharp)}) if args.report else None
    method = combine([rddm_method(model, settings, rows), *peers])
    steps = settings.steps or model.recommended_steps
    about = {
        "data": args.data.name,
        "selected": len(pairs),
        "enlarge": args.enlarge,
        "where": dict(args.where),
        "model": args.model.name if args.model else "shipped weights",
        "peers": {name: path.name for name, path in args.peer},
        "settings": vars(settings) | {"steps": steps},
        "device": args.device,
        "dtype": args.dtype,
        "version": __version__,
    }
    results: list[PairScores] = []

    def write_figures(totals: Mapping[str, Mapping[str, float]]) -> None:
        if args.csv:
            write_csv(args.csv, results, metrics)
        if args.json:
            write_json(args.json, results, about | ({"totals": totals} if totals else {}), metrics)

    try:
        _collect(evaluate(pairs, method, metrics, args.enlarge, watch, probe), len(pairs), results)
    except BaseException:
        if results:
            write_figures({})
            _say(f"interrupted: {len(results)} of {len(pairs)} pairs are scored", error=True)
        raise
    failed, failed_beside = sum(result.error is not None for result in results), 0
    write_figures({})  # before anything else can fail
    _say(f"{len(results) - failed} pairs, {steps} steps")
    for line in format_table(summarise(results, metrics), metrics).split("\n"):
        _say(line)
    totals = {row: {"fid": value} for row, value in fid.values().items()} if fid else {}
    for row, figures in totals.items():
        _say(f"FID of {row}: {figures['fid']:.2f}")
    if totals:
        write_figures(totals)
    if crops is not None:
        # Sharp photographs by the result alone: every further row would cost as much as it does on the pairs.
        on_sharp = combine([rddm_method(model, settings, [MAIN_ROW]), *peers])
        folder = args.data.resolve().parent if args.data.is_file() else args.data.resolve()
        title = f"RDDM defocus deblurring on {folder.name}"
        peer_names = [name for name, _ in args.peer]
        report = Report(title, about, results, crops.crops, metrics, crops.main, totals, peers=peer_names)
        failed_beside = _write_report(args, model, on_sharp, sharp, masks, report)
    if failed:
        _say(f"{failed} of {len(results)} pairs failed", error=True)
    return 1 if failed or failed_beside else 0


def _write_report(
    args: argparse.Namespace,
    model: RDDM,
    on_sharp: Method,
    sharp: list[Pair],
    masks: list[MaskedPhoto],
    report: Report,
) -> int:
    """Score sharp photographs and maps, and write all of the report. Returns how many of them failed."""
    from dataclasses import replace

    from .evaluation.evaluate import evaluate
    from .evaluation.report import write_report

    colour = [m for m in report.metrics if m.name in ("psnr", "colour_shift")]
    scored: list[PairScores] = []
    if sharp:
        _collect(evaluate(sharp, on_sharp, colour), len(sharp), scored, "sharp photographs")
    failed = sum(result.error is not None for result in scored)
    report = replace(report, sharp=scored)
    if masks:
        try:
            maps, order, unscored = _score_maps(masks, [p.sharp for p in sharp], model, args.threshold)
            report = replace(report, maps=maps, order=order)
        except CommandError as error:
            _say(f"failed: the report has no defocus maps: {error}", error=True)
            unscored = len(masks)
        failed += unscored
    write_report(args.report, report)
    print(f"report: {args.report}")
    return failed


def _split_alone(where: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """What `--where` asks of a set beside DATA, which has other columns."""
    return [(column, value) for column, value in where if column == "split"]


def _collect(scoring: Iterable[PairScores], total: int, results: list[PairScores], unit: str = "pairs") -> None:
    """Score, and append to `results`, so that what is done outlives an interruption."""
    for result in _progress(scoring, unit, total):
        results.append(result)
        if result.error is not None:
            _say(f"failed: {result.pair.blurred}: {result.error}", error=True)


def _require_writable(*targets: Path | None, inputs: Iterable[Path] = ()) -> None:
    """CommandError now, rather than after hours, where a result could not be written or would replace an input."""
    for target in targets:
        if target is None:
            continue
        if target.is_dir():
            raise CommandError(f"{target} is a folder: name a file to write to")
        if target.exists() and not target.is_file():
            raise CommandError(f"{target} is no regular file: name a file to write to")
        for source in inputs:
            if target.exists() and source.exists() and target.samefile(source):
                raise CommandError(f"{target} would overwrite the input {source}: choose another output")
        _require_writable_folder(target.parent)


def _require_writable_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise CommandError(f"{folder} is no folder: choose another output") from error
        cause = f"cannot be written to ({error.strerror or error})"
        raise CommandError(f"{folder} {cause}: change its permissions, or choose another output") from error


def run_evaluate_maps(args: argparse.Namespace) -> int:
    """Score the maps and print the table."""
    import json

    from .evaluation.evaluate import find_pairs
    from .evaluation.maps import as_dict, find_masks, format_maps
    from .files import write_text
    from .metrics import MissingExtraError, require_extra

    _require_writable(args.json)
    try:
        require_extra()
        photos = find_masks(args.masks, args.where, args.limit)
        pairs = find_pairs(args.sharp, "auto", _split_alone(args.where), args.limit) if args.sharp else []
    except (ValueError, MissingExtraError) as error:
        raise CommandError(str(error)) from error
    model = _load_model(args)
    if args.sweep:
        return _sweep_maps(args, photos, model)
    scores, order, failed = _score_maps(photos, [p.sharp for p in pairs], model, args.threshold)
    print(format_maps(scores))
    figures: dict[str, Any] = {"where": dict(args.where), "threshold": args.threshold, "maps": as_dict(scores)}
    if order is not None:
        print(f"order of true radii on {len(order.scenes)} rendered scenes, Spearman: ", end="")
        print(f"{order.pooled:.3f} over all pixels, {order.mean:.3f} within a scene")
        figures["radius_order"] = {"pooled": order.pooled, "mean": order.mean, "scenes": list(order.scenes)}
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1) + "\n")
    return 1 if failed else 0


def _sweep_maps(args: argparse.Namespace, photos: list[MaskedPhoto], model: RDDM) -> int:
    import json

    from .evaluation.maps import format_sweep, map_methods, sweep_thresholds
    from .files import write_text

    failed = _Failures()
    try:
        cuts = sweep_thresholds(_progress(photos, "masks", len(photos)), map_methods(model)["estimator"], failed)
    except ValueError as error:
        raise CommandError(str(error)) from error
    print(format_sweep(cuts))
    if args.json:
        figures = {"where": dict(args.where), "sweep": [vars(cut) for cut in cuts]}
        write_text(args.json, json.dumps(figures, indent=1) + "\n")
    return 1 if failed.count else 0


def _score_maps(
    photos: list[MaskedPhoto], sharp: list[Path], model: RDDM, threshold: float
) -> tuple[dict[str, MapScore], RadiusOrder | None, int]:
    """Against the masks and, where there are sharp photographs, against rendered radii; how many could not be scored.

    Raises CommandError where none of the masks can be.
    """
    from .evaluation.maps import map_methods, radius_order, score_maps

    methods, failed, unrendered = map_methods(model), _Failures(), _Failures()
    try:
        scores = score_maps(_progress(photos, "masks", len(photos)), methods, threshold, failed)
    except ValueError as error:
        raise CommandError(str(error)) from error
    scenes = _progress(sharp, "scenes", len(sharp))
    order = radius_order(scenes, methods["estimator"], failed=unrendered) if sharp else None
    return scores, None if unrendered.count == len(sharp) else order, failed.count + unrendered.count


class _Failures:
    """Says and counts what could not be scored."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path, reason: str) -> None:
        self.count += 1
        _say(f"failed: {path}: {reason}", error=True)


# train, average, info


def run_train(args: argparse.Namespace) -> int:
    """Train by a recipe."""
    try:
        from .training.train import run
    except ImportError as error:
        raise CommandError(f"training needs the extra `train` of this package ({error})") from error
    try:
        checkpoint = run(args.config, minutes=args.minutes, resume=args.resume)
    except ImportError as error:
        raise CommandError(f"training needs the extra `train` of this package ({error})") from error
    except (ValueError, OSError, FloatingPointError) as error:
        raise CommandError(str(error)) from error
    print(f"checkpoint: {checkpoint}")
    return 0


def run_average(args: argparse.Namespace) -> int:
    """Write the mean of checkpoints."""
    from .training.average import average_checkpoints

    _require_writable(args.output, inputs=args.checkpoints)
    try:
        average_checkpoints(args.checkpoints, args.output)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    print(f"checkpoint: {args.output}")
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Print what a checkpoint says about itself."""
    from .checkpoint import CheckpointError, default_checkpoint_path, read_info

    path = args.checkpoint or default_checkpoint_path()
    try:
        for line in describe(path, read_info(path)).split("\n"):
            _say(line)
    except CheckpointError as error:
        raise CommandError(str(error)) from error
    return 0


def describe(path: Path, info: CheckpointInfo) -> str:
    """A checkpoint's description as text; what a foreign one says is escaped, lest it command the terminal."""
    from .config import config_to_dict

    lines = [
        f"file               {path} ({path.stat().st_size / 1e6:.1f} MB)",
        f"format version     {info.format_version}",
        f"residual scale     {info.residual_scale:.4g}",
        f"recommended steps  {info.recommended_steps}",
        f"licence            {info.licence}",
        f"parameters         {sum(info.parameters.values()):,}",
        *(f"  {part:<20} {count:>12,}" for part, count in info.parameters.items()),
        "configuration",
        *_indented(config_to_dict(info.config)),
        "provenance",
        *_indented(info.provenance),
    ]
    return "\n".join(map(_shown, lines))


def _indented(values: Any, depth: int = 1) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{'  ' * depth}{key}"
            yield from _indented(value, depth + 1)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            yield f"{'  ' * depth}{key}: {shown}"


# shared


def _settings(args: argparse.Namespace) -> DeblurSettings:
    from .pipeline import DeblurSettings

    try:
        return DeblurSettings(
            steps=args.steps,
            seed=args.seed,
            strength=args.strength,
            samples=args.samples,
            tile=None if args.tile == "off" else args.tile,
            working_size=args.working_size,
            memory=args.memory,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def _check_steps(steps: int, config: RDDMConfig) -> None:
    if steps > (most := config.diffusion.timesteps):
        raise CommandError(f"--steps must be at most {most}, as many as the weights know, not {steps}")


def _load_model(args: argparse.Namespace) -> RDDM:
    from .checkpoint import CheckpointError, load_checkpoint, read_info
    from .regression import refuse_regression

    path, dtype, device = _model_choice(args)
    try:
        refuse_regression(path, read_info(path).provenance)
        return load_checkpoint(path, dtype=dtype, device=device)
    except CheckpointError as error:
        raise CommandError(str(error)) from error


def _model_choice(args: argparse.Namespace) -> tuple[Path, torch.dtype, torch.device]:
    import torch

    from .checkpoint import default_checkpoint_path

    dtypes = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return args.model or default_checkpoint_path(), dtypes[args.dtype], choose_device(args.device)


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, else MPS, else the CPU. CommandError if it is missing."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"device {name!r} cannot be used ({reason}): try --device cpu") from error
    return device


@contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for one picture, as a progress callback (done, total); silent where the output is no terminal."""
    from tqdm import tqdm

    layout = "{desc} {percentage:3.0f}% |{bar}| {remaining}"
    with tqdm(desc=name, disable=None, leave=False, bar_format=layout) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _progress(items: Iterable[Any], unit: str, total: int | None = None) -> Iterator[Any]:
    """The items under a progress bar; where stderr is no terminal, with a line now and then."""
    from tqdm import tqdm

    started = said = time.monotonic()
    bar = tqdm(items, unit=f" {unit}", total=total, disable=None, leave=False)
    for number, item in enumerate(bar, 1):
        now = time.monotonic()
        if bar.disable and now - said > PROGRESS_SECONDS:
            _say(f"{unit}: {number} of {bar.total} after {(now - started) / 60:.1f} min", error=True)
            said = now
        yield item


def _say(text: str, error: bool = False) -> None:
    """A line of output that does not tear a progress bar. What cannot be shown, as in some files' names, is escaped."""
    from tqdm import tqdm

    file = sys.stderr if error else sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    tqdm.write(_shown(text).encode(encoding, "backslashreplace").decode(encoding), file=file)


def _shown(line: str) -> str:
    # Spaces of other scripts are no control characters, and a path must be shown as it can be typed.
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in line)


def _warn(text: str) -> None:
    _say(f"warning: {text}", error=True)


class _ProgressHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(f"{record.levelname.lower()}: {record.getMessage()}", error=True)


@contextmanager
def _logging_beside_progress_bars() -> Iterator[None]:
    """While a command runs, warnings of this package go to stderr."""
    logger, handler = logging.getLogger(__package__), _ProgressHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}")
        return value

    parse.__name__ = "number"  # argparse names it when the text is no number
    return parse


def _word_or_number(*words: str) -> Callable[[str], str | int]:
    def parse(text: str) -> str | int:
        if text in words:
            return text
        if not text.isdecimal() or int(text) == 0:
            raise argparse.ArgumentTypeError(f"must be {', '.join(words)} or a number of pixels, not {text!r}")
        return int(text)

    return parse


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")


def _pixel_count(text: str) -> int:
    return _quantity(text, {"": 1, "mp": 1_000_000}, "a number of pixels, or of megapixels as in 40MP")


def _input(text: str) -> Path:
    if not text:  # which a path would take for the current folder
        raise argparse.ArgumentTypeError("must name a picture or a folder: here it is empty, perhaps as a variable is")
    return Path(text)


def _byte_count(text: str) -> int:
    decimal = {f"{prefix}b": 1000**i for i, prefix in enumerate(("", "k", "m", "g", "t"))}
    binary = {f"{prefix}ib": 1024**i for i, prefix in enumerate(("k", "m", "g", "t"), 1)}
    return _quantity(text, decimal | binary, "a number with its unit: B, KB, MB, GB, KiB, MiB or GiB, as in 2GB")


def _quantity(text: str, units: Mapping[str, int], wanted: str) -> int:
    """A positive number with a unit, in the unit whose factor is 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?([a-z]*)", text.strip().lower(), re.ASCII)
    number = float(match[1]) if match and match[2] in units else 0.0
    value = round(number * units[match[2]]) if match and 0 < number < 1e18 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
    return value


def _named_file(text: str) -> tuple[str, Path]:
    """[NAME=]FILE; without a name the file's own, without its ending. A file with = in its name needs none."""
    name, separator, file = text.partition("=")
    if Path(text).is_file():
        separator = ""
    return (name, Path(file)) if separator and name and file else (Path(text).stem, Path(text))


def _condition(text: str) -> tuple[str, str]:
    column, separator, value = text.partition("=")
    if not separator or not column:
        raise argparse.ArgumentTypeError(f"must be COLUMN=VALUE, not {text!r}")
    return column, value
