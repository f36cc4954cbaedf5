"""The wheel works away from the checkout: configuration tree and nano model are inside."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_wheel_runs_outside_the_checkout(tmp_path: Path, home: Path) -> None:
    def call(*command: object, **environment: str) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "-w", tmp_path / "dist", ROOT,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("capibench-*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    call(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
        "--disable-pip-version-check", wheel,
    )  # fmt: skip
    # The dependencies are those of the tests' own environment; its editable install of this
    # checkout is not visible through a plain path.
    purelib = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(purelib) / "zz_dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    where = call(python, "-c", "import capibench; print(capibench.__file__)")
    assert str(tmp_path) in where
    program = tmp_path / "venv" / "bin" / "capibench"
    out = call(
        program, "run", "corpus.max_passages=300", "load.num_requests=5", "load.rate_per_s=20",
        "load.warmup_requests=1", "embedder=hashing", "embedder.dimension=96", "tracking=none",
        CAPIBENCH_HOME=str(home),
    )  # fmt: skip
    assert '"status": "finished"' in out.splitlines()[-1]
