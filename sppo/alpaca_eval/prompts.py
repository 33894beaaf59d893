"""Stages `alpaca-reference` and `alpaca-prompts`: the reference model's answers, and the instructions as the policy reads them.

Rows are `Response`s and `Prompt`s like any others, so that the policy's answers are drawn like held-out ones and compared with
the reference's like another policy's. A prompt's id is the sha256 of its instruction: nothing goes by row.
"""

import hashlib
import json
from typing import TYPE_CHECKING

from sppo.alpaca_eval.annotations import shown
from sppo.alpaca_eval.sets import (
    EvaluationSet,
    GamedBaselines,
    parse_evaluation_set,
    parse_gamed_baselines,
    read_pinned,
    shown_url,
)
from sppo.errors import EvaluationError, PromptError
from sppo.generate import Draw, check_room
from sppo.policy import Renderer, load_tokenizer, tokenizer_folder
from sppo.progress import Report, silent
from sppo.recipe import Recipe
from sppo.recipe.alpaca_eval import INSTRUCTION, required
from sppo.records import Prompt, Response, to_table
from sppo.stages import stage_identity
from sppo.store import Artifact, ArtifactFile, Outcome, Step, Store, Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SET_FILE = "evaluation_set.json"
REFERENCE_FILE = "reference.parquet"
GAMED_FILE = "gamed_baselines.csv"
PROMPTS_FILE = "prompts.parquet"


def instruction_id(instruction: str) -> str:
    """sha256 of an instruction's text: its prompt id."""
    return hashlib.sha256(instruction.encode()).hexdigest()


def reference_step(recipe: Recipe) -> Step:
    """The evaluation set with its reference model's answers, (N,) responses, and the gamed baselines, fetched into the store
    once, before anything is drawn or judged.

    Raises EvaluationError, when it runs, for a file that cannot be read or has another digest than the recipe says."""
    asked = required(recipe.evaluation.alpaca_eval)

    def run(workspace: Workspace) -> Outcome:
        content = read_pinned(asked.evaluation_set.source, asked.evaluation_set.sha256)
        questions = parse_evaluation_set(content, shown_url(asked.evaluation_set.source))
        _add_bytes(workspace, content, SET_FILE)
        if asked.gamed_baselines is not None:
            gamed = read_pinned(asked.gamed_baselines.source, asked.gamed_baselines.sha256)
            parse_gamed_baselines(gamed, shown_url(asked.gamed_baselines.source))
            _add_bytes(workspace, gamed, GAMED_FILE)
        rows = (
            # no ids and no log-probs: these were not drawn here
            Response(instruction_id(question.instruction), 0, [], question.reference, "stop", [], 0)
            for question in questions.questions
        )
        workspace.add_table(to_table(Response, rows), REFERENCE_FILE)
        count = len(questions.questions)
        return Outcome(f"{count} instructions, answers of {questions.generator}", {"instructions": count})

    return Step(stage_identity("alpaca-reference", recipe, {}), run)


def stored_set(reference: Artifact) -> EvaluationSet:
    """The evaluation set that an artifact `alpaca-reference` keeps."""
    return parse_evaluation_set(reference.path(SET_FILE).read_bytes(), f"{reference.name}/{SET_FILE}")


def stored_baselines(reference: Artifact) -> GamedBaselines | None:
    """The gamed baselines that an artifact `alpaca-reference` keeps, if any."""
    if GAMED_FILE not in reference.file_names():
        return None
    return parse_gamed_baselines(reference.path(GAMED_FILE).read_bytes(), f"{reference.name}/{GAMED_FILE}")


def build(store: Store, recipe: Recipe, policy: Artifact, reference: Artifact, report: Report = silent) -> Artifact:
    """The instructions, rendered for a policy.

    Raises PromptError for a template that the tokenizer cannot follow, PolicyError if the longest instruction and an answer of
    `max_tokens` do not fit into the policy's context, EvaluationError if the gamed baselines do not know all instructions: now,
    and not when an iteration has been trained, or a judge paid."""
    prompts = store.build(step(recipe, policy, reference), report)
    draw = alpaca_draw(recipe, prompts)
    lengths = [len(token_ids) for token_ids in draw.prompts.table()["token_ids"].to_pylist()]
    check_room(policy, draw, lengths, required(recipe.evaluation.alpaca_eval).decoding.max_tokens)
    gamed = stored_baselines(reference)
    if gamed is not None:
        gamed.difficulty(range(len(lengths)))
    return prompts


def step(recipe: Recipe, policy: Artifact, reference: Artifact) -> Step:
    """The first `max_prompts` instructions in the set's order, by the tokenizer's chat template or the recipe's template."""
    asked = required(recipe.evaluation.alpaca_eval)

    def run(workspace: Workspace) -> Outcome:
        questions = stored_set(reference).questions[: asked.max_prompts]
        tokenizer = load_tokenizer(tokenizer_folder(policy, workspace.folder / "tokenizer"))
        if asked.decoding.template is not None:
            follow(tokenizer, asked.decoding.template)
        renderer = Renderer(tokenizer, recipe.policy)
        rows = [_prompt(renderer, question.instruction) for question in questions]
        workspace.add_table(to_table(Prompt, rows), PROMPTS_FILE)
        counts = {"prompts": len(rows), "tokens": sum(len(row.token_ids) for row in rows)}
        return Outcome(f"{counts['prompts']} instructions, {counts['tokens']} tokens", counts)

    # of the reference the set alone: other baselines are no other questions
    inputs: dict[str, Artifact | ArtifactFile | str] = {"policy": policy, "questions": reference.file(SET_FILE)}
    return Step(stage_identity("alpaca-prompts", recipe, inputs), run)


def alpaca_draw(recipe: Recipe, prompts: Artifact) -> Draw:
    """One answer to each instruction, with the same seeds for every policy."""
    return Draw("alpaca-answer", prompts.file(PROMPTS_FILE), None)


def follow(tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
    """Make a tokenizer render one user turn by a template with {instruction}.

    Raises PromptError if none of the tokenizer's control tokens is in it: it was made for another policy, and would be text."""
    before, after = template.split(INSTRUCTION)
    controls = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not any(control in template for control in controls):
        raise PromptError(
            f"evaluation.alpaca_eval.decoding.template {shown(template)} has no control token of this policy's tokenizer "
            f"({', '.join(sorted(controls)[:8]) or 'it has none'}); expected a template that was made for the policy: "
            "leave it out for the tokenizer's own chat template"
        )
    # as Jinja's literals, so that braces and a newline at the end stay what they are
    literals = (json.dumps(text, ensure_ascii=False) for text in (before, after))
    tokenizer.chat_template = "{{ %s }}{{ messages[0]['content'] }}{{ %s }}" % tuple(literals)  # noqa: UP031


def _add_bytes(workspace: Workspace, content: bytes, name: str) -> None:
    (workspace.folder / name).write_bytes(content)
    workspace.add_file(workspace.folder / name)


def _prompt(renderer: Renderer, instruction: str) -> Prompt:
    if not instruction.strip():
        raise EvaluationError("the evaluation set has an empty instruction; expected text: mend the set")
    messages = [{"role": "user", "content": instruction}]
    return Prompt(instruction_id(instruction), messages, renderer.token_ids(messages))
