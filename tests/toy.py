"""An engine in a few lines, on a clock of its own: a step takes as long as a function of its batch says."""

import random
from collections import deque

from feather.former import BatchFormer
from feather.request import Request


def all_or_nothing(rows):
    """A cascade kernel: a batch of one group reads its prefix once, any other once per request. Seconds."""
    groups = {group for group, _ in rows}
    return 0.010 + (0.005 if len(groups) == 1 else 0.005 * len(rows))


def by_rows(rows):
    """Nothing is gained by a homogeneous batch: a step mostly costs what any costs. Seconds."""
    return 0.020 + 0.0002 * len(rows)


class ToyEngine:
    """Runs ``former`` over a queue of (group, decode length) in closed loop; ``depth`` steps are in flight."""

    def __init__(self, make_former, max_batch, step_seconds, prefix=10, depth=1):
        self.now = 0.0
        self.former: BatchFormer = make_former(clock=lambda: self.now, max_batch=max_batch)
        self.max_batch, self.step_seconds, self.prefix, self.depth = max_batch, step_seconds, prefix, depth
        self.running = {}  # id → [group, tokens to go]
        self.waiting = {}
        self.tokens = 0
        self.count = 0
        self.history = []  # (now, rows, groups, stopped)

    def add(self, group, decode):
        self.count += 1
        self.waiting[self.count] = [group, decode]
        self.former.insert(Request(self.count, [f"{group}.{depth}" for depth in range(self.prefix)]))

    def step(self):
        self.former.new_step()
        admitted = 0
        while len(self.running) < self.max_batch and (id_ := self.former.next()) is not None:
            self.former.add_to_batch(id_)
            self.running[id_] = self.waiting.pop(id_)
            admitted += 1
        formed = self.former.formed()
        rows = [(group, id_) for id_, (group, _) in self.running.items()]
        seconds = self.step_seconds(rows)
        self.now += seconds
        self.history.append((self.now, len(rows), len({group for group, _ in rows}), bool(self.waiting) and len(rows) < self.max_batch))
        for id_ in list(self.running):
            self.running[id_][1] -= 1
            if not self.running[id_][1]:
                del self.running[id_]
                self.former.finish(id_)
        self.tokens += len(rows)
        self.former.ran(formed, len(rows), seconds, 20 * admitted)


def closed_loop(make_former, step_seconds, seconds=60.0, groups=4, per_group=16, decode=(16, 16), max_batch=32, seed=0, prefix=10):
    """Keeps two batches' worth of requests in the system until the time is up. Returns the engine."""
    draw = random.Random(seed)
    engine = ToyEngine(make_former, max_batch, step_seconds, prefix)
    pending = deque()
    while engine.now < seconds:
        while len(engine.waiting) + len(engine.running) < groups * per_group:
            if not pending:
                pending.extend(draw.sample([group for group in range(groups) for _ in range(per_group)], groups * per_group))
            engine.add(pending.popleft(), draw.randint(*decode))
        engine.step()
    return engine
