"""What usage is counted in and what it costs: the words of the price file and of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from penstock.scheduling.models import means, words

CPUS = "cpus"  # cores
MEMORY = "memory_bytes"
GPUS = "gpus:"  # followed by the model
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices for an hour of one core, one GiB and one GPU, in ``currency`` (ISO 4217)."""

    currency: str
    cpu_hour: Decimal
    memory_gib_hour: Decimal
    gpu_hour: Decimal  # of a model that ``gpu_models`` does not name
    gpu_models: Mapping[str, Decimal] = field(default_factory=dict)

    def gpu(self, model: str) -> Decimal:
        """The price of the entry all of whose words the model's name has; of several the one with the most words.

        "A100 80GB" is thus the price of an "NVIDIA A100-SXM4-80GB", and "A100" that of every other A100.
        """
        fitting = [name for name in self.gpu_models if means(name, model)]
        if not fitting:
            return self.gpu_hour
        return self.gpu_models[max(fitting, key=lambda name: (len(words(name)), name))]
