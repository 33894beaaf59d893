"""PairRM's network: one encoder reads the prompt and both answers, one head compares each answer with the prompt.

    left = head([h_source ; h_candidate1]),  right = head([h_source ; h_candidate2]),  L_ij = mean over tasks of (left - right)

arXiv:2306.02561 and llm-blender's CrossCompareReranker, over a DeBERTa-v3 encoder. One joint encoding, so L_ij is not -L_ji.
Torch is imported when a network is made, never with this module. B rows, T tokens, H hidden width.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.errors import JudgeError
from sppo.judges.encoder import build_encoder, encode, encoder_shape
from sppo.judges.folder import CONFIG, TOKENIZER, WEIGHTS, JudgeFolder, read_folder
from sppo.judges.segments import JudgeTokenizer, PairBatch, SegmentLimits, save_tokenizer
from sppo.recipe import Precision

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PairRMConfig:
    """Shape of a network."""

    encoder: Mapping[str, Any]
    """Fields of transformers' DebertaV2Config, `vocab_size` with the control tokens."""
    tasks: int = 1
    """Outputs of the head, averaged."""
    dropout: float = 0.05
    """Of the head."""


class PairRM:
    """The network. `module` is the torch.nn.Module, whose state dict has exactly the tensors of PairRM's weight file."""

    def __init__(self, config: PairRMConfig) -> None:
        import torch

        self.config = config
        self.shape = encoder_shape(config.encoder)
        width = self.shape.hidden_size
        head = torch.nn.Sequential(
            torch.nn.Dropout(config.dropout),
            torch.nn.Linear(2 * width, width),
            torch.nn.Tanh(),
            torch.nn.Dropout(config.dropout),
            torch.nn.Linear(width, config.tasks),
        )
        self.encoder = build_encoder(self.shape)
        self.module = torch.nn.ModuleDict({"pretrained_model": self.encoder, "head_layer": head})

    def __call__(
        self,
        input_ids: "torch.Tensor",
        attention_mask: "torch.Tensor",
        source_pos: "torch.Tensor",
        cand1_pos: "torch.Tensor",
        cand2_pos: "torch.Tensor",
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Scores of both answers, each (B, tasks), dimensionless logits. The last three are the control tokens' positions."""
        import torch

        states = encode(self.encoder, self.shape, input_ids, attention_mask)  # (B, T, H)
        rows = torch.arange(len(input_ids), device=input_ids.device)  # (B,)
        source, first, second = (states[rows, place] for place in (source_pos, cand1_pos, cand2_pos))  # (B, H) each
        left = self.module["head_layer"](torch.cat([source, first], dim=-1))  # (B, tasks)
        right = self.module["head_layer"](torch.cat([source, second], dim=-1))  # (B, tasks)
        return left, right

    def logits(self, batch: PairBatch) -> "torch.Tensor":
        """L of each row, (B,) in fp32, without gradient: positive where the first answer looks better."""
        import torch

        with torch.inference_mode():
            left, right = self(*to_tensors(batch, self.device))
            margins: torch.Tensor = (left.float() - right.float()).mean(dim=-1)  # (B,)
        return margins

    @property
    def device(self) -> "torch.device":
        """Where the weights lie."""
        return next(self.module.parameters()).device


def to_tensors(batch: PairBatch, device: "torch.device | str" = "cpu") -> tuple["torch.Tensor", ...]:
    """A batch in the order in which the network takes it."""
    import torch

    arrays = (batch.ids, batch.mask, batch.source, batch.candidate1, batch.candidate2)
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def network_of(folder: JudgeFolder) -> PairRM:
    """A network of a folder's shape on the meta device: names and shapes, no numbers."""
    import torch

    with torch.device("meta"):
        return PairRM(PairRMConfig(folder.encoder, folder.tasks, folder.dropout))


def check_tensors(folder: JudgeFolder, network: PairRM) -> None:
    """Raises JudgeError naming the first tensor that is missing, unknown, or of another shape than the configuration says."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.module.state_dict().items()}
    where = folder.path / WEIGHTS
    for name in sorted(wanted.keys() - folder.shapes.keys()):
        raise JudgeError(f"{where} has no tensor {name!r}; expected one of shape {wanted[name]}: fetch the judge anew")
    for name in sorted(folder.shapes.keys() - wanted.keys()):
        raise JudgeError(f"{where} has the tensor {name!r}, which PairRM has not; expected no others: choose a PairRM judge")
    for name, shape in sorted(wanted.items()):
        if folder.shapes[name] != shape:
            raise JudgeError(
                f"{where}: tensor {name!r} has shape {folder.shapes[name]}; {CONFIG} asks for {shape}: "
                "take both files from one repository and revision"
            )


def load_pairrm(path: Path, device: str = "cpu", precision: Precision = "auto") -> tuple[PairRM, JudgeTokenizer]:
    """A judge folder's network, ready to judge, and its tokenizer. `auto`: fp32 on CPU; fp16 on CUDA, as llm-blender runs it.

    Raises JudgeError for anything missing, extra or misshapen."""
    import torch
    from safetensors.torch import load_file

    folder = read_folder(path)
    network = network_of(folder)
    check_tensors(folder, network)
    if precision == "auto":
        precision = "float16" if device == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, precision)
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder.path / WEIGHTS).items() if name in folder.shapes}
    network.module.load_state_dict(state, strict=True, assign=True)
    network.module.to(device).eval().requires_grad_(False)
    return network, JudgeTokenizer(folder.path / TOKENIZER)


def save_native(network: PairRM, tokenizer: Path, limits: SegmentLimits, folder: Path) -> None:
    """A judge folder that this package, llm-blender and transformers each take for their own.

    One config.json holds llm-blender's RankerConfig and the encoder's DebertaV2Config: `model_name` is null, so that
    llm-blender takes the folder itself for the encoder. tokenizer: a tokenizer.json with [CLS], [SEP] and [PAD]; the
    candidates' tokens are added to it where they are missing, in the order in which `JudgeTokenizer` counts them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder / TOKENIZER)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.module.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    control = JudgeTokenizer(folder / TOKENIZER).control
    config = {
        **network.config.encoder,
        "architectures": ["DebertaV2PairRM"],
        "model_type": "deberta-v2",
        "ranker_type": "pairranker",
        "model_name": None,
        "source_maxlength": limits.source,
        "candidate_maxlength": limits.candidate,
        "n_tasks": network.config.tasks,
        "drop_out": network.config.dropout,
        "fp16": True,
        "sep_token_id": control.sep,
        "source_prefix_id": control.source,
        "cand1_prefix_id": control.candidate1,
        "cand2_prefix_id": control.candidate2,
        "cand_prefix_id": control.candidate,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": limits.source + 2 * limits.candidate, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
