# SPDX-License-Identifier: Apache-2.0
"""The example notebook runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/examples/sweep.ipynb"

EXECUTE = """
import nbclient, nbformat, sys
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=200).execute()
nbformat.write(notebook, sys.argv[2])
"""
"""A program of its own: nbclient leaves its event loop open."""


def test_the_notebook_runs_and_is_kept_without_outputs(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    argv = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(tmp_path / "executed.ipynb")]
    result = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
    executed = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    shown = ["".join(out.get("data", {}).get("text/plain", [])) for cell in executed for out in cell.get("outputs", [])]
    assert [text.count("completed") for text in shown if "status" in text] == [2]
    assert any("dirty_pages" in text for text in shown)
    assert sorted(os.listdir(tmp_path)) == ["executed.ipynb", "ipython"], "the results are only returned"
