"""Goes through SGLang's event loop without a model, and keeps account."""

from collections import deque

from feather.sglang import VERSIONS, check_version

TODAY = check_version() == VERSIONS[-1]
"""SGLang 0.5.23: its scheduler with all around it, started once. Otherwise 0.5.9: the parts of its scheduler that schedule."""

if TODAY:
    from lab.engines import sglang_today
    from lab.engines.sglang_today import made_up, make_request
else:
    from lab.engines.sglang_modelless import ModellessScheduler, made_up, make_request, server_arguments  # noqa: F401


def make_scheduler(options, slots=32_000, schedule_policy="feather", **changes):
    """An empty scheduler under one of its policies, with Feather's options and SGLang's arguments."""
    from feather.sglang import install

    if TODAY:
        changes.pop("enable_lora", None)
        return sglang_today.configure(sglang_today.started(), schedule_policy, options, slots=slots, **changes)
    install(options)
    return ModellessScheduler(slots, schedule_policy=schedule_policy, **changes)


def retract(scheduler, place=0):
    """What SGLang does to a running request when its KV pool is full."""
    batch, victim = scheduler.running_batch, scheduler.running_batch.reqs[place]
    batch.release_req(place, len(batch.reqs) - 1, *(() if TODAY else (scheduler.server_args,)))
    batch.filter_batch(keep_indices=[other for other in range(len(batch.reqs)) if other != place])
    batch.batch_is_full = False
    scheduler._add_request_to_queue(victim, is_retracted=True)
    return victim


def has_row(request):
    """SGLang's own account: a row of its pool is a running request's from its first step to its last."""
    return (request.kv if TODAY else request).req_pool_idx is not None


def retractions(request):
    return request.retracted_stain if TODAY else request.retraction_count


def tell_rejected(scheduler, tell):
    """Have ``tell`` called with the id of every request that SGLang turns away."""
    if TODAY:
        scheduler.send_abort_output = lambda abort, request: tell(request.rid)
    else:
        scheduler.send_to_tokenizer.send_output = lambda output, *_: tell(output.rid)


def expire(scheduler):
    """End the requests that have waited or run too long, as SGLang 0.5.23's loop does before it schedules; 0.5.9 does it when it schedules."""
    if TODAY:
        for abort in scheduler._poll_timeout_aborts():
            scheduler.abort_request(abort)


def set_clock(scheduler, clock):
    scheduler.feather.now = clock


class Driver:
    """With ``overlap`` one step ahead of the results."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.results = scheduler.result_queue = deque()
        scheduler.enable_skip_finishing_decode = scheduler.enable_overlap  # as SGLang 0.5.23's loop does
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
        expire(scheduler)
        if TODAY:
            plan = scheduler.get_next_batch_to_run(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
            scheduler.running_batch, batch = plan.running_batch, plan.batch_to_run
        else:
            batch = scheduler.cur_batch = scheduler.get_next_batch_to_run()
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
        return self.scheduler.run_batch(batch) if TODAY else made_up(batch)

    def _deliver(self):
        self.scheduler.process_batch_result(*self.results.popleft())
