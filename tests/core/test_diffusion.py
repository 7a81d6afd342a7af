"""Schedule, forward process and reverse steps; the last tests document the paper's misprints."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rddm_core.config import DiffusionConfig
from rddm_core.diffusion import (
    ddim_coefficients,
    ddim_step,
    ddpm_posterior,
    make_alpha_bars,
    q_sample,
    sampling_timesteps,
)

SCHEDULES = [DiffusionConfig(schedule="cosine"), DiffusionConfig(schedule="linear")]
COUNT = 400_000


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda c: c.schedule)
def test_schedule_falls_from_one_to_almost_zero(config):
    bars = make_alpha_bars(config)
    assert bars.shape == (1301,) and bars.dtype == torch.float64
    assert bars[0] == 1
    assert bool((bars.diff() < 0).all())
    assert 0 < bars[-1] < 1e-4


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda c: c.schedule)
def test_the_longest_schedule_stays_above_zero(config):
    bars = make_alpha_bars(replace(config, timesteps=100_000))
    assert bool((bars.diff() <= 0).all()) and float(bars[-1]) > 0
    last = bars[-2:].tolist()
    assert last[0] == last[1], "at the floor"
    assert ddim_coefficients(last[1], last[0], eta=1.0) == ddpm_posterior(last[1], last[0]) == (1, 0, 0)


def test_linear_schedule_multiplies_its_alphas():
    bars = make_alpha_bars(DiffusionConfig(timesteps=3, schedule="linear", beta_start=0.1, beta_end=0.3))
    assert bars.tolist() == pytest.approx([1, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])


def test_cosine_schedule_by_hand():
    bars = make_alpha_bars(DiffusionConfig(schedule="cosine"))
    assert float(bars[650]) == pytest.approx(0.5, abs=1e-14)
    assert float(bars[325]) == pytest.approx(math.cos(math.pi / 8) ** 2, abs=1e-14)
    assert float(bars[1300]) == 1e-9, "kept above zero, so that log-SNR stays finite"
    assert float(bars[1299]) == pytest.approx(math.sin(math.pi / 2600) ** 2, rel=1e-9)


def test_linear_schedule_is_accurate_to_double_precision():
    config = DiffusionConfig(schedule="linear")
    rise = (config.beta_end - config.beta_start) / (config.timesteps - 1)
    expected = math.prod(1 - (config.beta_start + i * rise) for i in range(config.timesteps))
    assert float(make_alpha_bars(config)[-1]) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    ("timesteps", "steps", "expected"),
    [
        (1300, 1, [(1300, 0)]),
        (1300, 2, [(1300, 650), (650, 0)]),
        (1300, 3, [(1300, 867), (867, 433), (433, 0)]),
        (4, 4, [(4, 3), (3, 2), (2, 1), (1, 0)]),
    ],
)
def test_trailing_subsequences(timesteps, steps, expected):
    assert sampling_timesteps(timesteps, steps) == expected


@pytest.mark.parametrize("steps", range(1, 60))
def test_every_subsequence_starts_at_T_ends_at_zero_and_descends(steps):
    pairs = sampling_timesteps(59, steps)
    assert len(pairs) == steps and pairs[0][0] == 59 and pairs[-1][1] == 0
    assert all(t > s for t, s in pairs)
    assert all(a[1] == b[0] for a, b in zip(pairs, pairs[1:], strict=False))


@pytest.mark.parametrize(
    ("timesteps", "steps", "expected"),
    [(1300, 4, [1300, 731, 325, 81, 0]), (10, 6, [10, 7, 4, 3, 2, 1, 0]), (5, 5, [5, 4, 3, 2, 1, 0]), (9, 1, [9, 0])],
)
def test_quadratic_subsequences(timesteps, steps, expected):
    assert sampling_timesteps(timesteps, steps, "quadratic") == list(zip(expected, expected[1:], strict=False))


def test_the_whole_schedule_in_steps_of_one_and_unknown_spacings():
    assert sampling_timesteps(59, 59) == [(t, t - 1) for t in range(59, 0, -1)]
    with pytest.raises(ValueError, match="'uniform' or 'quadratic', not 'cubic'"):
        sampling_timesteps(59, 2, "cubic")


@pytest.mark.parametrize("steps", [0, -1, 1301])
def test_steps_outside_the_schedule_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and 1300"):
        sampling_timesteps(1300, steps)


def test_forward_process_has_the_stated_mean_and_deviation():
    noise = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    x_t = q_sample(torch.full((COUNT,), 2.0), noise, 0.3)
    assert float(x_t.mean()) == pytest.approx(2 * math.sqrt(0.3), abs=0.01)
    assert float(x_t.std()) == pytest.approx(math.sqrt(0.7), abs=0.01)


def test_forward_process_broadcasts_and_keeps_the_precision_of_the_picture():
    x_0, noise = torch.rand(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    bars = torch.tensor([0.25, 0.81], dtype=torch.float64).reshape(2, 1, 1, 1)
    x_t = q_sample(x_0, noise, bars)
    assert x_t.dtype == torch.float32
    for b, (a, s) in enumerate(((0.5, math.sqrt(0.75)), (0.9, math.sqrt(0.19)))):
        assert torch.allclose(x_t[b], a * x_0[b] + s * noise[b], atol=1e-6)
    assert q_sample(x_0.half(), noise.half(), bars).dtype == torch.float16
    elsewhere = q_sample(x_0.to("meta"), noise.to("meta"), bars)  # mixing devices is an error, as on a GPU
    assert elsewhere.device.type == "meta"


class NoFloat64(TorchDispatchMode):
    """Stands for a device without float64, such as MPS: of the tensors on "meta" none may be of that type."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta" and result.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return result


def test_the_schedule_stays_where_there_is_float64():
    bars = make_alpha_bars(DiffusionConfig())[torch.tensor([1, 1300])][:, None, None, None]
    x_0, noise = torch.rand(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    with NoFloat64():
        with pytest.raises(TypeError, match="no float64"):
            bars.to("meta")
        assert q_sample(x_0.to("meta"), noise.to("meta"), bars).dtype == torch.float32
    expected = bars.sqrt().float() * x_0 + (1 - bars).sqrt().float() * noise
    assert torch.equal(q_sample(x_0, noise, bars), expected), "the same bits as ever on a CPU"


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda c: c.schedule)
@pytest.mark.parametrize("steps", [2, 3, 4, 10])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_with_an_oracle_the_noise_after_each_step_is_that_of_the_forward_process(config, steps, eta):
    bars = make_alpha_bars(config).tolist()
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.full((COUNT,), 0.7)
    first = sampling_timesteps(config.timesteps, steps)[0][0]
    x = q_sample(x_0, torch.randn(COUNT, generator=generator), bars[first])
    for t, s in sampling_timesteps(config.timesteps, steps):
        x = ddim_step(x, x_0, bars[t], bars[s], eta, torch.randn(COUNT, generator=generator))
        assert float((x - math.sqrt(bars[s]) * x_0).std()) == pytest.approx(math.sqrt(1 - bars[s]), abs=4e-3)
    assert torch.allclose(x, x_0)


def test_eta_one_over_all_steps_is_the_ddpm_posterior():
    bars = make_alpha_bars(DiffusionConfig(timesteps=50)).tolist()
    for t in range(1, 51):
        assert ddim_coefficients(bars[t], bars[t - 1], eta=1.0) == pytest.approx(
            ddpm_posterior(bars[t], bars[t - 1]), abs=1e-9
        )


def test_posterior_agrees_with_bayes_rule():
    bar_t, bar_s = 0.4, 0.55
    alpha = bar_t / bar_s
    precision = 1 / (1 - bar_s) + alpha / (1 - alpha)
    m, k, sigma = ddpm_posterior(bar_t, bar_s)
    assert sigma**2 == pytest.approx(1 / precision)
    assert m == pytest.approx(math.sqrt(alpha) / (1 - alpha) / precision)
    assert k == pytest.approx(math.sqrt(bar_s) / (1 - bar_s) / precision)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_by_hand(eta):
    bar_t, bar_s = 0.4, 0.55
    x_t, x_0, noise = torch.randn(3, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sigma = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    m = math.sqrt((1 - bar_s - sigma**2) / (1 - bar_t))
    k = math.sqrt(bar_s) - m * math.sqrt(bar_t)
    assert ddim_coefficients(bar_t, bar_s, eta) == pytest.approx((m, k, sigma), abs=1e-12)
    step = ddim_step(x_t, x_0, bar_t, bar_s, eta, noise)
    assert torch.allclose(step, m * x_t + k * x_0 + sigma * noise, rtol=0, atol=1e-12)


def test_without_eta_a_step_takes_no_noise():
    x_t, x_0, noise = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    assert ddim_coefficients(0.4, 0.55) == ddim_coefficients(0.4, 0.55, 0.0)
    assert torch.equal(ddim_step(x_t, x_0, 0.4, 0.55), ddim_step(x_t, x_0, 0.4, 0.55, 0.0, noise))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_step_returns_the_prediction(eta):
    x_0 = torch.randn(10)
    assert torch.equal(ddim_step(torch.randn(10), x_0, 0.25, 1.0, eta), x_0)


def test_a_stochastic_step_without_noise_is_an_error():
    with pytest.raises(ValueError, match="needs noise"):
        ddim_step(torch.zeros(1), torch.zeros(1), 0.25, 0.5, eta=1.0)


class TestPrintedFormulas:
    """What the paper prints does not satisfy its own conditions; the forms above do."""

    bar_t, bar_s = 0.1, 0.6

    def test_equation_8_lacks_a_root(self):
        m, k, _ = ddim_coefficients(self.bar_t, self.bar_s)
        assert m * math.sqrt(self.bar_t) + k == pytest.approx(math.sqrt(self.bar_s))
        assert m * self.bar_t + k != pytest.approx(math.sqrt(self.bar_s), abs=1e-3)

    def test_the_solution_has_the_wrong_denominator(self):
        m, _, _ = ddim_coefficients(self.bar_t, self.bar_s)
        printed = math.sqrt(1 - self.bar_s) / (1 - self.bar_s)
        assert m**2 * (1 - self.bar_t) == pytest.approx(1 - self.bar_s)
        assert printed**2 * (1 - self.bar_t) != pytest.approx(1 - self.bar_s, abs=1e-2)
        # At the last step abar_s = 1, and the printed m is 0 / 0.
        assert ddim_coefficients(self.bar_t, 1.0) == (0, 1, 0)

    def test_the_posterior_variance_has_the_wrong_denominator(self):
        *_, sigma = ddpm_posterior(self.bar_t, self.bar_s)
        printed = 1 - self.bar_t / self.bar_s  # (1 - alpha)(1 - abar_s) / (1 - abar_s)
        assert sigma**2 != pytest.approx(printed, abs=1e-2)

    def test_equations_1_and_2_disagree_about_the_variance(self):
        """With variance 1 - alpha_t a step keeps unit variance; with 1 - alpha_t as deviation it does not."""
        alpha = 0.9
        x_0, noise = torch.randn(2, COUNT, generator=torch.Generator().manual_seed(4))
        assert float(q_sample(x_0, noise, alpha).var()) == pytest.approx(1, abs=0.01)
        assert float((math.sqrt(alpha) * x_0 + (1 - alpha) * noise).var()) == pytest.approx(0.91, abs=0.01)
