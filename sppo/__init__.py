"""Self-Play Preference Optimization of language models (arXiv:2405.00675): the method and the machine, without the orchestrator."""

__version__ = "0.1.0"
