"""Hydra's grid sweeper with what a measurement needs: repeats, random order, a ledger.

`capibench run -m cache=none,lru` and `capibench study NAME` both end here. Cells run in blocks:
each block holds every cell once, in an order drawn from `order_seed`, so that slow drifts of the
machine spread over all cells instead of favouring the first. A finished cell is never run again
in the same study folder (`hydra.sweep.dir=...` of an interrupted study resumes it).

Hydra imports every plug-in at start-up: nothing heavy here. It executes this file before the
module is registered, so that a dataclass must not have its annotations as text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf


@dataclass
class StudySweeperConf:
    _target_: str = "hydra_plugins.capibench_study.study_sweeper.StudySweeper"
    params: dict[str, str] | None = None  # what varies: key → comma-separated values
    repeats: int = 1  # how often each cell runs, with arrivals of its own
    order_seed: int = 0  # of the order of the cells within each block
    rerun: bool = False  # run finished cells again


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf)


class StudySweeper(BasicSweeper):
    """See the module's text."""

    def __init__(
        self, params: dict[str, str] | None, repeats: int, order_seed: int, rerun: bool
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self._repeats = repeats
        self._order_seed = order_seed
        self._rerun = rerun

    def sweep(self, arguments: list[str]) -> Any:
        from capibench.errors import ConfigError
        from capibench.study import Study, StudyCell, plan_blocks

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        if self._repeats < 1:
            raise ConfigError("hydra.sweeper.repeats", f"got {self._repeats}; expected at least 1")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        asked = [list(cell) for cell in self.split_arguments(overrides, None)[0]]
        study = Study(Path(self.config.hydra.sweep.dir).resolve())
        cells = [StudyCell(cell, self._resolved(cell)) for cell in asked]
        study.check([cell.config for cell in cells])
        jobs = plan_blocks(cells, self._repeats, self._order_seed)
        if not self._rerun:
            finished = study.finished()
            jobs = [job for job in jobs if job.key not in finished]
        study.begin(
            jobs,
            num_skipped=len(cells) * self._repeats - len(jobs),
            tracking=self._tracking(),
            plugins=list(self.config.plugins),
        )
        OmegaConf.save(self.config, study.folder / "multirun.yaml")
        results = self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what a job raised
        study.end()
        return results

    def _resolved(self, cell: list[str]) -> dict[str, Any]:
        """The configuration of one cell as its run will get it."""
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        config = loader.load_sweep_config(self.config, list(cell))
        OmegaConf.set_struct(config, False)
        config.pop("hydra")
        node = OmegaConf.to_container(config, resolve=True)
        assert isinstance(node, dict)
        return {str(key): value for key, value in node.items()}

    def _tracking(self) -> dict[str, Any]:
        assert self.config is not None
        node = OmegaConf.to_container(self.config.tracking, resolve=True)
        assert isinstance(node, dict)
        return {str(key): value for key, value in node.items()}
