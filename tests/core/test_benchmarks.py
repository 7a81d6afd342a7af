"""The benchmark: what it computes from its measurements, and that it measures what it says."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks import pictures, report, speed, tiles
from benchmarks.analysis import Cost, CostCounter, floor_seconds
from benchmarks.contenders import NAFNET, PIPELINE
from benchmarks.process import MeasurementError, PeakMemory, in_fresh_process, run_command


def run(seconds: float, megabytes: float = 100.0, **stages: float) -> speed.Run:
    return {"seconds": seconds, "megabytes": megabytes, "stages": stages}


class TestSpeed:
    def test_contenders_take_turns(self) -> None:
        order: list[speed.Case] = []
        once, *cases = speed.cases("1", 1)

        def note(case: speed.Case) -> speed.Run:
            order.append(case)
            return run(1.0)

        speed.take_turns({once: 1} | dict.fromkeys(cases, 2), note)
        assert order == [once, *cases, *cases]

    def test_ratios_are_taken_within_a_round(self) -> None:
        peer, ours = speed.Case(NAFNET, "0.6"), speed.Case(PIPELINE, "0.6", 1)
        # The machine is three times slower in the second round; the ratio is not.
        runs = {peer: [run(10, 400), run(30, 400)], ours: [run(2, 100, step=0.5), run(6, 100, step=1.5)]}
        row = speed.summarise(runs)[1]
        assert row["time_ratio"] == {"median": pytest.approx(0.2), "min": pytest.approx(0.2), "max": pytest.approx(0.2)}
        assert row["memory_ratio"]["median"] == pytest.approx(0.25)
        assert row["seconds"] == {"median": 4, "min": 2, "max": 6} and row["stages"] == {"step": 1.0}

    def test_only_equal_settings_are_compared(self) -> None:
        peer, ours = speed.Case(NAFNET, "0.6"), speed.Case(PIPELINE, "0.6", 1, threads=1)
        rows = speed.summarise({peer: [run(10)], ours: [run(2)]})
        assert "time_ratio" not in rows[1]

    def test_a_failed_case_is_a_row_and_no_reference(self) -> None:
        peer, ours = speed.Case(NAFNET, "0.6"), speed.Case(PIPELINE, "0.6", 1)
        rows = speed.summarise({peer: [{"error": "no memory"}], ours: [run(2)]})
        assert rows[0]["error"] == "no memory" and "time_ratio" not in rows[1]

    def test_what_is_compared_has_its_reference(self) -> None:
        for size in ("0.1", "0.25", "0.6", "1"):
            cases = speed.cases(size, 1)
            references = [c for c in cases if c.contender == NAFNET]
            assert all(any(c.same_setting(r) for r in references) for c in cases)
            assert len(set(cases)) == len(cases)


class TestReport:
    def figures(self) -> report.Figures:
        ours = {"contender": PIPELINE, "dtype": "fp32", "threads": 2}
        ratios = {"time_ratio": speed.spread([0.1]), "memory_ratio": speed.spread([0.6])}

        def row(megapixels: str, steps: int, seconds: float, of_steps: float = 0.1) -> dict[str, Any]:
            values = {"megapixels": megapixels, "steps": steps, "seconds": speed.spread([seconds])}
            values["stages"] = {"step": of_steps}
            return ours | values | {"megabytes": speed.spread([300.0])}

        # The process with 3 steps was the slowest of all; a step took 0.3 of the 1.2 seconds of its one-step pipeline.
        runs = ((1, 1.0, 0.1), (2, 1.1, 0.2), (3, 1.8, 0.9), (4, 1.3, 0.4))
        rows = [row("0.6", *run) | ratios for run in runs]
        rows += [row("1", 1, 1.6), row("45", 1, 1.6 * 1.1 * 5504 * 8256 / (832 * 1216))]
        compared = [
            {"picture": "sky", "width": 960, "height": 640, "tile": 256, "largest": 3.0, "below": 1.5, "mean": 0.1}
        ]
        return {
            "speed": {"default_steps": 1, "rows": rows},
            "large": {"options": "", "seconds": 60.0, "loaded_mb": 600.0, "above_mb": 1900.0},
            "tiles": compared,
        }

    def test_targets(self) -> None:
        found = {target.name.split(" (")[0]: target for target in report.targets(self.figures())}
        assert found["time at 640x960 / NAFNet-w32's"].met
        assert not found["peak memory at 640x960 / NAFNet-w32's"].met
        steps = found["each further step / the one-step pipeline"]
        assert not steps.met and steps.measured == "25.0%"
        pixels = found["time per pixel at 45 megapixels / at 1"]
        assert pixels.met and pixels.measured == "1.100"
        assert found["memory above the loaded process at 45 megapixels"].measured == "1.90 GB"
        assert not found["tiled against whole, 99.99 % below"].met

    def test_missing_parts_are_left_out(self) -> None:
        assert report.targets({}) == []
        assert report.step_share(self.figures()["speed"]["rows"][4:]) is None

    def test_page_and_plots(self, tmp_path: Path) -> None:
        machine = {"processor": "P", "cores": 2, "instructions": "AVX2", "memory_gb": 8, "python": "3", "torch": "2"}
        about = {"command": "python -m benchmarks", "date": "2026-01-01", "machine": machine, "took": 60}
        about["weights"] = "0f1e2d"
        parts = {name: about | {"figures": figures} for name, figures in self.figures().items()}
        parts["floor"] = about | {"figures": {"error": "no memory"}}
        report.write_report({"parts": parts}, tmp_path)
        page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
        assert "2026-01-01, weights 0f1e2d, P, 2 cores" in page
        assert "**floor failed**: no memory" in page and "| **no** |" in page and "sky" in page
        for name in ("cost.png", "stages.png"):
            assert f"({name})" in page and (tmp_path / name).stat().st_size > 1000


class TestFloor:
    def test_flops_and_bytes_of_a_convolution(self) -> None:
        x, w = torch.rand(1, 8, 16, 16), torch.rand(4, 8, 3, 3)
        with torch.inference_mode(), CostCounter() as counter:
            F.conv2d(x, w, padding=1)
        (cost,) = counter.costs
        assert cost.flops == 2 * 16 * 16 * 4 * 8 * 9
        assert cost.bytes == 4 * (8 * 256 + 4 * 8 * 9 + 4 * 256)
        assert cost.allocated == 4 * 4 * 256 and cost.operator == "convolution"

    def test_views_are_free_and_broadcasts_are_read_once(self) -> None:
        x = torch.rand(1, 8, 16)
        with torch.inference_mode(), CostCounter() as counter:
            y = x.expand(32, 8, 16).permute(0, 2, 1)[:, 1:]
            assert counter.costs == []
            y.clone().mul_(2)
        copied, scaled = counter.costs
        assert copied.flops == 0 and copied.bytes == 4 * (8 * 16 + 32 * 8 * 15)
        assert scaled.allocated == 0 and scaled.bytes == 2 * copied.allocated

    def test_the_kernel_that_runs_is_counted(self) -> None:
        x = torch.rand(1, 2, 4, 4)
        with torch.inference_mode(), CostCounter() as counter:
            F.interpolate(x, size=(8, 8), mode="bilinear")
        assert [(c.operator, c.allocated) for c in counter.costs] == [("upsample_bilinear2d", 4 * 2 * 64)]

    def test_a_fourier_transform_counts(self) -> None:
        x = torch.rand(3, 8, 16)
        with torch.inference_mode(), CostCounter() as counter:
            torch.fft.rfft2(x)
        assert sum(c.flops for c in counter.costs) == 2.5 * 3 * 8 * 16 * 7

    def test_every_operator_is_bound_by_the_slower_of_the_two(self) -> None:
        floor = floor_seconds([Cost(100, 10), Cost(0, 50)], flops_per_second=10, bytes_per_second=10)
        assert (floor["arithmetic"], floor["traffic"], floor["floor"]) == (10, 6, 15)


class TestPictures:
    @pytest.mark.parametrize("make", tiles.PICTURES.values(), ids=tiles.PICTURES)
    def test_pictures_fit(self, make: Any) -> None:
        picture = make(48, 80)
        assert picture.shape == (1, 3, 48, 80) and picture.is_contiguous()
        assert 0 <= picture.min() < picture.max() <= 1

    def test_a_photograph_is_mirrored_without_a_seam(self) -> None:
        picture = pictures.photograph(800, 1100)
        assert torch.equal(picture[..., 767, :], picture[..., 768, :])
        assert torch.equal(picture[..., 1023], picture[..., 1024])

    def test_tiles_are_compared_with_the_whole(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        file = tmp_path / "a.png"
        pictures.save_photograph(file, 192, 256)
        cut, whole = tiles.compare([file], [128, 256], 1, tiny_checkpoint)
        assert cut["picture"] == "a.png" and (cut["height"], cut["width"], cut["tile"]) == (192, 256, 128)
        assert cut["largest"] > 0 and whole["largest"] == 0  # tiles of 256 pixels hold all of it

    def test_difference(self) -> None:
        tiled = torch.zeros(1, 1, 100, 200)
        tiled[..., 0, :2] = torch.tensor([1.0, 0.5])
        found = tiles.difference(tiled, torch.zeros_like(tiled))
        assert found["largest"] == 255 and found["below"] == 0 and found["mean"] == pytest.approx(1.5 * 255 / 20000)


class TestProcess:
    def test_a_function_runs_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        file = tmp_path / "a.jpg"
        assert in_fresh_process(pictures.save_photograph, path=str(file), height=8, width=8) is None
        assert file.stat().st_size > 0
        with pytest.raises(MeasurementError, match="ended with 1: .*negative dimension"):
            in_fresh_process(pictures.save_photograph, path=str(file), height=-8, width=8)

    def test_a_command_that_fails_says_so(self) -> None:
        assert run_command([sys.executable, "-c", ""]) > 0
        with pytest.raises(MeasurementError, match="ended with 3"):
            run_command([sys.executable, "-c", "raise SystemExit(3)"])

    def test_peak_counts_what_was_freed_again(self) -> None:
        memory = PeakMemory()
        memory.restart()
        block = torch.ones(50_000_000)  # 200 MB
        del block
        assert 190 < memory.above() < 260


@pytest.mark.parametrize("slope", [0, 3, -0.5])
def test_the_soak_tells_growing_memory_from_flat(slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "stress"))
    memory = importlib.import_module("memory")
    warmup = [900_000 - 1000 * i for i in range(100)]
    fitted, half_width = memory.fit_slope([*warmup, *(800_000 + slope * i for i in range(400))], len(warmup))
    assert fitted == pytest.approx(slope, abs=1e-9) and half_width == pytest.approx(0, abs=1e-9)
    noisy = [800_000 + slope * i + 50 * (-1) ** (i // 20) for i in range(400)]
    fitted, half_width = memory.fit_slope(noisy, 0)
    assert abs(fitted - slope) <= half_width < 1
