"""Dynamo's frontend in kv mode, and two workers of this process behind it whose tokenizer has a word for each token."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.ingress.worker import ServedEndpoint, Worker
from tests.discovery.etcd_server import free_port
from tests.interop.peers import LIMIT, ROOT, environment
from tests.waiting import until_in_thread

BLOCK_SIZE = 4
TOTAL_BLOCKS = 100
WORDS = 2000


@dataclass
class KvFrontend:
    """A frontend that runs."""

    version: str
    folder: Path
    port: int

    async def complete(self, model: str, tokens: list[int]) -> int:
        """Ask for a completion of a prompt of these tokens; returns the status."""
        return await asyncio.to_thread(self.complete_here, model, tokens)

    def complete_here(self, model: str, tokens: list[int]) -> int:
        prompt = " ".join(f"w{token}" for token in tokens)
        return self._ask("POST", "/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 1})[0]

    def lists(self, model: str) -> bool:
        status, text = self._ask("GET", "/v1/models", None)
        return status == 200 and any(each["id"] == model for each in json.loads(text)["data"])

    def is_up(self) -> bool:
        try:
            return self._ask("GET", "/v1/models", None)[0] == 200
        except ConnectionError:
            return False

    def _ask(self, method: str, path: str, body: Any) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request(method, path, json.dumps(body).encode(), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@contextlib.contextmanager
def kv_frontend(version: str, folder: Path, *options: str) -> Iterator[KvFrontend]:
    """A frontend in kv mode; skips the test, saying why, if there is none."""
    program = ROOT / ".peers" / f"frontend-{version}"
    if not (program / ".done").exists():
        pytest.skip(f"no real frontend {version}: `make peers` makes .peers/frontend-{version}")
    port, log = free_port(), folder / f"frontend-{version}.log"
    command = [str(program / "bin" / "python"), "-m", "dynamo.frontend", "--http-host", "127.0.0.1"]
    command += [
        "--http-port",
        str(port),
        "--discovery-backend",
        "file",
        "--request-plane",
        "tcp",
        "--event-plane",
        "zmq",
    ]
    command += ["--router-mode", "kv", "--kv-cache-block-size", str(BLOCK_SIZE), *options]
    settings = {"DYN_LOG": os.environ.get("FELOG", "info"), "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, env=environment(folder / "store", **settings), cwd=folder, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        started = KvFrontend(version, folder, port)
        try:
            until_in_thread(lambda: started.is_up() or process.poll() is not None)
            assert process.poll() is None, "the frontend ended"
            yield started
        finally:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text()[-20_000:])  # pytest shows it with a test that fails


@dataclass
class KvWorker:
    """One of the workers of a model."""

    worker: Worker
    served: ServedEndpoint
    prompts: list[list[int]] = field(default_factory=list)
    """The tokens of each request that it got."""

    @classmethod
    async def start(cls, frontend: KvFrontend, model: str) -> KvWorker:
        """A worker that is registered, with its model card."""
        discovery = FileDiscovery(frontend.folder / "store")
        worker = await Worker.start(discovery)
        prompts: list[list[int]] = []

        async def generate(request: Any) -> AsyncIterator[Any]:
            prompts.append(request["token_ids"])
            yield {"token_ids": [7], "finish_reason": "stop"}

        served = await worker.serve(generate, f"test.{model}.generate")
        record = card_record(write_model(frontend.folder / "model"), model, served)
        key = f"{served.endpoint}/{served.instance.instance_id:x}"
        await discovery.store.bucket(MODEL_CARDS).put(key, record)
        return cls(worker, served, prompts)


def write_model(folder: Path) -> Path:
    """A tokenizer of words: `w7` is the token 7."""
    folder.mkdir(exist_ok=True)
    vocabulary = {f"w{number}": number for number in range(WORDS)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 0, "bos_token_id": None}
    config |= {"max_position_embeddings": 2048, "vocab_size": WORDS}
    for name, content in {"tokenizer.json": tokenizer, "config.json": config}.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(content))
    return folder


def card_record(folder: Path, model: str, served: ServedEndpoint) -> bytes:
    from blake3 import blake3

    def file(name: str) -> dict[str, Any]:
        content = (folder / name).read_bytes()
        return {"path": str(folder / name), "checksum": f"blake3:{blake3(content).hexdigest()}", "size": len(content)}

    card = {
        "display_name": model,
        "slug": model,
        "model_info": {"hf_config_json": file("config.json")},
        "tokenizer": {"hf_tokenizer_json": file("tokenizer.json")},
        "kv_cache_block_size": BLOCK_SIZE,
        "migration_limit": 0,
        "model_type": "Completions",
        "model_input": "Tokens",
        "worker_type": "aggregated",
        "needs": [],
        "runtime_config": {"total_kv_blocks": TOTAL_BLOCKS, "enable_local_indexer": True},
    }
    namespace, component, name = served.endpoint
    record = {"type": "Model", "namespace": namespace, "component": component, "endpoint": name}
    return json.dumps({**record, "instance_id": served.instance.instance_id, "card_json": card}).encode()
