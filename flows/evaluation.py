"""Held-out evaluation of what a run has trained so far."""

from collections.abc import Sequence
from dataclasses import replace

from prefect import flow

from flows.preparation import prepare_evaluation
from sppo.generate import held_out_draw
from sppo.runs import finished_iterations, read_iteration, read_recipe, write_evaluation
from sppo.store import Artifact
from tasks.duel import duel_policies
from tasks.evaluate import evaluate_policy
from tasks.judge import fitted_judge
from tasks.policy import base_policy
from tasks.sample import sample_answers
from tasks.split import split_prompts
