"""Someone else's policy or strategy: one Python file and one yaml, nothing else touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

POLICY = '''
"""Most recently used goes first: a bad policy, and easy to tell from the shipped ones."""

from dataclasses import dataclass, field


@dataclass
class Mru:
    order: list = field(init=False, default_factory=list)

    def on_insert(self, key, size, cost_s, now, expires_s):
        self.order.append(key)

    def on_hit(self, key, now):
        self.order.remove(key)
        self.order.append(key)

    def on_remove(self, key):
        self.order.remove(key)

    def admit(self, key, size, cost_s, now):
        return True

    def victim(self, now):
        return self.order[-1]
'''

POLICY_YAML = """
defaults:
  - lru
  - _self_
policy:
  _target_: my_stack.mru.Mru
"""

STRATEGY = '''
"""Pairs: dispatch two at a time."""

from dataclasses import dataclass

from capibench.batching.strategy import Dispatch, WaitUntil


@dataclass
class Pairs:
    patience_s: float
    joins_running = False

    @property
    def max_batch_size(self):
        return 2

    def decide(self, view):
        oldest_s = view.items[0].enqueued_s
        if len(view.items) >= 2 or view.draining or view.now_s >= oldest_s + self.patience_s:
            return Dispatch(range(min(2, len(view.items))), view.idle_worker(), "pair")
        return WaitUntil(oldest_s + self.patience_s)
'''

STRATEGY_YAML = """
_target_: capibench.batching.batching.Batching
strategy:
  _target_: my_stack.pairs.Pairs
  patience_s: 0.05
composition:
  _target_: capibench.batching.composition.Composition
  order: arrival
  max_batch_tokens: null
  look_ahead: 1
max_queue_size: 10000
"""


def write_plugin(folder: Path) -> None:
    package = folder / "my_stack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mru.py").write_text(POLICY)
    (package / "pairs.py").write_text(STRATEGY)
    for group, name, text in (("cache", "mru", POLICY_YAML), ("batching", "pairs", STRATEGY_YAML)):
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / f"{name}.yaml").write_text(text)


def test_own_policy_and_strategy(tmp_path: Path, capibench: Callable[..., object]) -> None:
    write_plugin(tmp_path)
    done = capibench(
        "run",
        "--config-dir",
        str(tmp_path / "conf"),
        "plugins=[my_stack]",
        "cache=mru",
        "batching=pairs",
        "time=virtual",
        "tracking=none",
        "corpus.max_passages=300",
        "load.num_requests=200",
        "load.rate_per_s=60",
        PYTHONPATH=str(tmp_path),
    )
    assert done.code == 0, done.err
    import pandas as pd

    rows = pd.read_parquet(Path(done.result["run_dir"]) / "records.parquet")
    assert set(rows.batch_reason.dropna()) == {"pair"}
    assert rows.batch_size.max() == 2


def test_a_target_outside_the_list_is_refused(
    tmp_path: Path, capibench: Callable[..., object]
) -> None:
    write_plugin(tmp_path)
    done = capibench(
        "run", "--config-dir", str(tmp_path / "conf"), "cache=mru", PYTHONPATH=str(tmp_path)
    )
    assert done.code == 2
    assert "my_stack.mru.Mru" in done.err
    assert "plugins" in done.err
