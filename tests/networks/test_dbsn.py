"""D-BSN: sizes, blindness, and the mathematics of the paper against independent calculations."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from mdrn_plugin.networks.dbsn import (
    DBSN,
    NOISE_MODELS,
    Branch,
    MaskedConv2d,
    Prediction,
    constrained_loss,
    negative_log_likelihood,
    posterior,
)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_reference_sizes_are_the_papers() -> None:
    gray, colour = DBSN(1), DBSN(3)
    assert (_count(gray.backbone), _count(colour.backbone)) == (6_612_289, 6_612_675)
    assert _count(gray.noise_net) == 865


@pytest.mark.parametrize("noise", NOISE_MODELS)
def test_prediction_does_not_see_its_own_pixel(noise: str) -> None:
    torch.manual_seed(0)
    network = DBSN(3, channels=8, blocks=3, noise=noise).double()
    x = torch.rand(1, 3, 33, 35, dtype=torch.float64, requires_grad=True)
    for row, column in ((16, 17), (0, 0), (32, 9)):
        mean = network(x).mean[0, :, row, column]
        (gradient,) = torch.autograd.grad(mean.square().sum(), x)
        assert torch.equal(gradient[0, :, row, column], torch.zeros(3, dtype=torch.float64))
        assert (gradient != 0).sum() > 500  # but it sees its surroundings
        if noise == "gaussian":
            spread = network(x).mean_covariance[0, row, column].sum()
            (gradient,) = torch.autograd.grad(spread, x)
            assert torch.equal(gradient[0, :, row, column], torch.zeros(3, dtype=torch.float64))


def test_blindness_needs_the_mask() -> None:
    """The test above can fail: with the centre let in, the pixel is seen."""
    network = DBSN(1, channels=8, blocks=1).double()
    for module in network.modules():
        if isinstance(module, MaskedConv2d):
            module.mask.fill_(1)  # type: ignore[operator]
    x = torch.rand(1, 1, 17, 17, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).mean[0, 0, 8, 8], x)
    assert gradient[0, 0, 8, 8] != 0


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize(("height", "width"), [(36, 24), (35, 25), (7, 5)])
def test_phases_are_the_dilated_convolutions(side: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    branch = Branch(8, 2, side).double()
    x = torch.rand(2, 8, height, width, dtype=torch.float64)

    def dilated(layers: torch.nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        conv, d = layers[2], branch.dilation
        assert isinstance(conv, torch.nn.Conv2d)
        padding = d * (conv.kernel_size[0] // 2)
        out = functional.conv2d(layers[:2](x), conv.weight, conv.bias, padding=padding, dilation=d)
        return out.relu()

    layers = list(branch)
    expected = torch.nn.Sequential(*layers[:6])(x)
    for block in layers[6:-1]:
        paths = [dilated(block.wide, expected), dilated(block.near, expected), block.own(expected)]
        expected = block.after(block.fusion(torch.cat(paths, 1)) + expected)
    torch.testing.assert_close(branch(x), layers[-1](expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", NOISE_MODELS)
@pytest.mark.parametrize("colours", [1, 3])
def test_shapes_and_covariances(noise: str, colours: int) -> None:
    prediction = DBSN(colours, channels=8, blocks=1, noise=noise)(torch.rand(2, colours, 12, 10))
    assert prediction.mean.shape == (2, colours, 12, 10)
    for covariance in (prediction.mean_covariance, prediction.noise_covariance):
        assert covariance.shape[-2:] == (colours, colours)
        assert torch.linalg.eigvalsh(covariance).min() > -1e-6
    whole = (2, 1, 1, colours, colours)
    assert (prediction.noise_covariance.shape == whole) == (noise != "poisson-gaussian")
    assert (prediction.mean_covariance.shape == whole) == (noise == "multivariate")


def _random(colours: int) -> tuple[torch.Tensor, Prediction]:
    torch.manual_seed(colours)

    def covariance() -> torch.Tensor:
        a = torch.randn(2, 5, 4, colours, colours, dtype=torch.float64)
        return a @ a.mT + 0.1 * torch.eye(colours, dtype=torch.float64)

    shape = (2, colours, 5, 4)
    noisy, mean = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    return noisy, Prediction(mean, covariance(), covariance())


@pytest.mark.parametrize("colours", [1, 3])
def test_posterior_is_the_papers_equation(colours: int) -> None:
    noisy, prediction = _random(colours)
    a, b = prediction.mean_covariance.inverse(), prediction.noise_covariance.inverse()
    mean, y = (t.permute(0, 2, 3, 1)[..., None] for t in (prediction.mean, noisy))
    expected = (a + b).inverse() @ (a @ mean + b @ y)
    torch.testing.assert_close(posterior(noisy, prediction), expected[..., 0].permute(0, 3, 1, 2))


@pytest.mark.parametrize("colours", [1, 3])
def test_likelihood_is_torchs(colours: int) -> None:
    noisy, prediction = _random(colours)
    normal = torch.distributions.MultivariateNormal(
        prediction.mean.permute(0, 2, 3, 1), prediction.mean_covariance + prediction.noise_covariance
    )
    expected = -normal.log_prob(noisy.permute(0, 2, 3, 1)) - 0.5 * colours * math.log(2 * math.pi)
    ours = negative_log_likelihood(noisy, prediction)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("colours", [1, 3])
def test_constrained_loss_bounds_the_likelihood(colours: int) -> None:
    noisy, prediction = _random(colours)
    assert (constrained_loss(noisy, prediction) >= negative_log_likelihood(noisy, prediction) - 1e-4).all()
    exact = Prediction(
        prediction.mean, torch.zeros_like(prediction.mean_covariance), prediction.noise_covariance
    )
    torch.testing.assert_close(constrained_loss(noisy, exact), negative_log_likelihood(noisy, exact))


def test_posterior_between_prediction_and_observation() -> None:
    noisy, mean = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    variance = torch.full((1, 4, 4, 1, 1), 0.01)
    assert posterior(noisy, Prediction(mean, variance, 3 * variance)).mean() == pytest.approx(0.25, abs=1e-3)
    assert posterior(noisy, Prediction(mean, 0 * variance, variance)).abs().max() < 1e-6


def test_unknown_noise_model_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of gaussian"):
        DBSN(noise="uniform")


@pytest.mark.parametrize("noise", NOISE_MODELS)
def test_start_noise_at_a_known_level(noise: str) -> None:
    network = DBSN(3, channels=8, blocks=1, noise=noise)
    network.start_noise_at(0.1)
    found = network(torch.rand(1, 3, 16, 16)).noise_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(found, torch.full_like(found, 0.1), rtol=0.1, atol=0)


def test_radius_is_how_far_a_prediction_looks() -> None:
    network = DBSN(1, channels=4, blocks=2).double()
    side = 2 * DBSN(1, channels=4, blocks=2).backbone.radius(2) + 5
    x = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    total = sum(
        torch.autograd.grad(p(x)[0][0, 0, side // 2, side // 2], x)[0].abs()
        for p in [DBSN(1, channels=4, blocks=2).double().backbone for _ in range(4)]
    )
    rows = torch.nonzero(total[0, 0].sum(1))[:, 0]
    assert side // 2 - int(rows.min()) == network.backbone.radius(2)


def test_pixels_keep_their_precision_under_autocast() -> None:
    network = DBSN(1, channels=8, blocks=1)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = network(torch.rand(1, 1, 16, 16))
    assert prediction.mean.dtype == prediction.mean_covariance.dtype == torch.float32
