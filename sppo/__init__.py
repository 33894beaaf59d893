"""Self-Play Preference Optimization of language models (arXiv:2405.00675): the method and the machine.

Nothing here knows the orchestrator: `flows/` and `tasks/` wrap what runs without them.
"""

__version__ = "0.1.0"
