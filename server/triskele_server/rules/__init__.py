"""Aggregation rules: the secret n x n Gram matrix in, n weights out. Pure CrypTen code, one file each."""

from triskele_server.rules import (
    bucketing,
    centered_clip,
    dnc,
    flame,
    fltrust,
    foolsgold,
    geometric_median,
    krum,
    mean,
    nnm,
    norm_clip,
    order_statistics,
)
from triskele_server.rules.noise import check_task
from triskele_server.rules.pipeline import Pipeline
from triskele_server.rules.registry import (
    CoordinateSum,
    Mixing,
    Rule,
    Scaled,
    coordinate_wise,
    find,
    known,
    pre_aggregation,
    rule,
)
from triskele_server.rules.ring_choice import reason_for_wide, with_ring

__all__ = [
    "CoordinateSum",
    "Mixing",
    "Pipeline",
    "Rule",
    "Scaled",
    "bucketing",
    "centered_clip",
    "check_task",
    "coordinate_wise",
    "dnc",
    "find",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "known",
    "krum",
    "mean",
    "nnm",
    "norm_clip",
    "order_statistics",
    "pre_aggregation",
    "reason_for_wide",
    "rule",
    "with_ring",
]
