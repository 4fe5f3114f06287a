"""The mark of tests that need a GPU."""

from __future__ import annotations

import pytest
import torch

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: it runs what only CUDA has, or measures its memory"
)
