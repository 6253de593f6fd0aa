"""Aggregation rules: the secret n x n Gram matrix in, n weights out. Pure CrypTen code, one file each."""

from triskele_server.rules import mean, multi_krum, norm_clip
from triskele_server.rules.registry import Rule, Scaled, check_task, find, rule

__all__ = ["Rule", "Scaled", "check_task", "find", "mean", "multi_krum", "norm_clip", "rule"]
