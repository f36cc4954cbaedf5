"""An engine without a model for replicas in tests: its processes start quickly, and its prompts
say what goes wrong. Imported by the replicas' processes too."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from capibench.engine.engine import Generation
from capibench.errors import ConfigError, RequestFailed


@dataclass
class Obedient:
    """Answers with its process id and the prompt; `die`, `fail`, `refuse` and `wait` are obeyed.

    It starts only while the file `lives_while` exists ("": always), and ends instead when
    `on_start` is `exit`, or refuses when it is `refuse`.
    """

    lives_while: str
    on_start: str

    modeled: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False
    joins_running: ClassVar[bool] = False
    num_workers: ClassVar[int] = 1

    async def start(self, model):
        self.answered = 0
        if self.on_start == "exit" or (self.lives_while and not Path(self.lives_while).exists()):
            os._exit(7)
        if self.on_start == "refuse":
            raise ConfigError("engine.replica.on_start", "got 'refuse'; expected something else")

    def count_tokens(self, prompt, max_new_tokens=1):
        return len(prompt)

    async def generate(self, batch, worker):
        begin_s = asyncio.get_running_loop().time()
        for request in batch:
            if request.prompt == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif request.prompt == "fail":
                raise RuntimeError("poisoned \udc80")
            elif request.prompt == "refuse":
                raise RequestFailed("not this one")
            elif request.prompt == "wait":
                await asyncio.Event().wait()
        self.answered += len(batch)
        end_s = asyncio.get_running_loop().time()
        return [
            Generation(f"{os.getpid()} {r.prompt}", len(r.prompt), r.max_new_tokens, begin_s, end_s)
            for r in batch
        ]

    async def stop(self): ...

    def describe(self):
        return {
            "name": "obedient",
            "answered": self.answered,
            "omp": os.environ["OMP_NUM_THREADS"],
            "num_cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0,
        }
