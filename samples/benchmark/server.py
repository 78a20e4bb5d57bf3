"""What the server costs beside the model itself, side by side in one run.

    python -m samples.benchmark.server mix.bundle --variant cpu-int4

One client: seconds to the first token and of a step, by `PaliGemma` in this process and by the
server in another, in turns, each time about a new image. Then many clients at once against
`generate_batch` with as many slots. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from paligemma_edge import PaliGemma

PROMPT = "caption en"
SIDE = 448


@dataclass(frozen=True)
class Answer:
    """When the pieces of one answer came, in seconds since it was asked."""

    times: tuple[float, ...]

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0]

    @property
    def step(self) -> float:
        """Seconds of a later token."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)


Ask: TypeAlias = Callable[[bytes], Answer]


def main() -> int:
    """Measure, and print the result."""
    options = _options()
    with _server(options, slots=1) as address:
        alone = _one_client(options, address)
    with _server(options, slots=options.clients) as address:
        many = _many_clients(options, address)
    print(_table(alone, many))
    print(json.dumps({"bundle": str(options.bundle), "variant": options.variant, **alone, **many}))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m samples.benchmark.server")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    return parser.parse_args()


def _one_client(options: argparse.Namespace, address: str) -> dict[str, float]:
    """Medians of the model alone and of the server, and the ratios between the two."""
    model = PaliGemma(options.bundle, variant=options.variant, max_batch_size=1)
    asked = {"alone": _asker(model, options.tokens), "server": _http_asker(address, options.tokens)}
    answers: dict[str, list[Answer]] = {name: [] for name in asked}
    for number in range(1 + options.rounds):
        image = _image(number)
        for name, ask in asked.items():
            answer = ask(image)
            if number:  # the first round warms both up
                answers[name].append(answer)
    figures: dict[str, float] = {}
    for part in ("first", "step"):
        medians = {
            name: statistics.median(getattr(one, part) for one in some)
            for name, some in answers.items()
        }
        ratios = [
            getattr(server, part) / getattr(alone, part)
            for alone, server in zip(answers["alone"], answers["server"], strict=True)
        ]
        figures |= {f"{name} {part}": seconds for name, seconds in medians.items()}
        figures[f"{part} ratio"] = statistics.median(ratios)
    return figures


def _asker(model: PaliGemma, tokens: int) -> Ask:
    def ask(image: bytes) -> Answer:
        start = time.perf_counter()
        stream = model.stream(image, PROMPT, max_new_tokens=tokens)
        return Answer(tuple(time.perf_counter() - start for _ in stream))

    return ask


def _http_asker(address: str, tokens: int) -> Ask:
    def ask(image: bytes) -> Answer:
        start, times = time.perf_counter(), []
        for event, _ in _events(address, image, tokens):
            if event == "token":
                times.append(time.perf_counter() - start)
        return Answer(tuple(times))

    return ask


def _events(address: str, image: bytes, tokens: int) -> Iterator[tuple[str, str]]:
    """Names and data of the events of a streamed answer."""
    body = {
        "image": base64.b64encode(image).decode(),
        "prompt": PROMPT,
        "max_new_tokens": tokens,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{address}/v1/generate",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        event = ""
        for line in response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                yield event, value


def _many_clients(options: argparse.Namespace, address: str) -> dict[str, float]:
    """Tokens a second of as many clients as slots, and of `generate_batch`."""
    images = [_image(1000 + number) for number in range(3 * options.clients)]
    with ThreadPoolExecutor(options.clients) as pool:
        ask = _http_asker(address, options.tokens)
        list(pool.map(ask, images[: options.clients]))  # warm up
        start = time.perf_counter()
        answers = list(pool.map(ask, images))
        served = sum(len(one.times) for one in answers) / (time.perf_counter() - start)
    model = PaliGemma(options.bundle, variant=options.variant, max_batch_size=options.clients)
    pairs = [(image, PROMPT) for image in images]
    model.generate_batch(pairs[:1], max_new_tokens=options.tokens)
    start = time.perf_counter()
    generations = model.generate_batch(pairs, max_new_tokens=options.tokens)
    count = sum(len(one.token_ids) for one in generations)
    batch = count / (time.perf_counter() - start)
    return {"batch tokens/s": batch, "server tokens/s": served, "throughput ratio": served / batch}


@contextmanager
def _server(options: argparse.Namespace, slots: int) -> Iterator[str]:
    """A server in a process of its own → its address."""
    command = [sys.executable, "-m", "paligemma_edge", "serve", str(options.bundle)]
    command += ["--variant", options.variant, "--max-batch-size", str(slots), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if match := re.search(r"https?://[0-9.:]+", line):
                break
        else:
            raise SystemExit("the server did not start")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_drop, process.stderr)
            yield match[0]
            process.terminate()
            process.wait()
    finally:
        process.kill()


def _drop(lines: Iterable[str]) -> None:
    for _ in lines:
        pass


def _image(seed: int) -> bytes:
    """A JPEG that no other seed gives."""
    noise = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((SIDE, SIDE)).save(file, "JPEG")
    return file.getvalue()


def _table(alone: dict[str, float], many: dict[str, float]) -> str:
    rows: Sequence[tuple[str, float]] = (*alone.items(), *many.items())
    return "\n".join(f"{name:18} {value:10.4f}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
