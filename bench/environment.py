"""The environments that peers run in: virtual environments under ``.bench/``, made once, never mixed with ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".bench"
"""Environments and job files lie here; git ignores it."""
CONSTRAINTS = ROOT / "constraints.txt"
PEERS = {
    "hf": (("lm_eval[hf]",), ("lm_eval", "transformers")),
    "trl": (("trl==1.16.0",), ("transformers", "accelerate")),
    "trl-ppo": (("trl==1.12.0",), ("transformers", "accelerate")),
}
"""What each environment holds beside torch, and which packages of constraints.txt must have the same version there.

``hf``: lm-eval and transformers. ``trl``: the newest TRL. ``trl-ppo``: the last one with a PPO trainer.
"""


def pinned(package: str, constraints: Path = CONSTRAINTS) -> str:
    """The line of constraints.txt that pins a package, as ``torch==2.13.0``. Raises ValueError if there is none."""
    for line in constraints.read_text(encoding="utf-8").splitlines():
        if line.lower().replace("-", "_").startswith(f"{package.lower().replace('-', '_')}=="):
            return line.strip()
    raise ValueError(f"{constraints.name} does not pin {package}; a peer must have a fixed version.")


def peer_python(name: str) -> Path:
    """The Python of a peer's environment, which is made first if need be (minutes, 2 GB; needs a package index).

    torch is installed first, from the index ``$TORCH_INDEX`` if that is set: the package index's own may bring CUDA.
    """
    folder = WORK / f"peer-{name}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages, pins = PEERS[name]
    wanted = "\n".join([pinned("torch"), *packages, *map(pinned, pins)])
    ready = folder / "ready.txt"
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    print(f"Making the environment of the peers ({name}) under {WORK.name}/ ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    index = ["-i", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    subprocess.run([*pip, *index, pinned("torch")], check=True)
    subprocess.run([*pip, "-c", str(CONSTRAINTS), *packages], check=True)
    ready.write_text(wanted, encoding="utf-8")
    return python
