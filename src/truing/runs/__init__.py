"""Run: one folder per experiment; the same command again resumes it or returns it finished.

A run folder holds ``config.yaml``, ``environment.json``, ``metrics.jsonl``, ``summary.json``, ``samples.jsonl``,
``figures/``, ``checkpoint-<step>/`` and ``model/``. Every file is written whole or not at all.
"""

from truing.runs.atomic import atomic_folder, atomic_write
from truing.runs.facts import OUTPUT_ONLY, config_dict
from truing.runs.run import ROOT, Run, remove_bare, sweep

__all__ = ["OUTPUT_ONLY", "ROOT", "Run", "atomic_folder", "atomic_write", "config_dict", "remove_bare", "sweep"]
