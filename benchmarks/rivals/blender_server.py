"""llm-blender as its authors published it, in an environment of its own, asked over pipes.

    build/rivals/llm-blender/bin/python benchmarks/rivals/blender_server.py FOLDER [device]

A line in is a request, {"prompts": [..], "answers": [[..], ..], "batch_size": 1}; a line out is what it came to, both JSON:
`scores` of `rank`, and the seconds and CPU-seconds that `rank` took. With "logits": true instead `logits`, (N, K, K), each
prompt on its own, or `error` where the library failed. Nothing of this project is imported, nothing of the library is changed.
"""

import contextlib
import json
import sys
import time
from typing import Any

import torch

with contextlib.redirect_stdout(sys.stderr):  # it prints
    import llm_blender


def main() -> None:
    torch.set_num_threads(1)
    began = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        blender = llm_blender.Blender()
        blender.loadranker(sys.argv[1], device=sys.argv[2] if len(sys.argv) > 2 else "cpu")
    blender.blender_config.use_tqdm = False
    reply({"load_cpu_seconds": time.process_time() - began})
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = logits_of(blender, request) if request.get("logits") else rank(blender, request)
        reply(answer)


def reply(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def rank(blender: Any, request: dict[str, Any]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    scores = blender.rank(request["prompts"], request["answers"], return_scores=True, batch_size=request["batch_size"])
    return {
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - wall,
        "scores": scores.tolist(),
    }


def logits_of(blender: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What `rank` makes its scores of, at a batch size of 1."""
    found = []
    for prompt, answers in zip(request["prompts"], request["answers"], strict=True):
        batch = blender.ranker_collator([{"source": prompt, "candidates": answers}])
        batch = {name: value.to(blender.ranker_config.device) for name, value in batch.items() if value is not None}
        try:
            with torch.no_grad():
                found.append(blender.ranker._full_predict(**batch)["logits"][0].tolist())
        except (RuntimeError, AssertionError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
    return {"logits": found}


if __name__ == "__main__":
    main()
