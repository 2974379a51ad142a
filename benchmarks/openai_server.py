"""vLLM's OpenAI server as a program of its own: started, asked for its metrics, weighed and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from lab import machine
from lab.llm import TINY_LLAMA

MAX_BATCH = 32


class Server:
    """A server of the tiny model with random weights, ready for requests. Raises RuntimeError, with the end of its log,
    where it does not come up.

    Args:
        folder: where the model's configuration and the log go.
        name: of the log.
        kv_gib: whole GiB of KV cache, in bfloat16 (``machine.gib``).
        arguments: further command-line arguments of vLLM's server.
    """

    def __init__(self, folder: Path, name: str, kv_gib: int = 1, arguments: tuple[str, ...] = ()):
        self.model = str(TINY_LLAMA.write(folder))
        self.log = folder / f"{name}.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # The smallest block that vLLM's CPU attention takes; the uvicorn log would be a line a request.
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.model, "--load-format", "dummy",
            "--skip-tokenizer-init", "--enforce-eager", "--dtype", machine.cpu_dtype(), "--block-size", "32",
            "--max-num-seqs", str(MAX_BATCH), "--max-num-batched-tokens", "8192", "--host", "127.0.0.1", "--port", str(port),
            "--disable-uvicorn-access-log", *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": str(int(machine.gib(kv_gib))), "HF_HUB_OFFLINE": "1"}
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self, timeout: float = 240) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        tail = "".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-30:])
        raise RuntimeError(f"the server did not come up within {timeout:.0f} s; the end of its log:\n{tail}")

    def metrics(self) -> dict[str, float]:
        """Every sample of its /metrics by name, summed over labels; "name{finished_reason}" where there is one."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as reply:
            return parse_metrics(reply.read().decode())

    def resident_mb(self) -> dict[str, float]:
        """Resident memory in MB by process: "api", "engine" (the scheduler's), "worker" (model and KV cache)."""
        processes = [psutil.Process(self._process.pid)]
        processes += processes[0].children(recursive=True)
        found = dict.fromkeys(("api", "engine", "worker"), 0.0)
        for process in processes:
            title = " ".join(process.cmdline())
            kind = "engine" if "EngineCore" in title else "worker" if "Worker" in title else "api"
            found[kind] += process.memory_info().rss / 1e6
        return found

    def stop(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)
                self._process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def parse_metrics(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            reason = sample.labels.get("finished_reason")
            name = f"{sample.name}{{{reason}}}" if reason else sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found
