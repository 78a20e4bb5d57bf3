"""A program over all public names, as a user writes it. Nothing runs it: mypy --strict reads it."""

from __future__ import annotations

from collections.abc import Iterator

from paligemma_edge import (
    BatchCalls,
    BundleError,
    CheckpointError,
    ChoiceResult,
    Choices,
    Detection,
    DeviceError,
    DeviceName,
    EncodedImage,
    Generation,
    Grammar,
    ImageError,
    ImageInput,
    Images,
    Labels,
    MissingExtraError,
    NonFiniteLogitsError,
    ObjectResult,
    OptionError,
    OutputError,
    PaliGemma,
    PaliGemmaError,
    PromptError,
    Regex,
    RunOptions,
    Sampling,
    TextResult,
    TokenizerError,
    TopSampling,
    __version__,
    run_images,
)

VERSION: str = __version__


def boxes(bundle: str, image: ImageInput) -> list[tuple[str, tuple[int, int, int, int]]]:
    with PaliGemma(bundle, "cpu", threads=2, memory_limit="6GB") as model:
        found: ObjectResult = model.detect(image, ["cat", "dog"])
        first: Detection = found[0]
        print(first.label, len(found), model.variant, model.variant_reason, model.device)
        return [(one.label, one.xyxy) for one in found]


def annotated(
    bundle: str, device: DeviceName, labels: Labels, grammar: Grammar, sampling: Sampling
) -> int:
    images: Images = ["left.jpg", "right.jpg"]
    with PaliGemma(bundle, device) as model:
        made = model.generate_batch([(images, "ocr")], grammar=grammar, sampling=sampling)
        return len(made) + len(model.detect("left.jpg", "cat", labels=labels))


def words(model: PaliGemma, image: ImageInput, second: bytes) -> str:
    encoded: EncodedImage = model.encode(image, second, adapter="cats")
    with encoded:
        caption: TextResult = encoded.caption()
        choice: ChoiceResult = encoded.classify("is it day?", ("yes", "no"))
    generation: Generation = model.generate(
        image, "ocr", sampling=TopSampling(temperature=0.5), grammar=Choices(("a", "b"))
    )
    either: TextResult | ObjectResult = model.run(image, "detect cat")
    pieces: list[str] = list(model.stream(image, "ocr", grammar=Regex("[0-9]+")))
    several: list[Generation] = model.generate_batch([(image, "ocr")], max_batch_size=2)
    return caption.text + choice.text + generation.text + either.text + repr([pieces, several])


def many(model: PaliGemma, frames: Iterator[ImageInput]) -> list[str]:
    results: list[ObjectResult] = list(model.batch(["a.jpg", "b.jpg"]).detect("cat", labels="any"))
    batch: BatchCalls[ImageError] = model.batch(frames, on_error="return", max_batch_size=8)
    texts = [str(one) for one in batch.caption("de") if not isinstance(one, ImageError)]
    for choice in model.batch(frames).classify("answer en day or night?", ["day", "night"]):
        texts.append(choice.text + repr(choice.probabilities))
    for found in model.batch(frames).run("segment cat", classes=["cat", "dog"]):
        texts.append(found.text + repr(results))
    return texts


def folder() -> int:
    return run_images(RunOptions(bundle="mix.bundle", prompt="detect cat", paths=["photos"]))


def advice(error: PaliGemmaError) -> str:
    match error:
        case BundleError() | CheckpointError() | TokenizerError():
            return "export it again"
        case ImageError() | PromptError() | OptionError():
            return "ask otherwise"
        case NonFiniteLogitsError() | DeviceError():
            return "take another variant"
        case OutputError() | MissingExtraError():
            return "look at the machine"
        case _:
            return str(error)


def mistakes(model: PaliGemma) -> None:
    words: TextResult = model.detect("cat.jpg", "cat")  # type: ignore[assignment]
    model.caption(["a.jpg", "b.jpg"])  # type: ignore[arg-type]
    model.detect("cat.jpg", "cat", memory_limit="6GB")  # type: ignore[call-arg]
    print(words.boxes)  # type: ignore[attr-defined]
    for result in model.batch(["a.jpg"], on_error="return").caption():
        print(result.text)  # type: ignore[union-attr]
    model.detect("cat.jpg", "cat", labels="mine")  # type: ignore[arg-type]
