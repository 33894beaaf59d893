"""A trained policy in the precision that inference runs in, as an artifact of its own.

Training carries fp32 weights from iteration to iteration. An engine that runs in bf16 would round them as it loads them: the
export holds those very values, in half the bytes for every machine that draws from the policy.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sppo.progress import Report, silent
from sppo.recipe import Recipe
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Store, Workspace

if TYPE_CHECKING:
    import torch


def build(store: Store, recipe: Recipe, policy: Artifact, report: Report = silent) -> Artifact:
    """What engines load for this policy: its export, or itself where there is nothing to round: a recipe of dtype float32, and
    pi_0, which is kept as its makers stored it."""
    if recipe.policy.dtype == "float32" or policy.manifest.stage != "train":
        return policy
    return store.build(step(recipe, policy), report)


def step(recipe: Recipe, policy: Artifact) -> Step:
    """A policy's folder with all weights rounded to the recipe's dtype, to nearest and half to even. Everything else in it
    stays byte for byte, but for the dtype in config.json."""
    identity = stage_identity("export", recipe, {"policy": policy})

    def run(workspace: Workspace) -> Outcome:
        from sppo.train import weights

        source = policy.folder()
        names = weights.stored_names(source)
        files = {name: _rounded(policy, name, recipe.policy.dtype) for name in names}
        written = weights.write_folder(files, source, workspace.folder / "policy", writes=True, dtype=recipe.policy.dtype)
        workspace.add_files(written)
        size = sum(path.stat().st_size for path in written)
        return Outcome(f"{recipe.policy.dtype}, {size / 1e6:.1f} MB", {"files": len(written), "bytes": size})

    return Step(identity, run)


def _rounded(policy: Artifact, file: str, dtype: str) -> "Iterator[tuple[str, torch.Tensor]]":
    import torch
    from safetensors import safe_open

    with safe_open(policy.folder() / file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - not a dictionary
            yield name, stored.get_tensor(name).to(getattr(torch, dtype))
