"""The command line, run on real (tiny, random) weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rddm_core
from rddm_core import cli
from rddm_core.checkpoint import load_checkpoint, save_checkpoint
from rddm_core.images import comparison_sheet, load_image, save_image
from rddm_core.pipeline import DeblurSettings, deblur

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run `deblur` with the tiny weights; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["deblur", *map(str, arguments), "--model", str(tiny_checkpoint)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def photo(path: Path, seed: int = 0, mode: str = "RGB", **options: object) -> Path:
    """A small smooth picture."""
    channels = len(mode)
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small.squeeze()).resize((40, 30)).save(path, **options)
    return path


def values(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from rddm_core.cli import build_parser; build_parser().format_help(); "
        "print([m for m in ('torch', 'numpy', 'PIL', 'transformers', 'timm', 'tqdm') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_module_runs_and_versions_agree() -> None:
    command = [sys.executable, "-m", "rddm_core", "--version"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    project = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert shown.stdout.strip() == f"python -m rddm_core {rddm_core.__version__}"
    assert project == [rddm_core.__version__]


@pytest.mark.parametrize("command", [[], ["deblur"], ["deblur", "a.jpg"], ["sharpen"]])
def test_incomplete_commands_exit_with_2(command: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2


def test_one_file_into_a_file(run, tmp_path: Path, tiny_checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png")
    code, out, err = run(source, "-o", tmp_path / "new" / "b.png", "--seed", 3, "--steps", 1)
    assert (code, err) == (0, "") and f"{tmp_path}/new/b.png (40x30" in out
    assert files(tmp_path) == ["a.png", "new/b.png"]

    model, picture = load_checkpoint(tiny_checkpoint), load_image(source).pixels[None]
    expected = deblur(model, picture, settings=DeblurSettings(seed=3, steps=1)).image[0]
    assert np.array_equal(values(tmp_path / "new/b.png"), (expected * 255).round().byte().permute(1, 2, 0).numpy())
    assert not np.array_equal(values(tmp_path / "new/b.png"), values(source))


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_strength_weighs_the_change(run, tmp_path: Path, tiny_checkpoint: Path, strength: float) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "b.png", "--strength", strength)[0] == 0
    model, picture = load_checkpoint(tiny_checkpoint), load_image(source).pixels[None]
    expected, whole = (deblur(model, picture, settings=DeblurSettings(strength=s)).image[0] for s in (strength, 1.0))
    assert np.array_equal(values(tmp_path / "b.png"), (expected * 255).round().byte().permute(1, 2, 0).numpy())
    assert (expected - whole).abs().max() > 0.01


def test_extras_hold_what_they_are_called(run, tmp_path: Path, tiny_checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "b.png", "--save-map", "--save-pre-deblur", "--compare", "--steps", 1)[0] == 0
    picture = load_image(source).pixels
    result = deblur(load_checkpoint(tiny_checkpoint), picture[None], settings=DeblurSettings(steps=1))
    assert result.pre_deblurred is not None
    for name, expected in (("map", result.defocus_map[0]), ("pre-deblur", result.pre_deblurred[0].clamp(0, 1))):
        assert (load_image(tmp_path / f"b.{name}.png").pixels - expected).abs().max() <= 0.5001 / 255
    save_image(tmp_path / "sheet.jpg", comparison_sheet({"input": picture, "deblurred": result.image[0]}), quality=92)
    assert np.array_equal(values(tmp_path / "b.compare.jpg"), values(tmp_path / "sheet.jpg"))


def test_seed_decides_the_result(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png")
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        assert run(source, "-o", tmp_path / f"{name}.png", "--seed", seed)[0] == 0
    one, again, two = ((tmp_path / f"{n}.png").read_bytes() for n in ("one", "again", "two"))
    assert one == again and one != two


def test_several_samples_give_their_mean(run, tmp_path: Path, tiny_checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "b.png", "--samples", 3)[0] == 0
    drawn = deblur(
        load_checkpoint(tiny_checkpoint), load_image(source).pixels[None], settings=DeblurSettings(samples=3)
    )
    assert len(drawn.image) == 3 and not torch.equal(drawn.image[0], drawn.image[1])
    assert (load_image(tmp_path / "b.png").pixels - drawn.image.mean(dim=0)).abs().max() <= 0.5001 / 255


def test_strength_0_returns_the_input(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png", mode="RGBA")
    assert run(source, "-o", tmp_path / "b.png", "--strength", 0)[0] == 0
    assert np.array_equal(values(tmp_path / "b.png"), values(source))


def test_alpha_exif_profile_and_orientation(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    source = photo(tmp_path / "a.webp", mode="RGBA", exif=exif.tobytes(), lossless=True)
    assert run(source, "-o", tmp_path / "b.png")[0] == 0
    with Image.open(tmp_path / "b.png") as written:
        assert written.size == (30, 40) and written.mode == "RGBA"
        assert written.getexif()[0x010F] == "Camera" and written.getexif()[0x0112] == 1


def test_folder_into_folder_goes_on_past_bad_files(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source, out = tmp_path / "in", tmp_path / "out"
    photo(source / "a.jpg", 1)
    (source / "b.jpg").write_bytes(photo(source / "b.jpg", 2).read_bytes()[:300])
    photo(source / "c.PNG", 3)
    photo(source / "sub" / "d.png", 4)
    (source / "notes.txt").write_text("none")
    (source / ".hidden.png").write_text("none")
    code, shown, error = run(source, tmp_path / "missing.jpg", "-o", out)
    assert code == 1
    assert files(out) == ["a.jpg", "c.PNG"]
    assert "b.jpg is damaged" in error and "missing.jpg: does not exist" in error and "2 of 4 failed" in error
    assert "1 files of other kinds are left out" in shown


def test_a_name_that_cannot_be_is_one_failure_among_others(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    good = photo(tmp_path / "good.png")
    code, _, error = run(good, tmp_path / f"{'n' * 300}.png", "-o", f"{tmp_path}/out/")
    assert code == 1 and "name too long" in error and files(tmp_path / "out") == ["good.png"]
    (tmp_path / "out" / "good.png").unlink()
    long = photo(tmp_path / f"{'n' * 250}.png")  # what lies beside its result has a longer name
    code, _, error = run(long, good, "-o", f"{tmp_path}/out/", "--save-map")
    assert code == 1 and {"good.png", "good.map.png"} <= set(files(tmp_path / "out"))


def test_an_output_that_cannot_be_written_is_told_before_the_work(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rddm_core.scale.local.run_local", lambda *_, **__: pytest.fail("it has begun"))
    source = photo(tmp_path / "a.png")
    code, _, error = run(source, "-o", f"{source}/below/")
    assert code == 1 and "a.png/below cannot be written to" in error and "choose another output" in error


def test_spaces_of_other_scripts_are_shown_as_they_are() -> None:
    assert cli._shown("写真\u3000一\u202fb\x1b[0m") == "写真\u3000一\u202fb\\x1b[0m"


def test_extras_lie_beside_the_result(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.jpg")
    code, shown, _ = run(source, "-o", tmp_path / "out", "--save-map", "--save-pre-deblur", "--compare")
    assert code == 0
    names = ["a.compare.jpg", "a.jpg", "a.map.png", "a.pre-deblur.png"]
    assert files(tmp_path / "out") == names
    assert all(f"out/{name}" in shown for name in names)
    assert load_image(tmp_path / "out/a.map.png").pixels.shape == (3, 30, 40)
    assert load_image(tmp_path / "out/a.pre-deblur.png").pixels.shape == (3, 30, 40)
    assert load_image(tmp_path / "out/a.compare.jpg").pixels.shape == (3, 60, 80)


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "folder"])
def test_inputs_are_never_overwritten(run, tmp_path: Path, link: str) -> None:  # type: ignore[no-untyped-def]
    source, out = photo(tmp_path / "in" / "a.png"), tmp_path / "out"
    before = source.read_bytes()
    target: Path = out / "a.png"
    if link == "same":
        target = tmp_path / "in" / "." / "a.png"
    elif link == "folder":
        target = source.parent
    else:
        out.mkdir()
        target.symlink_to(source) if link == "symbolic" else target.hardlink_to(source)
    code, _, error = run(source.parent if link == "folder" else source, "-o", target)
    assert code == 1 and "would overwrite the input" in error
    assert source.read_bytes() == before


def test_names_that_would_grow_too_long_are_told_before_the_work(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    long = "a" * 250 + ".png"
    photo(tmp_path / long), photo(tmp_path / "b.png")
    code, _, error = run(tmp_path / long, tmp_path / "b.png", "-o", tmp_path / "out", "--save-map")
    assert code == 1 and "would be longer than a file's name may be: shorten the name" in error
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.map.png", "b.png"]
    code, _, error = run(tmp_path / long, "-o", tmp_path / "out")
    assert code == 0, error


def test_extras_do_not_overwrite_inputs_either(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    photo(tmp_path / "a.jpg"), photo(tmp_path / "b.map.png")
    code, _, error = run(tmp_path / "a.jpg", tmp_path / "b.map.png", "-o", tmp_path / "out", "--save-map")
    assert code == 0, error
    code, _, error = run(tmp_path / "b.map.png", "-o", tmp_path / "b.jpg", "--save-map")
    assert code == 1 and "b.map.png would overwrite the input" in error


@pytest.mark.parametrize(
    ("first", "second", "extra"),
    [
        ("x/a.png", "y/a.png", []),
        ("x/a.png", "y/A.PNG", []),
        ("x/a.png", "y/a.jpg", ["--save-map"]),
        ("x/\u00e9.png", "y/e\u0301.png", []),  # two ways to write an accent
    ],
)
def test_two_inputs_with_one_output(run, tmp_path: Path, first: str, second: str, extra: list[str]) -> None:  # type: ignore[no-untyped-def]
    photo(tmp_path / first), photo(tmp_path / second)
    code, _, error = run(tmp_path / first, tmp_path / second, "-o", tmp_path / "out", *extra)
    assert code == 1 and first in error and second in error and "would both be written to" in error
    assert not (tmp_path / "out").exists()


def test_a_file_named_twice_is_deblurred_once(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "in" / "a.png")
    code, shown, _ = run(source, source.parent, "-o", tmp_path / "out")
    assert code == 0 and shown.count("->") == 1


def test_outputs_that_fit_no_picture(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one, two = photo(tmp_path / "a.png"), photo(tmp_path / "b.png", 1)
    (tmp_path / "file").touch()
    for inputs, output, message in (
        ([one], "out.gif", ".gif cannot be written"),
        ([one, two], "out.png", "give a folder"),
        ([one], "file", "is a file, not a folder"),
    ):
        code, _, error = run(*inputs, "-o", tmp_path / output)
        assert code == 1 and message in error
    code, _, error = run(tmp_path / "none", "-o", tmp_path / "out")
    assert code == 1 and "does not exist" in error
    (tmp_path / "empty").mkdir()
    code, _, error = run(tmp_path / "empty", "-o", tmp_path / "out")
    assert code == 1 and "no pictures" in error
    assert run(one, "-o", f"{tmp_path}/out.v2/")[0] == 0
    assert files(tmp_path / "out.v2") == ["a.png"]


def test_ctrl_c_leaves_no_partial_file(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "in"
    photo(source / "a.png", 1), photo(source / "b.png", 2)
    save, calls = Image.Image.save, []

    def interrupted(self: Image.Image, handle, **options: object) -> None:  # type: ignore[no-untyped-def]
        calls.append(handle)
        save(self, handle, **options)
        if len(calls) == 2:  # while the second picture is written
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    code, _, error = run(source, "-o", tmp_path / "out")
    assert code == 130 and "interrupted" in error
    assert os.listdir(tmp_path / "out") == ["a.png"]


@pytest.mark.parametrize(
    "message",
    ["[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes\nmore", "could not create a primitive"],
)
def test_running_out_of_memory_names_the_cure(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("rddm_core.pipeline.deblur", fail)
    code, _, error = run(photo(tmp_path / "a.png"), "-o", tmp_path / "out")
    assert code == 1 and "a.png: out of memory, try --tile 512" in error


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_too_little_memory_for_a_start_is_said(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("rddm_core.scale.local._Run", fail)
    code, _, said = run(photo(tmp_path / "a.png"), "-o", tmp_path / "out")
    assert code == 1 and "error: out of memory, end other programs" in said
    error.args = ("something else",)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="something else"):
            run(photo(tmp_path / "a.png"), "-o", tmp_path / "out")


def test_tiles_and_working_size_reach_the_pipeline(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)).save(source)
    results = {}
    for name, options in {
        "auto": [],
        "off": ["--tile", "off"],
        "64": ["--tile", "64"],
        "small": ["--working-size", "80"],
        "full": ["--working-size", "full"],
    }.items():
        assert run(source, "-o", tmp_path / f"{name}.png", *options)[0] == 0
        results[name] = values(tmp_path / f"{name}.png").astype(int)
    assert np.array_equal(results["auto"], results["off"]) and np.array_equal(results["auto"], results["full"])
    assert not np.array_equal(results["auto"], results["64"])
    assert not np.array_equal(results["auto"], results["small"])


@pytest.mark.parametrize(
    "options",
    [
        ["--tile", "0"],
        ["--tile", "none"],
        ["--working-size", "-3"],
        ["--steps", "x"],
        ["--samples", "0"],
        ["--dtype", "int8"],
        ["--memory", "2"],
        ["--memory", "0GB"],
        ["--memory", "GB"],
        ["--max-pixels", "0"],
        ["--max-pixels", "2GB"],
        ["--workers", "0"],
        ["--engine", "spark"],
    ],
)
def test_senseless_options_exit_with_2(run, tmp_path: Path, options: list[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as stop:
        run(photo(tmp_path / "a.png"), "-o", tmp_path / "out", *options)
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["evaluate", "evaluate-maps"])
def test_thresholds_lie_in_0_to_1(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("0", "0.35", "1"):
        assert cli.build_parser().parse_args([command, "data", "--threshold", text]).threshold == float(text)
    for text in ("-0.1", "1.5", "nan", "half"):
        with pytest.raises(SystemExit):
            cli.build_parser().parse_args([command, "data", "--threshold", text])
        assert f"must be a number from 0 to 1, not '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "-1"], "strength must be"),
        (["--device", "quantum"], "try --device cpu"),
        (["--steps", "1301"], "error: --steps must be at most 1300"),
    ],
)
def test_settings_out_of_range(run, tmp_path: Path, options: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    code, _, error = run(photo(tmp_path / "a.png"), "-o", tmp_path / "out", *options)
    assert code == 1 and message in error and "a.png" not in error, "before a picture is read"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512B", 512),
        ("2GB", 2_000_000_000),
        ("1.5 GiB", 3 << 29),
        (".5mb", 500_000),
        ("64KiB", 65_536),
        ("1TB", 10**12),
    ],
)
def test_sizes_have_units(text: str, size: int) -> None:
    options = cli.build_parser().parse_args(["deblur", "a.png", "-o", "out", "--memory", text])
    assert options.memory == size


def test_a_budget_reaches_the_pipeline(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = run(photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--memory", "1MB")
    assert code == 1 and "MB more are needed for a picture of 40x30" in error


@pytest.mark.parametrize(("options", "expected"), [([], True), (["--memory", "2GB"], False)])
def test_a_budget_is_for_one_picture_at_a_time(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: bool,
) -> None:
    """No other is read or written beside it."""
    seen: list[bool] = []
    monkeypatch.setattr("rddm_core.scale.local.run_local", lambda *_, overlap, **__: seen.append(overlap))
    assert run(photo(tmp_path / "a.png"), "-o", tmp_path / "out", *options)[0] == 0
    assert seen == [expected]


def test_pixels_are_counted_or_in_megapixels(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png")
    for limit in ("1199", "0.0011mp"):
        code, _, error = run(source, "-o", tmp_path / "out", "--max-pixels", limit)
        assert code == 1 and "a.png has 40x30 pixels, more than" in error
    assert run(source, "-o", tmp_path / "out", "--max-pixels", "1200")[0] == 0


def test_resume_goes_on_where_a_run_stopped(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source, out = tmp_path / "in", tmp_path / "out"
    photo(source / "a.png", 1)
    (source / "b.png").write_text("none")
    assert run(source, "-o", out, "--resume")[0] == 1
    assert files(out) == ["a.png", "manifest.jsonl"]
    photo(source / "b.png", 2)
    code, shown, _ = run(source, "-o", out, "--resume")
    assert code == 0 and "1 of 2 are done already" in shown and shown.count("->") == 1 and "b.png (" in shown
    code, shown, _ = run(source, "-o", out, "--resume")
    assert code == 0 and "2 of 2 are done already" in shown and "->" not in shown
    for changed in (["--seed", 1], ["--dtype", "bf16"], ["--save-map"]):
        code, shown, _ = run(source, "-o", out, "--resume", *changed)
        assert code == 0 and shown.count("->") == 2, changed
    assert run(source, "-o", out)[1].count("->") == 2, "without --resume everything is deblurred again"


def test_resume_needs_a_folder(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = run(photo(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--resume")
    assert code == 1 and "give a folder" in error
    assert files(tmp_path) == ["a.png"]


def test_workers_need_their_engine(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = run(photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--workers", 2)
    assert code == 1 and "--workers needs --engine ray" in error


def test_threads_are_set(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    try:
        assert run(photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--threads", 2)[0] == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_a_killed_run_left_half_is_removed(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".1-{'0' * 32}.partial").write_text("half")
    assert run(photo(tmp_path / "a.png"), "-o", tmp_path / "out")[0] == 0
    assert files(tmp_path / "out") == ["a.png"]


@pytest.mark.parametrize("code", [0, 1, 130, 143])
def test_the_program_ends_with_the_code_of_the_command(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    ended = []
    monkeypatch.setattr(cli, "main", lambda: code)
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit) as stop:
        cli.program()
    assert stop.value.code == code and ended == ([code] if code > 1 else [])


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "rddm_core", "info"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_precisions_agree_roughly(run, tmp_path: Path, dtype: str) -> None:  # type: ignore[no-untyped-def]
    source = photo(tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "auto.png")[0] == 0
    assert run(source, "-o", tmp_path / "b.png", "--dtype", dtype, "--device", "cpu")[0] == 0
    difference = np.abs(values(tmp_path / "auto.png").astype(int) - values(tmp_path / "b.png"))
    assert difference.max() == 0 if dtype == "fp32" else 0 < difference.mean() < 10


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precisions_are_what_they_are_called(name: str, dtype: torch.dtype) -> None:
    args = cli.build_parser().parse_args(["deblur", "a.png", "-o", "out", "--dtype", name, "--device", "cpu"])
    assert cli._model_choice(args)[1] == dtype


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # no such device need be there
    assert cli.choose_device("auto").type == chosen


def test_wrong_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photo(tmp_path / "a.png")
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    for model in ("none.safetensors", "model.pth"):
        command = ["deblur", str(source), "-o", str(tmp_path / "out"), "--model", str(tmp_path / model)]
        assert cli.main(command) == 1
        assert model in capsys.readouterr().err
        assert cli.main(["info", str(tmp_path / model)]) == 1
        assert model in capsys.readouterr().err


def test_info_shows_what_the_checkpoint_holds(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    model = load_checkpoint(tiny_checkpoint)
    for text in (
        "residual scale     10",
        "recommended steps  2",
        "none: random weights",
        "data: none",
        "name: tiny",
    ):
        assert text in shown
    assert f"{sum(p.numel() for p in model.denoiser.parameters()):,}" in shown


def test_what_a_foreign_checkpoint_says_does_not_command_the_terminal(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, path = {"notes": {"\x1b[31mkey": ["a\x1b]0;title\x07", "line\nbreak"]}}, tmp_path / "foreign.safetensors"
    save_checkpoint(path, load_checkpoint(tiny_checkpoint), provenance=said, licence="free\x1b[2J")
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "free\\x1b[2J\n" in shown and "\\x1b[31mkey: a\\x1b]0;title\\x07, line\\nbreak\n" in shown


def test_a_peer_s_file_may_have_an_equals_sign_in_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("runs/lr=1e-4/best.safetensors")
    assert cli._named_file(str(file)) == ("runs/lr", Path("1e-4/best.safetensors")), "there is no such file"
    file.parent.mkdir(parents=True)
    file.touch()
    assert cli._named_file(str(file)) == ("best", file)
    assert cli._named_file(f"mine={file}") == ("mine", file)


def test_training_that_diverges_is_an_error_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> Path:
        raise FloatingPointError("21 steps in a row without a finite loss: lower the learning rate")

    monkeypatch.setattr("rddm_core.training.train.run", run)
    assert cli.main(["train", "recipe.json"]) == 1
    assert "error: 21 steps in a row" in capsys.readouterr().err


def test_progress_is_told_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(cli._progress([3, 4], "pairs")) == [3, 4]
    assert capsys.readouterr().err == "", "short work says nothing"
    monkeypatch.setattr(cli, "PROGRESS_SECONDS", -1.0)
    assert list(cli._progress(iter((3, 4)), "pairs", 2)) == [3, 4]
    assert capsys.readouterr().err.splitlines() == ["pairs: 1 of 2 after 0.0 min", "pairs: 2 of 2 after 0.0 min"]


def test_train_hands_over_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []

    def run(config_path: Path, minutes: float | None, resume: bool) -> Path:
        seen.extend((config_path, minutes, resume))
        return Path("best.safetensors")

    monkeypatch.setattr("rddm_core.training.train.run", run)
    assert cli.main(["train", "recipe.json", "--minutes", "1.5", "--resume"]) == 0
    assert seen == [Path("recipe.json"), 1.5, True] and "best.safetensors" in capsys.readouterr().out


def test_train_names_a_bad_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.json").write_text('{"name": "x", "stage": "joint", "epochs": 3}')
    assert cli.main(["train", str(tmp_path / "recipe.json")]) == 1
    assert "recipe.json" in (error := capsys.readouterr().err) and "epochs" in error
    assert cli.main(["train", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
