"""The parties of a test are threads of one process: more torch threads only get in each other's way."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
