"""The time that networks take on a device, predicted from that of their parts."""

from __future__ import annotations

import statistics
from typing import Literal

from psvit_ray.arch.parts import parts
from psvit_ray.arch.spec import ArchSpec, Count, Value

Dtype = Literal["float32", "bfloat16"]


class Conditions(Value):
    """The conditions under which the time of a forward pass without gradients is taken."""

    device: str = "cpu"
    """Device that runs the networks: cpu, cuda, cuda:1 ..."""
    dtype: Dtype = "float32"
    """Type of the numbers; bfloat16 is that of autocast, as in training."""
    batch_size: Count = 32
    """Images of a batch, which is what is timed."""
    rounds: Count = 9
    """Passes one after the other, of which the fastest counts, as any disturbance only slows."""
    times: Count = 5
    """Moments, apart from each other, at which each part and each network is timed; the median
    counts."""


class MeasuredNetwork(Value):
    """A network that was not used to make a table: milliseconds a batch."""

    spec: ArchSpec
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Error of the prediction, in percent of the measurement."""
        return 100 * (self.predicted / self.measured - 1)


class LatencyTable(Value):
    """Milliseconds that a batch spends in each part of a network, on one device."""

    conditions: Conditions
    device_name: str
    threads: Count
    """Threads of torch, where the device is a CPU. A single thread is timed by its own processor
    time, several by the clock on the wall; on an idle machine both are the same."""
    torch_version: str
    img_size: Count
    in_chans: Count
    num_classes: Count
    layer_scale: bool
    ms: dict[str, float]
    """Milliseconds by the names that `arch.parts.parts` gives."""
    unseen: tuple[MeasuredNetwork, ...] = ()
    """Networks that the table was not made from, predicted and measured."""

    def predict(self, spec: ArchSpec) -> float:
        """Milliseconds of a batch of `conditions.batch_size` images.

        Raises ValueError that names what the table does not have.
        """
        for name in ("img_size", "in_chans", "num_classes", "layer_scale"):
            if getattr(spec, name) != getattr(self, name):
                raise ValueError(
                    f"the latency table has {name}={getattr(self, name)}, got a spec with "
                    f"{getattr(spec, name)}; measure one for its space"
                )
        try:
            return sum(self.ms[part] for part in parts(spec))
        except KeyError as error:
            raise ValueError(
                f"the latency table has no part {error.args[0]!r}, which spec {spec.pattern} has; "
                "measure one for its space"
            ) from None

    @property
    def median_error(self) -> float:
        """Median error of the predictions for unseen networks, in percent."""
        return statistics.median(abs(network.error) for network in self.unseen)
