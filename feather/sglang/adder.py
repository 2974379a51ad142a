"""SGLang's adder, which puts waiting requests into the next batch, as far as Feather lets it."""

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

from feather.sglang.schedule_policy import Verdict

SEAT = "feather_policy"  # where the adder finds the policy: an attribute of the cache, the one object that both keep


class FeatherAdder(PrefillAdder):
    """Adds the requests that Feather chooses, and none after it has stopped the batch."""

    def add_one_req(self, req: Req, *args, **kwargs) -> AddReqResult:
        policy = getattr(self.tree_cache, SEAT, None)
        if policy is None:
            return super().add_one_req(req, *args, **kwargs)
        verdict = policy.verdict(req)
        if verdict is not Verdict.ADD:
            return AddReqResult.OTHER if verdict is Verdict.STOP else AddReqResult.CONTINUE
        result = super().add_one_req(req, *args, **kwargs)
        taken = bool(self.can_run_list) and self.can_run_list[-1] is req
        if taken and not policy.admitted(req) and result is AddReqResult.CONTINUE:
            return AddReqResult.OTHER
        return result
