"""What exporter, quantizer and runtime agree on: the names of graphs and of their tensors.

Knows names, shapes and dtypes. Knows nothing of files, of ONNX or of a device.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

# Graphs of a variant, in the order in which data flows through them.
VISION_ENCODER = "vision_encoder"
PROJECTOR = "projector"
PREFILL = "prefill"  # optional: a prompt into the cache; without logits the decoder rereads its end
DECODER = "decoder"
PICK = "pick"  # on a GPU: some of a row's logits
SHORTLIST = "shortlist"  # on a GPU: the largest of a row's logits
MASK_DECODER = "mask_decoder"

# Tensors. The names are those of Hugging Face's ONNX repositories.
PIXEL_VALUES = "pixel_values"  # float [batch, 3, R, R]
LAST_HIDDEN_STATE = "last_hidden_state"  # float [batch, N, vision hidden]
IMAGE_FEATURES = "image_features"  # float [batch, image, hidden]; length 0 in a step
INPUT_IDS = "input_ids"  # int64 [batch, text]
SEQLENS_K = "seqlens_k"  # int32 [batch]: keys after this run, minus one
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"  # int32 []: largest number of keys in the batch
LOGITS = "logits"  # float [batch, 1, vocab], of the last position
# A decoder that picks the next token on its device has two more outputs. Ids from <image> on are
# never an answer.
NEXT_TOKEN = "next_token"  # noqa: S105 - int64 [batch, 1]: the argmax, of equal ones the first
NEXT_LOG_PROB = "next_log_prob"  # float [batch, 1]: its log-probability
TOKENS = "tokens"  # int64 [tokens]: whose logits are picked
PICKED = "picked"  # float [tokens]
TOP_TOKENS = "top_tokens"  # int64 [SHORTLISTED], most likely first
TOP_LOGITS = "top_logits"  # float [SHORTLISTED]
SEGMENTATION_CODES = "segmentation_codes"  # int64 [batch, 16], each 0..127
MASK = "mask"  # float [batch, 64, 64], about -1..1; inside where > 0

WeightDtype: TypeAlias = Literal["float32", "bfloat16", "float16", "int8", "int4"]
ComputeDtype: TypeAlias = Literal["float32", "float16", "bfloat16"]

LORA = ".lora_"  # in the names of inputs that take an adapter's weights
SHORTLISTED = 256  # tokens of a shortlist, or all answer tokens where those are fewer
LOC_COUNT = 1024
CORNERS_PER_BOX = 4
SEG_COUNT = 128
CODES_PER_MASK = 16


def itemsize(dtype: ComputeDtype) -> int:
    """Bytes of one value."""
    return 4 if dtype == "float32" else 2


def past_names(layer: int) -> tuple[str, str]:
    """Names of a layer's key and value inputs, float [batch, kv_heads, capacity, head_dim]."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Names of a layer's key and value outputs, the same memory as the inputs."""
    return f"present.{layer}.key", f"present.{layer}.value"


def adapter_inputs(layer: str) -> tuple[str, str, str]:
    """Names of the inputs that add an adapter to a layer: `(x @ A + shift) @ B`.

    A is [in, rank], B [rank, out] with the adapter's scale, shift [rank]; all are in the dtype
    that the variant computes in. The rank may vary, and is 0 where the layer stays as it is. A
    layer without a shift has no such input.
    """
    return f"{layer}{LORA}A", f"{layer}{LORA}B", f"{layer}{LORA}shift"
