"""The menu of similarity metrics: every one with the same two calls, for 2D and 3D, on the CPU and the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from histomri.backend import array_module
from histomri.kernels import features as descriptors
from histomri.kernels.information import tails
from histomri.kernels.similarity import correlation, gradient_fields, histogram, local_correlation, ratio, squared
from histomri.kernels.similarity.channels import Array
from histomri.kernels.similarity.passes import Passes

Mask = Array
TAIL_PERCENT = 1.0


class Metric(Protocol):
    """A dissimilarity of two images; see ``docs/engine.md`` and :mod:`histomri.kernels.similarity` for values and edge cases."""

    @property
    def name(self) -> str:
        """Its key in ``METRICS``."""

    @property
    def residual(self) -> bool:
        """True where the value is ``sum w r^2 / sum w`` with ``r = warped - fixed``, so that Gauss-Newton applies."""

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """What is compared in place of the image (*shape) or (*shape, c): float32 (*shape, c'), made once, before any warping.

        ``mask`` (*shape) says where the image's range is measured; None is everywhere.
        """

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force (*shape, c) of features (*shape, c) under a weight (*shape)."""

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone."""

    @property
    def passes(self) -> Passes:
        """The same over the parts of an image."""


@dataclass(frozen=True)
class SumOfSquares:
    """``ssd``: same modality, same contrast."""

    name = "ssd"
    residual = True

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """The image itself."""
        return channels_last(image, mask)

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force."""
        return squared.ssd(fixed, warped, weight)

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone."""
        return self.evaluate(fixed, warped, weight)[0]

    @property
    def passes(self) -> Passes:
        """The same over parts."""
        return squared.PASSES


@dataclass(frozen=True)
class Mind:
    """``mind``: squared difference of modality independent neighbourhood descriptors (Heinrich et al. 2012).

    ``sigma_px`` and ``reach`` in pixels of the level; the descriptors' channels are scaled so that the value is their mean.
    """

    sigma_px: float = 1.0
    reach: int = 2
    name = "mind"
    residual = True

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """Descriptors of all channels of the image, 0 outside the mask."""
        xp, data = array_module(image), channels_last(image, mask)
        inside = xp.ones(data.shape[:-1], bool) if mask is None else mask.astype(bool)
        parts = [
            descriptors.mind(xp.ascontiguousarray(data[..., c]), inside, self.sigma_px, self.reach) for c in range(data.shape[-1])
        ]
        stack = xp.moveaxis(xp.concatenate(parts), 0, -1)
        out: Array = xp.ascontiguousarray(stack * np.float32(stack.shape[-1] ** -0.5))
        return out

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force."""
        return squared.ssd(fixed, warped, weight)

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone."""
        return self.evaluate(fixed, warped, weight)[0]

    @property
    def passes(self) -> Passes:
        """The same over parts."""
        return squared.PASSES


@dataclass(frozen=True)
class Correlation:
    """``ncc``: same modality, any brightness and contrast."""

    name = "ncc"
    residual = False

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """The image at unit standard deviation in the mask."""
        return at_unit_deviation(image, mask)

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force."""
        return correlation.ncc(fixed, warped, weight)

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone."""
        return self.evaluate(fixed, warped, weight)[0]

    @property
    def passes(self) -> Passes:
        """The same over parts."""
        return correlation.PASSES


@dataclass(frozen=True)
class LocalCorrelation:
    """``lncc``: contrast that is linear locally, of either sign.

    ``radius``: boxes of ``2 radius + 1`` pixels; ``floor``: the variance that counts as noise.
    """

    radius: int = local_correlation.RADIUS
    floor: float = local_correlation.FLOOR
    name = "lncc"
    residual = False

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """The image at unit standard deviation in the mask, to which ``floor`` refers."""
        return at_unit_deviation(image, mask)

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force."""
        return local_correlation.lncc(fixed, warped, weight, self.radius, self.floor)

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone."""
        return self.evaluate(fixed, warped, weight)[0]

    @property
    def passes(self) -> Passes:
        """The same over parts."""
        return local_correlation.passes(self.radius, self.floor)


@dataclass(frozen=True)
class CorrelationRatio:
    """``cr``: the warped value is any function of the fixed one."""

    bins: int = ratio.BINS
    name = "cr"
    residual = False

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """The image with its percentiles in the mask at 0 and 1."""
        return at_unit_range(image, mask)

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force."""
        return ratio.cr(fixed, warped, weight, self.bins)

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone."""
        return self.evaluate(fixed, warped, weight)[0]

    @property
    def passes(self) -> Passes:
        """The same over parts."""
        return ratio.passes(self.bins)


@dataclass(frozen=True)
class Information:
    """``mi``, ``nmi``: any two modalities.

    ``window``: ``linear`` or ``cubic`` (see :mod:`histomri.kernels.similarity.windows`).
    """

    name: str = "nmi"
    bins: int = histogram.BINS
    window: str = "linear"
    residual = False

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """The image with its percentiles in the mask at 0 and 1."""
        return at_unit_range(image, mask)

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force."""
        return histogram.information(fixed, warped, weight, self.bins, self.window, self.name)

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone, in one pass."""
        return histogram.information_value(fixed, warped, weight, self.bins, self.window, self.name)

    @property
    def passes(self) -> Passes:
        """The same over parts."""
        return histogram.passes(self.bins, self.window, self.name)


@dataclass(frozen=True)
class GradientFields:
    """``ngf``: edges of either sign at the same place; ``edge`` times the mean gradient in the mask counts as one.

    The larger ``edge``, the more a gradient's length counts, which linear interpolation lowers between the pixels: with 1 a shift
    of 0.3 pixels is taken for one of 0.1 or none.
    """

    edge: float = 0.3
    name = "ngf"
    residual = False

    def features(self, image: Array, mask: Mask | None = None) -> Array:
        """The image over the gradient per pixel that counts as an edge."""
        return at_unit_gradient(image, mask, self.edge)

    def evaluate(self, fixed: Array, warped: Array, weight: Array) -> tuple[float, Array]:
        """Value and force."""
        return gradient_fields.ngf(fixed, warped, weight)

    def value(self, fixed: Array, warped: Array, weight: Array) -> float:
        """The value alone."""
        return self.evaluate(fixed, warped, weight)[0]

    @property
    def passes(self) -> Passes:
        """The same over parts."""
        return gradient_fields.PASSES


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        SumOfSquares(),
        Correlation(),
        LocalCorrelation(),
        CorrelationRatio(),
        Information("mi"),
        Information("nmi"),
        GradientFields(),
        Mind(),
    )
}
"""Every metric at its defaults, by name."""


def channels_last(image: Array, mask: Mask | None = None) -> Array:
    """The image (*shape) or (*shape, c) as float32 (*shape, c).

    Without a mask, an image of more than three axes, or of three of which the last has at most 4 values, has channels.
    """
    xp = array_module(image)
    has_channels = (
        image.ndim == mask.ndim + 1 if mask is not None else image.ndim == 4 or (image.ndim == 3 and image.shape[-1] <= 4)
    )
    data: Array = xp.ascontiguousarray(image if has_channels else image[..., None], dtype=xp.float32)
    return data


def _per_channel(image: Array, mask: Mask | None, scale: Any) -> Array:
    """Each channel mapped by ``scale(channel, its values in the mask) -> (offset, factor)``: ``(I - offset) * factor``."""
    xp = array_module(image)
    data = channels_last(image, mask)
    out = xp.empty_like(data)
    for c in range(data.shape[-1]):
        offset, factor = scale(data[..., c])
        out[..., c] = (data[..., c] - xp.float32(offset)) * xp.float32(factor)
    return out


def at_unit_deviation(image: Array, mask: Mask | None = None) -> Array:
    """Each channel over its standard deviation in the mask, unchanged if it does not vary; 0 stays 0."""

    def scale(channel: Array) -> tuple[float, float]:
        inside = _inside(channel, mask)
        deviation = float(inside.std(dtype=np.float64)) if inside.size else 0.0
        return 0.0, 1 / deviation if deviation > 0 else 1.0

    return _per_channel(image, mask, scale)


def at_unit_range(image: Array, mask: Mask | None = None, tail_percent: float = TAIL_PERCENT) -> Array:
    """Each channel with its ``tail_percent`` percentiles in the mask at 0 and 1 (its extremes where these coincide)."""

    def scale(channel: Array) -> tuple[float, float]:
        inside = _inside(channel, mask)
        low, high = tails(inside, tail_percent)
        if not high > low:
            low, high = tails(inside, 0.0)
        return low, 1 / (high - low) if high > low else 1.0

    return _per_channel(image, mask, scale)


def at_unit_gradient(image: Array, mask: Mask | None = None, edge: float = 1.0) -> Array:
    """Each channel over ``edge`` times its mean gradient magnitude per pixel in the mask; unchanged if it does not vary."""
    xp = array_module(image)

    def scale(channel: Array) -> tuple[float, float]:
        steps = gradient_fields.central_differences(channel)
        core = tuple(slice(1, -1) for _ in channel.shape)
        length = xp.sqrt(sum(s[core] * s[core] for s in steps))
        inside = _inside(length, None if mask is None else mask[core])
        mean = edge * float(inside.mean(dtype=np.float64)) if inside.size else 0.0
        return 0.0, 1 / mean if mean > 0 else 1.0

    return _per_channel(image, mask, scale)


def _inside(channel: Array, mask: Mask | None) -> Array:
    return channel.ravel() if mask is None else channel[mask]
