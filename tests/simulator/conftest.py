from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulated import Service

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "simulated")
