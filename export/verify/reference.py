"""The original: transformers' outputs for a sample, stage by stage, in float32.

Knows transformers' PaliGemma and its processor. Knows nothing of a bundle. Attention is
"eager", the one implementation that all releases compute the same way, and `token_type_ids` are
always given: the prompt attends to all of itself, an answer to what is before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers import DynamicCache, PaliGemmaProcessor
from transformers.utils import logging as transformers_logging

from paligemma_edge.export.checkpoint.text_config import SlidingWindow
from paligemma_edge.export.verify.reference_model import load_original
from paligemma_edge.export.verify.samples import Sample
from paligemma_edge.runtime.errors import CheckpointError, ImageError, PaliGemmaError
from paligemma_edge.runtime.images.load import ImageInput, image_label
from paligemma_edge.runtime.progress import Progress, no_progress
from paligemma_edge.runtime.text.prompt_prefix import IMAGE_MARKER, split_prefix

Float = NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceTrace:
    """Every stage of one greedy answer.

    `tokens[i]` is chosen from row i of `logits`. The last token is one that ends an answer unless
    `cut`; `text` leaves it out.
    """

    pixel_values: Float  # [images, 3, R, R]
    ids: tuple[int, ...]  # the text part: bos, prompt, newline
    last_hidden_state: Float  # [images, N, vision hidden]
    image_features: Float  # [images, N, hidden]
    logits: Float  # [tokens, vocab]
    tokens: tuple[int, ...]
    text: str
    cut: bool  # at the largest number of tokens
    image_id: int  # the original's; no answer holds it
    eos_ids: tuple[int, ...]  # the original's; ascending


def trace_all(
    checkpoint: str | os.PathLike[str],
    samples: Sequence[Sample],
    max_new_tokens: int,
    progress: Progress = no_progress,
    *,
    spill: Path | None = None,
    sliding_window: SlidingWindow = "full",
    adapters: Sequence[Path] = (),
) -> list[ReferenceTrace]:
    """Answer every sample; the model, 12 GB at full size, is released when this returns.

    The arrays, 33 MB of logits for 32 tokens at full size, are kept in the folder `spill` if given.
    `sliding_window` and `adapters` as in Reference.open.
    """
    traces = []
    with _quiet():
        reference = Reference.open(checkpoint, sliding_window, adapters)
        for number, sample in enumerate(samples):
            progress("asking the original", number, len(samples))
            trace = reference.trace(sample, max_new_tokens)
            traces.append(trace if spill is None else _spill(trace, spill / str(number)))
        del reference
    gc.collect()
    return traces


def _spill(trace: ReferenceTrace, folder: Path) -> ReferenceTrace:
    """The same trace with its arrays in files, memory-mapped."""
    folder.mkdir()
    mapped: dict[str, Any] = {}
    for name, value in vars(trace).items():
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.npy", value)
            mapped[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return dataclasses.replace(trace, **mapped)


@dataclass(frozen=True)
class Reference:
    """transformers' model in float32 and its processor with Pillow's resizing."""

    model: Any  # PaliGemmaForConditionalGeneration: its methods carry no types
    processor: Any  # PaliGemmaProcessor

    @classmethod
    def open(
        cls,
        checkpoint: str | os.PathLike[str],
        sliding_window: SlidingWindow = "full",
        adapters: Sequence[Path] = (),
    ) -> Reference:
        """Load a checkpoint directory. Raises CheckpointError if transformers cannot.

        With `sliding_window` "full" the window of a PaliGemma 2 is widened to its longest text, as
        it was trained (big_vision has none); "hf" leaves it as in transformers. `adapters` are
        merged into the model in turn, by peft.
        """
        directory = Path(checkpoint)
        try:
            with _quiet():
                model = load_original(directory, adapters)
                if sliding_window == "full":
                    _widen_window(model)
                return cls(model, _load_processor(directory))
        except PaliGemmaError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"transformers cannot load {directory} ({reason}); give the directory with "
                "weights, tokenizer and preprocessor_config.json that the bundle was exported from"
            ) from None

    def trace(self, sample: Sample, max_new_tokens: int) -> ReferenceTrace:
        """Answer greedily, with a cache, keeping the output of every stage."""
        pixels, ids = self.inputs(sample)
        cache = DynamicCache()
        with self._record_stages() as outputs:
            first = self.prefill(pixels, ids, cache)
        logits, tokens = self._answer(first, cache, max_new_tokens)
        cut = tokens[-1] not in self.eos_ids
        return ReferenceTrace(
            pixel_values=pixels,
            ids=tuple(ids[ids.count(self.image_id) :]),
            last_hidden_state=outputs["vision"],
            image_features=outputs["projector"],
            logits=logits,
            tokens=tokens,
            text=self.processor.decode(tokens if cut else tokens[:-1], skip_special_tokens=True),
            cut=cut,
            image_id=self.image_id,
            eos_ids=tuple(sorted(self.eos_ids)),
        )

    def forward_full(self, sample: Sample, answer: Sequence[int]) -> Float:
        """One pass over images, prompt and answer, with the prefix mask and no cache.

        Returns logits [answer + 1, vocab]: row i predicts the token after the answer's first i.
        """
        pixels, ids = self.inputs(sample)
        kinds = [0] * len(ids) + [1] * len(answer)
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.tensor([[*ids, *answer]]),
                token_type_ids=torch.tensor([kinds]),
                pixel_values=torch.from_numpy(pixels),
                use_cache=False,
                logits_to_keep=len(answer) + 1,
            )
        return _numpy(output.logits[0])

    def inputs(self, sample: Sample) -> tuple[Float, list[int]]:
        """The processor's pixel values [images, 3, R, R] and ids, image tokens included."""
        images = [_load_image(image) for image in sample.images]
        _, text = split_prefix(sample.prompt)
        with _quiet():
            inputs = self.processor(
                text=[IMAGE_MARKER * len(images) + text], images=[images], do_convert_rgb=True
            )
        pixels = np.stack(inputs["pixel_values"]).astype(np.float32, copy=False)
        return pixels, [int(token) for token in inputs["input_ids"][0]]

    @property
    def image_id(self) -> int:
        """The id of an image token; no answer holds it."""
        return int(self.model.config.image_token_id)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end an answer: those of transformers' `generate`.

        Where the checkpoint's files name none, `generate` would never end; then it is `<eos>`.
        """
        named = self.model.generation_config.eos_token_id
        ids = named if isinstance(named, list) else [named]
        given = frozenset(int(token) for token in ids if token is not None)
        return given or frozenset([int(self.processor.tokenizer.eos_token_id)])

    def prefill(self, pixels: Float, ids: Sequence[int], cache: DynamicCache) -> Float:
        """Read a whole prompt into a cache; returns the logits [vocab] of the next token."""
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.tensor([ids]),
                token_type_ids=torch.zeros((1, len(ids)), dtype=torch.int64),
                pixel_values=torch.from_numpy(pixels),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return _numpy(output.logits[0, -1])

    def _answer(
        self, first: Float, cache: DynamicCache, max_new_tokens: int
    ) -> tuple[Float, tuple[int, ...]]:
        logits, tokens = [first], [self._choose(first)]
        while len(tokens) < max_new_tokens and tokens[-1] not in self.eos_ids:
            last = torch.tensor([tokens[-1:]])
            with torch.inference_mode():
                output = self.model(input_ids=last, past_key_values=cache, use_cache=True)
            logits.append(_numpy(output.logits[0, -1]))
            tokens.append(self._choose(logits[-1]))
        return np.stack(logits), tuple(tokens)

    def _choose(self, logits: Float) -> int:
        known = max(self.image_id, len(self.processor.tokenizer))
        answers = logits[:known].copy()
        answers[self.image_id : self.image_id + 1] = -np.inf
        return int(answers.argmax())

    @contextlib.contextmanager
    def _record_stages(self) -> Iterator[dict[str, Float]]:
        """Record the outputs of vision tower and projector while the model runs."""
        outputs: dict[str, Float] = {}

        def vision(_module: object, _inputs: object, output: Any) -> None:  # noqa: ANN401
            outputs["vision"] = _numpy(output.last_hidden_state)

        def projector(_module: object, _inputs: object, output: torch.Tensor) -> None:
            outputs["projector"] = _numpy(output)

        inner = self.model.model
        hooks = [
            inner.vision_tower.register_forward_hook(vision),
            inner.multi_modal_projector.register_forward_hook(projector),
        ]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()


def _load_image(source: ImageInput) -> Image.Image:
    """An image as transformers takes it, without our own reader.

    It turns what it opens itself, and not an image or an array. Its processor then converts to
    RGB, with transparency on white. 16-bit grey is clipped there and scaled by the runtime: the
    only difference that is meant.
    """
    try:
        if isinstance(source, Image.Image):
            return source
        if isinstance(source, np.ndarray):
            return Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return ImageOps.exif_transpose(Image.open(file))
    except Exception as error:  # decoders raise errors of any class
        reason = " ".join(str(error).split())[:300]
        raise ImageError(
            f"{image_label(source)}: cannot be read ({reason}); give a JPEG or PNG image"
        ) from None


def _widen_window(model: Any) -> None:  # noqa: ANN401 - as in Reference
    text = model.config.text_config
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = text.max_position_embeddings


def _load_processor(directory: Path) -> Any:  # noqa: ANN401 - as in Reference
    processor: Any = PaliGemmaProcessor.from_pretrained(
        directory, backend="pil", local_files_only=True
    )
    if None in (processor.tokenizer.bos_token, processor.tokenizer.eos_token):
        raise CheckpointError(
            f"transformers finds no <bos> and <eos> in the tokenizer of {directory}; put the "
            "tokenizer_config.json there that was saved with it"
        )
    return processor


def _numpy(tensor: torch.Tensor) -> Float:
    array: Float = tensor.numpy()
    return array


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide bars, log lines and warnings of the original; settings are restored afterwards."""
    logging: Any = transformers_logging  # its functions carry no types
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
