"""Fixtures of the defence tests."""

from __future__ import annotations

import pytest
from toolbox import Toolbox, build
from torch import nn


@pytest.fixture
def tools() -> type[Toolbox]:
    return Toolbox


@pytest.fixture(params=["full", "lora"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build("llama", lora=request.param == "lora")
