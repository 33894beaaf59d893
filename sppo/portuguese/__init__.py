"""The Open Portuguese LLM Leaderboard's nine tasks, as external tasks of lm-evaluation-harness.

specification, tasks    what they are        prompts    what a model reads       tables    where the rows come from
answers                 what it answered     metrics    how good that is         include   the tasks, for `--include_path`
"""

from pathlib import Path

INCLUDE = Path(__file__).parent / "include"
"""For lm-evaluation-harness: a folder of task files."""
TAG = "sppo_pt"
"""All nine."""
