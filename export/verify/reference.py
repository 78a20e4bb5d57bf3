"""The original: what transformers makes of a question, stage by stage, in float32.

Knows transformers' PaliGemma and its processor. Knows nothing of a bundle. Attention is
"eager", the one implementation that every release computes alike, and `token_type_ids` are
always given: a prompt sees itself whole, an answer sees what is before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from paligemma_edge.runtime.text.tokenizer import IMAGE_MARKER

Float = NDArray[np.float32]
Told = Callable[[int], None]  # how many questions were answered


@dataclass(frozen=True)
class ReferenceTrace:
    """Every stage of one greedy answer.

    Row i of `logits` chose `tokens[i]`. The last token is the end-of-sequence id unless the
    answer was cut; `text` leaves it out.
    """

    pixel_values: Float  # [images, 3, R, R]
    ids: tuple[int, ...]  # the text part: bos, prompt, newline
    last_hidden_state: Float  # [images, N, vision hidden]
    image_features: Float  # [images, N, hidden]
    logits: Float  # [tokens, vocab]
    tokens: tuple[int, ...]
    text: str


def trace_all(
    checkpoint: str | os.PathLike[str],
    samples: Sequence[Sample],
    max_new_tokens: int,
    progress: Told | None = None,
    spill: Path | None = None,
    *,
    sliding_window: SlidingWindow = "full",
    adapters: Sequence[Path] = (),
) -> list[ReferenceTrace]:
    """Answer every question; the model, 12 GB at full size, is gone when this returns.

    The arrays, 33 MB of logits for 32 tokens at full size, lie in the folder `spill` if given.
    `sliding_window` and `adapters` as in Reference.open.
    """
    reference = Reference.open(checkpoint, sliding_window, adapters)
    traces = []
    for number, sample in enumerate(samples):
        if progress is not None:
            progress(number)
        trace = reference.trace(sample, max_new_tokens)
        traces.append(trace if spill is None else _spill(trace, spill / str(number)))
    del reference
    gc.collect()
    return traces


def _spill(trace: ReferenceTrace, folder: Path) -> ReferenceTrace:
    """The same trace with its arrays in files, which are read as they are used."""
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
        """Load a checkpoint directory. CheckpointError says why transformers cannot.

        With `sliding_window` "full" the window of a PaliGemma 2 is opened as wide as its longest
        text, as it was trained (big_vision has none); "hf" leaves it as transformers has it.
        `adapters` are merged into it in turn, by peft.
        """
        directory = Path(checkpoint)
        try:
            with _quiet():
                model = load_original(directory, adapters)
                if sliding_window == "full":
                    _open_window(model)
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
        """Answer greedily, with a cache, keeping what every stage gave."""
        pixels, ids = self.inputs(sample)
        cache = DynamicCache()
        with self._listen() as heard:
            first = self.prefill(pixels, ids, cache)
        logits, tokens = self._answer(first, cache, max_new_tokens)
        return ReferenceTrace(
            pixel_values=pixels,
            ids=tuple(ids[ids.count(self.image_id) :]),
            last_hidden_state=heard["vision"],
            image_features=heard["projector"],
            logits=logits,
            tokens=tokens,
            text=self.processor.decode(tokens, skip_special_tokens=True),
        )

    def forward_full(self, sample: Sample, answer: Sequence[int]) -> Float:
        """One pass over images, prompt and answer, with the prefix mask and no cache.

        Returns [answer + 1, vocab]: row i is what follows the first i tokens of the answer.
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
        text = IMAGE_MARKER * len(images) + sample.prompt
        with _quiet():
            inputs = self.processor(text=[text], images=[images], do_convert_rgb=True)
        pixels = np.stack(inputs["pixel_values"]).astype(np.float32, copy=False)
        return pixels, [int(token) for token in inputs["input_ids"][0]]

    @property
    def image_id(self) -> int:
        """The id that stands for a patch; ids from here on are never an answer."""
        return int(self.model.config.image_token_id)

    @property
    def eos_id(self) -> int:
        """The id that ends an answer."""
        return int(self.processor.tokenizer.eos_token_id)

    def prefill(self, pixels: Float, ids: Sequence[int], cache: DynamicCache) -> Float:
        """Read a whole prompt into a cache → logits [vocab] of what follows."""
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
        while len(tokens) < max_new_tokens and tokens[-1] != self.eos_id:
            last = torch.tensor([tokens[-1:]])
            with torch.inference_mode():
                output = self.model(input_ids=last, past_key_values=cache, use_cache=True)
            logits.append(_numpy(output.logits[0, -1]))
            tokens.append(self._choose(logits[-1]))
        return np.stack(logits), tuple(tokens)

    def _choose(self, logits: Float) -> int:
        return int(logits[: self.image_id].argmax())

    @contextlib.contextmanager
    def _listen(self) -> Iterator[dict[str, Float]]:
        """Keep what the vision tower and the projector give while the model runs as it is."""
        heard: dict[str, Float] = {}

        def vision(_module: object, _inputs: object, output: Any) -> None:  # noqa: ANN401
            heard["vision"] = _numpy(output.last_hidden_state)

        def projector(_module: object, _inputs: object, output: torch.Tensor) -> None:
            heard["projector"] = _numpy(output)

        inner = self.model.model
        hooks = [
            inner.vision_tower.register_forward_hook(vision),
            inner.multi_modal_projector.register_forward_hook(projector),
        ]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()


def _load_image(source: ImageInput) -> Image.Image:
    """An image as transformers' `load_image` opens it, none of ours taking part.

    Its processor then makes RGB of it and lays transparency on white. 16-bit grey it clips, and
    the runtime scales: there alone the two are meant to differ.
    """
    image: Image.Image
    try:
        if isinstance(source, bytes):
            image = Image.open(io.BytesIO(source))
        elif isinstance(source, np.ndarray):
            image = Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
        else:
            image = source if isinstance(source, Image.Image) else Image.open(source)
        return ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise what they like
        reason = " ".join(str(error).split())[:300]
        raise ImageError(
            f"{image_label(source)}: cannot be read ({reason}); give a JPEG or PNG image"
        ) from None


def _open_window(model: Any) -> None:  # noqa: ANN401 - as in Reference
    text = model.config.text_config
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = text.max_position_embeddings


def _load_processor(directory: Path) -> Any:  # noqa: ANN401 - as in Reference
    return PaliGemmaProcessor.from_pretrained(directory, backend="pil", local_files_only=True)


def _numpy(tensor: torch.Tensor) -> Float:
    array: Float = tensor.numpy()
    return array


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and advice of both packages off the terminal, and leave settings as they were."""
    logging: Any = transformers_logging  # its functions carry no types
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="transformers|peft")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
