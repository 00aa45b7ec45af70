from __future__ import annotations

import subprocess
import sys


def test_conditions_and_flags_import_nothing_heavy() -> None:
    code = "import sys, titer.conditions.flags; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "scipy", "statsmodels", "pandas", "transformers"} & set(loaded)
