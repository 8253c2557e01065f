"""The list of all planted faults."""

from __future__ import annotations

from faults import blind, judging, models, normalization, training

FAULTS = (*normalization.FAULTS, *models.FAULTS, *training.FAULTS, *judging.FAULTS, *blind.FAULTS)
