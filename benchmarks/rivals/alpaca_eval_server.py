"""alpaca_eval as its authors published it, in an environment of its own, asked over pipes.

    build/rivals/alpaca-eval/bin/python benchmarks/rivals/alpaca_eval_server.py

A line in is a request, a line out what it came to, both JSON; an `error` where the library failed:

    {"metrics": annotations.json, "gamed": df_gamed.csv, "fit": "length_controlled_v1"}     what its leaderboard has of them
    {"switched": [instruction, ..]}                                             whether the model's answer is shown first
    {"judge": configs.yaml, "references": [{instruction, output, generator}, ..], "outputs": [..]}     its annotations

Nothing of this project is imported. One thing of the library is changed: df_gamed.csv comes from this machine, not the hub.
"""

import contextlib
import json
import sys
from typing import Any

with contextlib.redirect_stdout(sys.stderr):  # it prints
    import pandas as pd
    from alpaca_eval.annotators import PairwiseAnnotator
    from alpaca_eval.metrics import glm_winrate
    from alpaca_eval.processors import RandomSwitchTwoColumnsProcessor


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            try:
                answer = answered(request)
            except Exception as error:  # noqa: BLE001, whatever it is, the test is to see it
                answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def answered(request: dict[str, Any]) -> Any:
    if "switched" in request:
        return switched(request["switched"])
    if "judge" in request:
        annotator = PairwiseAnnotator(annotators_config=request["judge"], caching_path=None)
        return annotator.annotate_head2head(outputs_1=request["references"], outputs_2=request["outputs"])
    glm_winrate.hf_hub_download = lambda **_: request["gamed"]
    annotations = pd.read_json(request["metrics"])  # as its `is_recompute_metrics_only` reads them
    found = glm_winrate.get_length_controlled_winrate(annotations, glm_name=request["fit"], save_weights_dir=None)
    found["avg_length"] = int(annotations["output_2"].str.len().mean())
    return {name: float(value) for name, value in found.items()}


def switched(instructions: list[str]) -> list[bool]:
    """As its pairwise annotators draw it."""
    processor = RandomSwitchTwoColumnsProcessor(
        two_columns_to_switch=["output_1", "output_2"],
        random_seed_columns=["instruction"],
        _switch_column="is_switched_outputs",
        seed=0,
    )
    rows = pd.DataFrame({"instruction": instructions, "output_1": "reference", "output_2": "model"})
    return [bool(each) for each in processor.preprocess(rows)["output_1"] == "model"]


if __name__ == "__main__":
    main()
