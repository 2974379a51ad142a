"""Goes through SGLang's event loop without a model, and keeps account."""

from collections import deque

from lab.engines.sglang_modelless import ModellessScheduler, made_up, make_request, server_arguments

__all__ = ["Driver", "make_request", "make_scheduler", "server_arguments"]


def make_scheduler(slots=32_000, **changes):
    return ModellessScheduler(slots, **changes)


class Driver:
    """With ``overlap`` one step ahead of the results."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.results = deque()
        self.requests = []
        self.started = set()
        self.batches = []  # ids of the requests of every step
        self.decodes = []  # those of the batches that only decode
        self.starts = []  # ids of those that started together

    def add(self, *requests):
        for request in requests:
            self.requests.append(request)
            self.scheduler._add_request_to_queue(request)

    def step(self):
        scheduler = self.scheduler
        batch = scheduler.get_next_batch_to_run()
        scheduler.cur_batch = batch
        if batch is not None:
            self._note(batch)
            result = self._run(batch)
            if scheduler.enable_overlap:
                self.results.append((batch.copy(), result))
            else:
                scheduler.process_batch_result(batch, result)
        if scheduler.enable_overlap and scheduler.last_batch:
            self._deliver()
        scheduler.last_batch = batch
        return batch

    def run(self, max_steps=3000):
        """To the end; fails rather than spin for ever."""
        for _ in range(max_steps):
            if self.step() is None and not self.scheduler.waiting_queue and not self.results:
                return self
        raise AssertionError(f"still unfinished after {max_steps} steps: {[r.rid for r in self.scheduler.waiting_queue]}")

    def _note(self, batch):
        self.batches.append([request.rid for request in batch.reqs])
        if batch.forward_mode.is_extend():
            decoding = batch.decoding_reqs or []
            new = [request.rid for request in batch.reqs if request not in decoding]
            self.started.update(new := [id_ for id_ in new if id_ not in self.started])
            if new:
                self.starts.append(new)
        else:
            self.decodes.append(self.batches[-1])

    def _run(self, batch):
        return made_up(batch)

    def _deliver(self):
        self.scheduler.process_batch_result(*self.results.popleft())
