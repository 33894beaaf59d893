"""llm-blender itself as a judge: PairRM through its authors' library, pair by pair, as the released code calls it.

Version 0.0.2 was written for transformers 4. What breaks under 5, and what stands here instead:

| under transformers 5 | seen as | here |
|---|---|---|
| `transformers.utils.hub.TRANSFORMERS_CACHE` is gone | the import fails | lent while the library is imported |
| tokenizers have no `batch_encode_plus` | a question fails | given to the judge's one tokenizer |
| a base is loaded as stored, often in fp16 | nothing: fp32 weights are rounded by 2.5e-3 | built, then filled from the file |
| DeBERTa's tokenizer class normalises by NFC | nothing: other ids for 0.7 % of real texts | tokenizer.json as it is |

So the library's loader is not used, which would also look for the base on the hub, run a folder's code if "phi" is in its path,
pad on the left if "llama" is, and print. Its collator, its network and its `rank` are. B rows, T tokens, K answers.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from sppo.errors import JudgeError
from sppo.judges import Device, Judge, Logits, Match, Question, prompt_text, questions, spread
from sppo.judges.folder import TOKENIZER, WEIGHTS, JudgeFolder, read_folder
from sppo.judges.segments import PREFIXES, JudgeTokenizer, SegmentLimits
from sppo.progress import Progress, Report
from sppo.recipe import PairRMJudge

log = logging.getLogger(__name__)

Scores = npt.NDArray[np.float64]


def rank_scores(logits: Scores) -> Scores:
    """llm-blender's `rank(.., return_scores=True)`: s_i = 1/K sum_j (L_ij - L_ji), higher is better.

    logits: (N, K, K), L_ij of the pair shown as (i, j), 0 on the diagonal; result: (N, K), dimensionless. The estimator
    `bradley_terry` is sigmoid(s_i - s_j)."""
    return np.asarray((logits - logits.transpose(0, 2, 1)).mean(axis=2))


class BlenderJudge(Judge):
    """The library with a folder's judge in it: one prompt, one pair at a time."""

    def __init__(self, blender: Any) -> None:
        self.blender = blender
        """An `llm_blender.Blender`, ready to `rank`."""

    @classmethod
    def load(cls, judge: PairRMJudge, folder: Path, device: Device) -> "BlenderJudge":
        """The judge of a folder. `auto` is the library's own choice: fp32 on CPU, fp16 on CUDA.

        Raises JudgeError if the library is not installed, or for anything missing, extra or misshapen in the folder."""
        import torch

        limits = SegmentLimits(judge.max_source_tokens, judge.max_candidate_tokens)
        if min(limits.source, limits.candidate) < 4:
            raise JudgeError(
                f"judge limits {limits.source} and {limits.candidate} tokens leave no room for text; expected at least 4, "
                "three are control tokens: raise max_source_tokens or max_candidate_tokens"
            )
        precision = judge.precision
        if precision == "auto":
            precision = "float16" if device == "cuda" else "float32"
        blender = load_blender(folder, limits, device)
        blender.ranker.to(getattr(torch, precision))
        return cls(blender)

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        asked = [questions(match) for match in matches]
        total, done = sum(map(len, asked)), 0
        found = []
        for match, pairs in zip(matches, asked, strict=True):
            found.append(spread(match, self._logits(match, pairs)))
            done += len(pairs)
            report(Progress(stage="judge", done=done, total=total, unit="pairs"))
        return found

    def _logits(self, match: Match, asked: Sequence[Question]) -> dict[Question, float]:
        """The forward pass that the library's `_full_predict` makes for each of K x K pairs, for those that are asked."""
        import torch

        if not asked:
            return {}
        answers = list(dict.fromkeys(text for question in asked for text in question))
        place = {text: position for position, text in enumerate(answers)}
        # one prompt at a time: the collator shares what the longest prompt of a batch leaves
        batch = self.blender.ranker_collator([{"source": prompt_text(match.messages), "candidates": answers}])
        device = self.blender.ranker_config.device
        source = [batch[name].to(device) for name in ("source_ids", "source_attention_mask")]  # (1, T) each
        ids, mask = (batch[name].to(device) for name in ("candidate_ids", "candidate_attention_mask"))  # (1, K, T) each
        logits = {}
        with torch.inference_mode():
            for first, second in asked:
                sides = [array[:, place[text]] for text in (first, second) for array in (ids, mask)]
                logits[first, second] = float(self.blender.ranker._forward(*source, *sides)["logits"])
        return logits


def load_blender(folder: Path, limits: SegmentLimits, device: Device) -> Any:
    """An `llm_blender.Blender` with a folder's judge in it, in fp32.

    Raises JudgeError if the library is not installed, or for anything missing, extra or misshapen in the folder."""
    library = import_library()
    from llm_blender.pair_ranker.model_util import build_collator
    from llm_blender.pair_ranker.ranker import CrossCompareReranker

    described = read_folder(folder)
    tokenizer = _tokenizer(folder)
    # the constructor only warns that nothing is loaded yet, by a call that sets up the root logger
    blender = object.__new__(library.Blender)
    blender.blender_config = library.BlenderConfig(device=device, use_tqdm=False)
    blender.ranker_config = library.RankerConfig(
        ranker_type="pairranker",
        model_type="deberta",
        source_maxlength=limits.source,
        candidate_maxlength=limits.candidate,
        n_tasks=described.tasks,
        drop_out=described.dropout,
        device=device,
    )
    blender.ranker_collator = build_collator("pairranker", tokenizer, limits.source, limits.candidate)
    if blender.ranker_collator.mannually_add_sep_token:
        raise JudgeError(
            f"{folder / TOKENIZER} does not frame a text in [CLS] and [SEP], as the backend llm-blender needs; "
            "expected DeBERTa's: fetch the judge anew, or set its backend to native"
        )
    blender.ranker_tokenizer = tokenizer
    blender.ranker = CrossCompareReranker(_base(described), blender.ranker_config, tokenizer)
    _fill(blender.ranker, described)
    blender.ranker.to(device).eval().requires_grad_(False)
    return blender


def import_library() -> ModuleType:
    """The module llm_blender. Raises JudgeError if it, or one of the packages that it needs, is not installed."""
    try:
        with _lent_names():
            import llm_blender
    except ModuleNotFoundError as missing:
        raise JudgeError(
            f"the judge's backend is llm-blender, and Python finds no module {missing.name!r}; expected llm-blender 0.0.2: "
            "pip install 'sppo[blender]', or set the judge's backend to native"
        ) from missing
    return llm_blender  # type: ignore[no-any-return]


@contextmanager
def _lent_names() -> Iterator[None]:
    """Names that the library's modules read when they are imported, and that nobody else shall find."""
    import transformers.utils.hub as hub

    gone = not hasattr(hub, "TRANSFORMERS_CACHE")
    if gone:
        hub.TRANSFORMERS_CACHE = "nowhere"  # only its loader would write there
    # the library imports vllm where it can, which takes seconds, to generate answers with it
    unwanted = "vllm" not in sys.modules
    if unwanted:
        sys.modules["vllm"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if gone:
            del hub.TRANSFORMERS_CACHE
        if unwanted:
            del sys.modules["vllm"]


def _base(described: JudgeFolder) -> Any:
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(**described.encoder)
    config.out_hidden_state_size = config.hidden_size  # as the library's loader notes it for the head
    return DebertaV2Model(config)


def _fill(ranker: Any, described: JudgeFolder) -> None:
    from safetensors.torch import load_file

    weights = described.path / WEIGHTS
    state = {name: tensor.float() for name, tensor in load_file(weights).items() if name in described.shapes}
    try:
        ranker.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise JudgeError(
            f"{weights} does not fit llm-blender's network: {' '.join(str(error).split())[:300]}; "
            "fetch the judge anew, all files from one repository and revision"
        ) from error


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers hands it out, with `batch_encode_plus` for the library's collator."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    read = Tokenizer.from_file(str(folder / TOKENIZER))
    plain = JudgeTokenizer(folder / TOKENIZER)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=read, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")

    def batch_encode_plus(texts: list[str], **options: Any) -> Any:
        encoded = tokenizer(texts, **options)
        _neutralise(texts, encoded, tokenizer, plain)
        return encoded

    tokenizer.batch_encode_plus = batch_encode_plus
    return tokenizer


def _neutralise(texts: Sequence[str], encoded: Any, tokenizer: Any, plain: JudgeTokenizer) -> None:
    """Encodes anew, in place, texts in which a user spelled a control token: on its own the library fails, or takes it for one.

    Such a text is plain text, as for the native backend; all others stay as the library's tokenizer reads them. A row is
    [CLS], the prefix that the library puts before a text, the text, [SEP] and padding."""
    ids, mask = encoded["input_ids"], encoded["attention_mask"]  # (B, T) each
    names = {index for name, index in tokenizer.get_added_vocab().items() if name != "[UNK]"}
    for row, text in enumerate(texts):
        end = int(mask[row].sum()) - 1
        if names.isdisjoint(ids[row, 2:end].tolist()):
            continue
        prefix = next(name for name in PREFIXES if text.startswith(name))
        found = plain.encode(text.removeprefix(prefix))[: ids.shape[1] - 3]
        end = len(found) + 2
        ids[row, 2:end] = ids.new_tensor(found)
        ids[row, end], ids[row, end + 1 :] = plain.control.sep, plain.control.pad
        mask[row, : end + 1], mask[row, end + 1 :] = 1, 0
        log.info("judge: a text spells one of PairRM's control tokens; llm-blender is given it as plain text")
