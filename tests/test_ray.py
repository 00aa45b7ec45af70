"""A study on a real Ray cluster of several nodes, one of them killed while its worker is at a cell. Extra `ray`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from titer.campaigns.study.file import parse_study
from titer.runs.executors.ray import RayCrew
from titer.runs.queue import run_study
from titer.runs.store import Store
from titer.schema.errors import TiterError

SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from titer.runs.locks import Claims
from titer.runs.queue import run_study
from titer.campaigns.study.file import parse_study

root = Path(sys.argv[2])
cells = parse_study(json.loads(sys.argv[1])).cells
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
at_work, killed = threading.Event(), []

def kill():
    while not list((root / "runs").glob(".claims/*")):
        time.sleep(0.005)
    cluster.remove_node(nodes[0], allow_graceful=False)
    killed.append(1)

threading.Thread(target=kill, daemon=True).start()
board = run_study(cells, root, workers=2, dead_after=5.0, executor=f"ray#address={cluster.address}")
print(json.dumps({"states": board.counts(), "killed": len(killed)}))
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_costs_no_cell(tmp_path: Path, toy_model: str, toy_data: str) -> None:
    pytest.importorskip("ray")
    raw = {
        "models": [toy_model],
        "dataset": toy_data,
        "attacks": [{"name": "sft", "options": {"learning_rate": 1e-2, "per_device_train_batch_size": 4}}],
        "seeds": list(range(8)),
        "max_steps": 30,
        "plan": [0, 30],
        "stop_after": -1,
        "n_train": 6,
        "n_eval": 3,
        "max_new_tokens": 3,
    }
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(raw), str(tmp_path / "ray")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env={**os.environ, "CI": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == 1 and told["states"]["done"] == 8
    here = run_study(parse_study(raw).cells, tmp_path / "here")
    for run_id in filter(None, map(here.id, range(8))):
        ours, theirs = (Store(tmp_path / where).completions(run_id) for where in ("ray", "here"))
        assert ours == theirs


def test_without_ray_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TiterError, match=r"titer\[ray\]"), RayCrew(print, [0], "auto"):
        pass
