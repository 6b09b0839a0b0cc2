"""Export's tests run torch: on one thread, since threads that wait for each other crawl where the cores are busy."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
