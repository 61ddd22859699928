"""A batched engine on `transformers`: all running requests take one step together, in one thread.

It knows nothing of Dynamo. A request is submitted as token ids, and its tokens come from an asynchronous iterator. New
requests join between two steps, finished and cancelled ones leave. The keys and values of whole blocks of a prompt are kept
and used again for prompts that begin alike; `Engine.cache.listener` is told of these blocks.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

BLOCK_SIZE = 16
"""Tokens in a block of the cache. The model card says the same number."""


class KvListener(Protocol):
    """Is told, in the engine's thread, which blocks the cache has. Hashes are the engine's own, of 64 bits."""

    def stored(self, token_ids: Sequence[int], block_hashes: Sequence[int], parent_hash: int | None = None) -> None: ...

    def removed(self, block_hashes: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class Step:
    """What a request got in one step: a token, or the reason why no more follow, or both."""

    token: int | None
    finish: str | None = None
    logprob: float | None = None
    cached: int = 0
    """Tokens of the prompt that were in the cache."""


@dataclass(eq=False)
class Running:
    """A request that runs, or waits for the next step."""

    tokens: list[int]
    max_tokens: int
    stop_tokens: frozenset[int]
    temperature: float
    random: torch.Generator
    cached: torch.Tensor | None = None
    """Keys and values of all tokens but the last: layers, 2, heads, tokens, size of a head."""
    reused: int = 0
    """Tokens of the prompt whose keys and values were in the cache."""
    made: int = 0
    cancelled: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    steps: asyncio.Queue[Step | Exception] = field(default_factory=asyncio.Queue)


class BlockCache:
    """Blocks of keys and values by the hash of all tokens up to their end. The oldest make room for new ones."""

    def __init__(self, capacity: int) -> None:
        self.listener: KvListener | None = None
        self._capacity = capacity
        self._blocks: OrderedDict[int, torch.Tensor] = OrderedDict()

    def prefix(self, tokens: list[int]) -> torch.Tensor | None:
        """The keys and values that are known for the beginning of `tokens`; never for all of them."""
        found = []
        for block_hash in _hashes(tokens[:-1]):
            if block_hash not in self._blocks:
                break
            self._blocks.move_to_end(block_hash)
            found.append(self._blocks[block_hash])
        return torch.cat(found, dim=3) if found else None

    def store(self, tokens: list[int], values: torch.Tensor) -> None:
        """Keep the whole blocks of `tokens`, whose keys and values these are."""
        hashes = _hashes(tokens)
        known = next((at for at, each in enumerate(hashes) if each not in self._blocks), len(hashes))
        for number in range(known, len(hashes)):
            first = number * BLOCK_SIZE
            self._blocks[hashes[number]] = values[..., first : first + BLOCK_SIZE, :].clone()
        evicted = [self._blocks.popitem(last=False)[0] for _ in range(len(self._blocks) - self._capacity)]
        if self.listener is not None and hashes[known:]:
            parent = hashes[known - 1] if known else None
            self.listener.stored(tokens[known * BLOCK_SIZE :], hashes[known:], parent)
            if evicted:
                self.listener.removed(evicted)


def _hashes(tokens: list[int]) -> list[int]:
    """Of each whole block, with all that stands before it. Python hashes numbers alike in every process."""
    hashes: list[int] = []
    for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE):
        parent = hashes[-1] if hashes else 0
        hashes.append(hash((parent, *tokens[end - BLOCK_SIZE : end])) & (1 << 64) - 1)
    return hashes


class Engine:
    """Owns the model, the cache and the thread that computes. `close` ends the thread.

    `submit` is called on an event loop, by any number of requests at once.
    """

    def __init__(self, folder: str, max_batch: int = 16, cache_blocks: int = 256) -> None:
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        self.context_length: int = self._model.config.max_position_embeddings
        self.cache = BlockCache(cache_blocks)
        self._max_batch = max_batch
        self._submitted: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
        self._running: list[Running] = []
        self.largest_batch = 0
        """Requests in one step, so far."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the step that runs. Requests that are not finished get the reason `cancelled`."""
        self._submitted.put(None)
        self._thread.join()

    async def submit(
        self,
        tokens: list[int],
        max_tokens: int | None = None,
        stop_tokens: Sequence[int] = (),
        temperature: float | None = None,
        seed: int | None = None,
    ) -> AsyncIterator[Step]:
        """The steps of a request. To close the iterator, or to cancel the task that waits for it, ends the request.

        Without a temperature the likeliest token is taken. Raises ValueError for a prompt that is empty or too long.
        """
        room = self.context_length - len(tokens)
        if not tokens or room < 1:
            raise ValueError(f"the prompt has {len(tokens)} tokens: expected 1 to {self.context_length - 1}")
        random = torch.Generator()
        if seed is not None:
            random.manual_seed(seed)
        request = Running(
            list(tokens), min(max_tokens or room, room), frozenset(stop_tokens), temperature or 0.0, random
        )
        self._submitted.put(request)
        try:
            while True:
                step = await request.steps.get()
                if isinstance(step, Exception):
                    raise step
                yield step
                if step.finish is not None:
                    return
        finally:
            request.cancelled = True

    # In the engine's thread

    @torch.inference_mode()
    def _run(self) -> None:
        while self._admit():
            self._running = [each for each in self._running if not each.cancelled]
            if self._running:
                self.largest_batch = max(self.largest_batch, len(self._running))
                self._try(self._running, lambda: self._step(self._running))
        while not self._submitted.empty():
            self._running += filter(None, [self._submitted.get()])
        for each in self._running:
            _deliver(each, Step(None, "cancelled"))

    def _admit(self) -> bool:
        """Take what was submitted; wait for it if nothing runs. Whether the engine goes on."""
        while len(self._running) < self._max_batch and (not self._running or not self._submitted.empty()):
            request = self._submitted.get()
            if request is None:
                return False
            self._running.append(request)
            self._try([request], functools.partial(self._prefill, request))
        return True

    def _try(self, requests: list[Running], work: Callable[[], None]) -> None:
        """An error belongs to the requests that it happened to; the thread goes on."""
        try:
            work()
        except Exception as error:
            for each in requests:
                each.cancelled = True
                _deliver(each, error)

    def _prefill(self, request: Running) -> None:
        """Compute the keys and values of the prompt but for its last token, as far as they are not in the cache."""
        known = self.cache.prefix(request.tokens)
        request.reused = start = 0 if known is None else known.shape[3]
        prompt = request.tokens[:-1]
        if start < len(prompt):
            _, known = self._forward(torch.tensor([prompt[start:]]), [known])
            known = known[0]
        request.cached = known
        if known is not None:
            self.cache.store(prompt, known)

    def _step(self, batch: list[Running]) -> None:
        """One token for each. Sequences of different lengths are padded on the left."""
        last = torch.tensor([[each.tokens[-1]] for each in batch])
        logits, cached = self._forward(last, [each.cached for each in batch])
        for request, row, values in zip(batch, logits, cached, strict=True):
            request.cached = values
            self._take(request, row)

    def _take(self, request: Running, logits: torch.Tensor) -> None:
        logprobs = torch.log_softmax(logits, dim=-1)
        if request.temperature:
            chances = torch.softmax(logits / request.temperature, dim=-1)
            token = int(torch.multinomial(chances, 1, generator=request.random))
        else:
            token = int(logits.argmax())
        request.tokens.append(token)
        request.made += 1
        finish = None
        if token in request.stop_tokens:
            finish = "stop"
        elif request.made == request.max_tokens:
            finish = "length"
        request.cancelled = request.cancelled or finish is not None
        _deliver(request, Step(token, finish, float(logprobs[token]), request.reused))

    def _forward(
        self, tokens: torch.Tensor, cached: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logits after the last of `tokens` (requests, tokens), and each request's keys and values with them."""
        lengths = [0 if each is None else each.shape[3] for each in cached]
        longest, new = max(lengths), tokens.shape[1]
        cache = DynamicCache(config=self._model.config)
        if longest:
            rows = [self._empty() if each is None else each for each in cached]
            padded = torch.stack([pad(each, (0, 0, longest - each.shape[3], 0)) for each in rows])
            for layer in range(padded.shape[1]):
                cache.update(padded[:, layer, 0], padded[:, layer, 1], layer)
        columns = torch.arange(longest + new)
        starts = torch.tensor([[longest - length] for length in lengths])
        output = self._model(
            input_ids=tokens,
            cache=cache,
            attention_mask=(columns >= starts).long(),
            position_ids=columns[longest:] - starts,
            logits_to_keep=1,
        )
        values = torch.stack([torch.stack([each.keys, each.values], dim=1) for each in cache.layers], dim=1)
        return output.logits[:, -1], [values[row, ..., longest - length :, :] for row, length in enumerate(lengths)]

    def _empty(self) -> torch.Tensor:
        config = self._model.config
        return torch.zeros(config.num_hidden_layers, 2, config.num_key_value_heads, 0, config.head_dim)


def _deliver(request: Running, step: Step | Exception) -> None:
    try:
        request.loop.call_soon_threadsafe(request.steps.put_nowait, step)
    except RuntimeError:  # its loop has ended, and the request with it
        request.cancelled = True
